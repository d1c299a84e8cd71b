"""The training loop. Time is images seen: all that a step does follows from the spec, the state and that one number."""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isocost.data import sampler
from isocost.diffusion.denoiser import check_prediction, from_unet
from isocost.encoders.latents import LatentShards
from isocost.environment import environment
from isocost.errors import DataError, IsocostError, SpecError, TrainingError, lookup
from isocost.models.build import build, widened
from isocost.processes import only_trainer, stop_signals
from isocost.runlog import Log, note_session
from isocost.specs import CheckpointRef, LrSchedule, TrainSettings, TrainSpec
from isocost.training import lora, parallel, teachers
from isocost.training import state as states
from isocost.training.ema import Average
from isocost.training.lean import LeanForward
from isocost.training.lineage import lineage
from isocost.training.objectives import OBJECTIVES, Batch, dreambooth, takes_image
from isocost.training.optimizer import make_optimizer
from isocost.training.parallel import ALONE, PLAIN, Layout, Ranks
from isocost.training.state import EMA, Checkpoint, Saving, TrainState
from isocost.training.threads import Threads
from isocost.training.timesteps import draw_timesteps

REPLAY = ".replay"  # in a run's folder
BUCKETS = 4  # of timesteps, in which losses are logged
LEAN = {"micro"}  # families whose members spend a step on a CPU on many small operations


def train(
    spec: TrainSpec,
    data: LatentShards,
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    progress: Callable[[dict[str, Any]], None] | None = None,
    keep_last: int = 2,
    save_every_images: int | None = None,
    locate: Callable[[CheckpointRef], Path] | None = None,
    ranks: Ranks = ALONE,
    layout: Layout = PLAIN,
    save_aside: bool = False,
    threads: int = 1,
) -> Path:
    """Train a member to `spec.images` images seen, and return the folder of its final checkpoint.

    To resume, call it again: it goes on from the newest intact checkpoint in `folder`, and weights, averages and losses
    are bit for bit those of a run that was never interrupted (same device, threads, ranks and layout; with others they
    are the same up to rounding). A checkpoint of `spec.checkpoints` that is gone, although the run has ended, is made
    again.

    progress: called after each step with the line of metrics.jsonl. keep_last: full states kept to resume from.
    save_every_images: how often a state is saved besides `spec.checkpoints` (None: 20 times a run). No result depends
    on it.
    locate: finds the checkpoints of `spec.start_from` and `spec.teacher`.
    ranks, layout: the processes that train together, each of which calls this, and how weights are spread over them.
    save_aside: training goes on while a copy of the state is written. What fails there is raised at a later step.
    threads: how many share each batch, a core each (see `isocost.training.threads`): for a run that has the machine to
    itself, on a CPU, unsharded.

    On SIGTERM or SIGINT, to any rank, the state is saved and `SystemExit` raised. Raises `TrainingError` when the loss
    is not finite or a disk is full, naming the checkpoint that is left; `DataError` for data that the spec was not made
    for, and for a damaged checkpoint among those that are kept for scoring: the same error on every rank.
    """
    folder = Path(folder)
    _check(spec, data)
    teachers.check(spec, layout)
    parallel.check(layout, ranks, spec.batch, spec.accumulation)
    if threads > 1 and (layout != PLAIN or torch.device(device).type != "cpu"):
        raise SpecError("threads that share a batch are for whole members on a CPU: leave `threads` at 1")
    save_every = save_every_images or max(spec.images // 20, 1)
    with ExitStack() as held:
        ranks.first(lambda: _hold(folder, held))
        stop = held.enter_context(stop_signals(patient=ranks.world > 1))
        way = _Way(device, progress, keep_last, save_every, locate, stop, ranks, layout, save_aside, threads)
        if spec.images in ranks.first(lambda: lost_checkpoints(folder, spec)):
            _run(spec, data, folder, spec.images, way)
        if lost := ranks.first(lambda: lost_checkpoints(folder, spec)):
            _replay(spec, data, folder, lost, way)
        ranks.first(lambda: shutil.rmtree(folder / REPLAY, ignore_errors=True))
    return folder / "checkpoints" / f"{spec.images:09d}"


def _hold(folder: Path, held: ExitStack) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(only_trainer(folder))


@dataclass(frozen=True)
class _Way:
    """How a run is carried out: what `train` was told, and `stop`, which a signal fills. No result depends on it."""

    device: str | torch.device
    progress: Callable[[dict[str, Any]], None] | None
    keep_last: int
    save_every: int
    locate: Callable[[CheckpointRef], Path] | None
    stop: list[int]
    ranks: Ranks
    layout: Layout
    save_aside: bool
    threads: int


def _run(spec: TrainSpec, data: LatentShards, folder: Path, until: int, way: _Way) -> None:
    """Go on to `until` images seen, saving states and kept checkpoints."""
    ranks = way.ranks
    state = start(spec, way.device, way.locate, ranks, way.layout)
    _resume(state, spec, folder, ranks)
    with ExitStack() as held:
        threads = held.enter_context(sharing(state, way.threads))
        recorder = held.enter_context(_Recorder(spec, folder, state.images_seen, way))
        while state.images_seen < until:
            line = step(state, spec, data, folder, ranks, threads)
            stopping = recorder.record(line)
            if stopping or _is_due(state.images_seen, spec, way.save_every):
                recorder.save(state, wait=stopping or state.images_seen >= until)
            if stopping and state.images_seen < until:
                raise SystemExit(128 + (way.stop or [signal.SIGTERM])[0])


def sharing(state: TrainState, threads: int = 1) -> AbstractContextManager[Threads | None]:
    """Who does a step's forward and backward passes; None where gradients are the module's own affair."""
    lean = isinstance(state.network, LeanForward)
    return Threads(state.module, threads) if lean or threads > 1 else nullcontext()


def _session(way: _Way) -> dict[str, Any]:
    """What of a session may move last bits."""
    own = {"device": str(way.device), "ranks": way.ranks.world, "threads": way.threads}
    return {**own, **asdict(way.layout), "environment": environment()}


class _Recorder:
    """What a run leaves on disk: the log, by rank 0, and checkpoints, by all ranks."""

    def __init__(self, spec: TrainSpec, folder: Path, images_seen: int, way: _Way):
        self._spec, self._folder, self._way = spec, folder, way
        self._log = way.ranks.first_only(lambda: Log(folder, images_seen))
        way.ranks.first(lambda: note_session(folder, images_seen, _session(way)))
        self._clock = time.monotonic() - (self._log.seconds if self._log else 0.0)
        self._saving: Saving | None = None

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if self._log:
            self._log.close()
        if error is None or isinstance(error, IsocostError):  # which all ranks have; another one's end they have not
            self._finish_saving()

    def record(self, line: dict[str, Any]) -> bool:
        """Log a step, and let appear what was written meanwhile. Returns whether some rank was told to stop."""
        line["seconds"] = round(time.monotonic() - self._clock, 3)
        ranks = self._way.ranks
        ranks.together(lambda: self._log.write(line) if self._log else None)
        if self._way.progress and ranks.leads:
            self._way.progress(line)
        written = self._saving is not None and self._saving.written
        stopping, ready = ranks.total([bool(self._way.stop), written])
        if ready == ranks.world:
            self._finish_saving()
        return stopping > 0

    def save(self, state: TrainState, wait: bool) -> None:
        self._finish_saving()
        ranks = self._way.ranks
        ranks.together(lambda: self._log.sync() if self._log else None)
        self._saving = Saving(state, self._spec, self._folder, ranks, self._way.save_aside)
        if wait or not self._way.save_aside:
            self._finish_saving()

    def _finish_saving(self) -> None:
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.finish()
            self._way.ranks.first(lambda: states.retain(self._folder, self._way.keep_last, self._spec.checkpoints))


def _replay(spec: TrainSpec, data: LatentShards, folder: Path, lost: list[int], way: _Way) -> None:
    """Train once more, in a folder aside, as far as the last of the lost checkpoints: those that are there stay."""
    aside = folder / REPLAY
    way.ranks.first(lambda: aside.mkdir(exist_ok=True))
    _run(spec, data, aside, lost[-1], way)
    for images in lost:
        way.ranks.first(lambda images=images: states.adopt(folder, images, aside))


def step(
    state: TrainState,
    spec: TrainSpec,
    data: LatentShards,
    folder: Path,
    ranks: Ranks = ALONE,
    threads: Threads | None = None,
) -> dict[str, Any]:
    """One optimizer step on the next `spec.batch` images, of which each rank, and each thread of it, takes its share.

    Returns images_seen after it, loss, lr, grad_norm, and the loss in each quarter of the timesteps, from the least
    noise to the most (None where no image of the batch fell): all of the whole batch.
    """
    share = learning_rate(spec.lr_schedule, 1.0, state.images_seen + spec.batch / 2, spec.images)
    for group in state.optimizer.param_groups:
        group["lr"] = share * group["initial_lr"]

    parts = ranks.together(lambda: list(batches(state, spec, data, ranks)))
    state.optimizer.zero_grad(set_to_none=True)
    if threads:
        threads.begin()
    losses = []
    for number, batch in enumerate(parts, 1):
        parallel.communicate(state.module, number == len(parts))
        losses.append(_backward(state, spec, batch, threads))
    found = _Losses.of(torch.cat(losses), torch.cat([batch.timesteps for batch in parts]), spec, ranks)
    grad_norm = parallel.settle_gradients(state.module, spec.clip, ranks, threads.settle() if threads else None)
    if not (math.isfinite(found.mean) and math.isfinite(grad_norm)):
        raise _diverged(state, found, grad_norm, folder, ranks)
    state.optimizer.step()
    state.images_seen += spec.batch
    state.average.update(state.images_seen, spec.batch)
    lr = share * spec.optimizer.lr
    return {
        "images_seen": state.images_seen,
        "loss": found.mean,
        "lr": lr,
        "grad_norm": grad_norm,
        "loss_by_timestep": found.by_timestep,
    }


@dataclass(frozen=True)
class _Losses:
    """Of a global batch. `bad`: ranks whose share of it is not finite."""

    mean: float
    by_timestep: list[float | None]
    bad: list[int]

    @classmethod
    def of(cls, losses: Tensor, timesteps: Tensor, spec: TrainSpec, ranks: Ranks) -> _Losses:
        """From this rank's losses [B] and timesteps [B], in one message to the others."""
        losses = losses.double().cpu()
        bucket = timesteps.cpu() * BUCKETS // spec.schedule.num_train_timesteps
        sums = torch.zeros(BUCKETS, dtype=torch.float64).index_add_(0, bucket, losses)
        flags = [float(rank == ranks.rank and not losses.isfinite().all()) for rank in range(ranks.world)]
        told = ranks.total([*sums.tolist(), *torch.bincount(bucket, minlength=BUCKETS).tolist(), *flags])
        sums, counts, flags = told[:BUCKETS], told[BUCKETS : 2 * BUCKETS], told[2 * BUCKETS :]
        by_timestep = [total / count if count else None for total, count in zip(sums, counts, strict=True)]
        return cls(math.fsum(sums) / spec.batch, by_timestep, [rank for rank, flag in enumerate(flags) if flag])


def _backward(state: TrainState, spec: TrainSpec, batch: Batch, threads: Threads | None) -> Tensor:
    """Add a micro-batch's share to the gradients; the losses of its images, detached."""

    def losses_of(batch: Batch) -> Tensor:
        # Threads each cast weights for themselves: what is cached, all would share.
        how: Any = {"dtype": torch.bfloat16, "enabled": spec.precision == "bf16", "cache_enabled": threads is None}
        with torch.autocast(batch.latents.device.type, **how):
            return OBJECTIVES[spec.objective](state.networks or state.network, batch, spec)

    if threads:
        return threads.backward(losses_of, batch, 1 / spec.batch)
    losses = losses_of(batch)
    (losses.sum() / spec.batch).backward()
    return losses.detach()


def batches(state: TrainState, spec: TrainSpec, data: LatentShards, ranks: Ranks = ALONE) -> Iterator[Batch]:
    """This rank's share of the next step's images, in `spec.accumulation` parts.

    All is drawn for the whole batch, and the share cut out: neither ranks nor parts move a random number.
    """
    seed, seen = spec.seed, state.images_seen
    device = next(state.module.parameters()).device
    mine = ranks.share(spec.batch)
    order: Any = {"shards": data.shards, "window": spec.window}
    indices, following = (_next_images(spec, data, start, ranks) for start in (seen, seen + spec.batch))
    data.prefetch(indices)
    data.prefetch(following, sampler.next_shards(len(data), seed, seen + spec.batch, **order))
    noise = sampler.generator(seed, "noise", seen).standard_normal((spec.batch, *data.latent_shape), dtype=np.float32)
    timesteps = draw_timesteps(spec, sampler.generator(seed, "timesteps", seen), spec.batch)
    dropped = sampler.generator(seed, "captions", seen).random(spec.batch) < spec.caption_dropout
    noise, timesteps, dropped = noise[mine], timesteps[mine], dropped[mine]
    scales, shared = _scales(spec, seen), {}
    if scales is not None:
        scales, shared = scales[mine], {"null_context": torch.from_numpy(data.null_context).to(device)}
    weights = dreambooth.weights(spec)
    weights = None if weights is None else weights[mine]
    for part in np.split(np.arange(len(indices)), spec.accumulation):
        contexts = data.contexts(indices[part])
        contexts[dropped[part]] = data.null_context
        arrays = {
            "latents": data.latents(indices[part]),
            "contexts": contexts,
            "noise": noise[part],
            "timesteps": timesteps[part],
        }
        if takes_image(spec):
            arrays["condition"] = data.conditions(indices[part])
        if scales is not None:
            arrays["scales"] = scales[part]
        if weights is not None:
            arrays["weights"] = weights[part]
        tensors = {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in arrays.items()}
        yield Batch(**tensors, **shared)


def _next_images(spec: TrainSpec, data: LatentShards, start: int, ranks: Ranks) -> np.ndarray:
    """This rank's share of the images of a step, by number, after `start` were seen: int64 [batch / ranks]."""
    if spec.prior is not None:
        return dreambooth.indices(spec, start)[ranks.share(spec.batch)]
    order: Any = {"shards": data.shards, "window": spec.window}
    return sampler.indices(len(data), spec.seed, start, spec.batch, ranks.rank, ranks.world, **order)


def _scales(spec: TrainSpec, seen: int) -> np.ndarray | None:
    """Guidance scales float32 [batch] of the next step, of a student that embeds them."""
    if spec.scales is None:
        return None
    low, high = spec.scales
    share = sampler.generator(spec.seed, "guidance", seen).random(spec.batch)
    return (low + (high - low) * share).astype(np.float32)


def learning_rate(schedule: LrSchedule, peak: float, images: float, total: int) -> float:
    """The rate at a moment, in images seen; a step takes the rate in the middle of its batch, so none has rate 0."""
    if images < schedule.warmup_images:
        return peak * images / schedule.warmup_images
    if schedule.kind == "constant":
        return peak
    done = (images - schedule.warmup_images) / max(total - schedule.warmup_images, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


# ---------------------------------------------------------------------------------------------------------- start


def _check(spec: TrainSpec, data: LatentShards) -> None:
    """Refuse, before anything is built, data that is not the spec's or does not fit its model."""
    lookup(OBJECTIVES, spec.objective, "objective")
    check_prediction(spec.prediction, spec.schedule)
    if spec.data != data.spec:
        different = [name for name, value in data.spec.canonical().items() if value != spec.data.canonical()[name]]
        raise DataError(f"{data.folder}: not the data of the spec ({', '.join(different)} differ)")
    given = takes_image(spec)
    if given and spec.data.degradation is None:
        raise DataError(f"{data.folder}: no low-resolution images, which objective '{spec.objective}' is given")
    _check_subject(spec, data)
    channels, dim = data.latent_shape[0], data.context_shape[1]
    if spec.model.in_channels != channels * (1 + given) or spec.model.out_channels != channels:
        raise DataError(
            f"{data.folder}: latents have {channels} channels, the model {spec.model.in_channels} in and "
            f"{spec.model.out_channels} out{', which takes twice as many in as out' if given else ''}"
        )
    if spec.model.context_dim != dim:
        raise DataError(
            f"{data.folder}: text embeddings are {dim} wide, the model's context_dim is {spec.model.context_dim}"
        )


def _check_subject(spec: TrainSpec, data: LatentShards) -> None:
    if spec.prior is None:
        return
    if spec.data.instances is None or spec.data.instances > spec.data.images:
        raise DataError(f"{data.folder}: does not say which images are the subject's, for objective 'dreambooth'")
    if spec.prior.weight and spec.data.instances == spec.data.images:
        raise DataError(f"{data.folder}: no images of the class: add some, or set prior.weight to 0")


def start(
    spec: TrainSpec,
    device: str | torch.device = "cpu",
    locate: Callable[[CheckpointRef], Path] | None = None,
    ranks: Ranks = ALONE,
    layout: Layout = PLAIN,
) -> TrainState:
    """The state at 0 images seen; initial weights follow from the seed, whatever the device: every rank draws them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        module = build(spec.model, "cpu")
    parents = []
    if spec.start_from is not None:
        parents.append(first := _located(spec.start_from, locate))
        _require_same_member(first, spec)
        module.load_state_dict(widened(first.weights(spec.start_from.weights), spec.model))
    if spec.lora is not None:
        if layout != PLAIN:
            raise SpecError("lora: adapters are small, and trained whole on every rank: leave --sharding and the like")
        lora.attach(module, spec.lora, spec.seed)
    memory_format = torch.channels_last if layout.sharding == "none" else torch.contiguous_format  # shards are flat
    module = module.to(device, memory_format=memory_format).train()  # type: ignore[call-overload]
    module = parallel.apply(module, layout, ranks, spec.precision)
    # What is wrapped block by block has to be called as it is.
    lean = spec.model.family in LEAN and layout == PLAIN and torch.device(device).type == "cpu" and not spec.lora
    forward: Any = LeanForward if lean else from_unet
    average = Average(module, spec.ema)
    state = TrainState(module, forward(module), average, make_optimizer(module, spec.model, spec.optimizer))
    embeds = False
    if spec.teacher is not None:
        parents.append(teacher := _located(spec.teacher, locate, "teacher"))
        teachers.check_teacher(teacher, spec)
        embeds = teacher.spec.model.guidance_dim is not None
        state.networks = teachers.networks_of(spec, state.network, average, teacher, forward, device)
    state.lineage = lineage(spec, parents, embeds) if parents else None
    return state


def _located(
    ref: CheckpointRef, locate: Callable[[CheckpointRef], Path] | None, field: str = "start_from"
) -> Checkpoint:
    if locate is None:
        raise SpecError(f"{field} names a checkpoint by content, but nothing says where it lies: pass `locate`")
    checkpoint = Checkpoint.load(locate(ref))
    if checkpoint.ref(ref.weights) != ref:
        raise DataError(f"{checkpoint.folder}: not the checkpoint that {field} names")
    return checkpoint


def _require_same_member(first: Checkpoint, spec: TrainSpec) -> None:
    """Raise `DataError` where `first` is not of the spec's member, or its latents. The spec's may have inputs that
    `first` lacks: an image, and guidance."""
    had = first.spec.model
    dims = {"guidance_dim": spec.model.guidance_dim} if had.guidance_dim is None else {}
    if spec.model not in [known.model_copy(update=dims) for known in (had, had.conditioned)]:
        raise DataError(f"{first.folder}: of {first.spec.model}, from which {spec.model} cannot start")
    if first.spec.data.autoencoder != spec.data.autoencoder:
        raise DataError(f"{first.folder}: trained on latents of another autoencoder than the data's: take that one")


def _resume(state: TrainState, spec: TrainSpec, folder: Path, ranks: Ranks) -> None:
    """Restore the newest intact checkpoint, if there is one."""
    newest = ranks.first(lambda: _newest(spec, folder))
    if newest is not None:
        ranks.together(lambda: Checkpoint.load(newest).restore(state))


def _newest(spec: TrainSpec, folder: Path) -> Path | None:
    """Where a run goes on from. A folder without a checkpoint becomes that of a new run."""
    states.clean(folder)
    for checkpoint in states.intact(folder):
        _require_of(spec, checkpoint)
        return checkpoint.folder
    (folder / "spec.yaml").write_text(spec.to_yaml())
    return None


def _require_of(spec: TrainSpec, checkpoint: Checkpoint) -> None:
    if checkpoint.spec.digest != spec.digest:
        raise TrainingError(f"{checkpoint.folder}: a checkpoint of another spec: give each run a folder of its own")


def _is_due(images_seen: int, spec: TrainSettings, save_every: int) -> bool:
    crossed = images_seen // save_every != (images_seen - spec.batch) // save_every
    return crossed or images_seen in spec.checkpoints or images_seen == spec.images


def _diverged(state: TrainState, found: _Losses, grad_norm: float, folder: Path, ranks: Ranks) -> TrainingError:
    good = ranks.first(lambda: next((checkpoint.folder for checkpoint in states.intact(folder)), None))
    kept = f"the last good checkpoint is {good}" if good else "no checkpoint was saved before it"
    where = f" (not finite on rank {', '.join(map(str, found.bad))})" if found.bad and ranks.world > 1 else ""
    return TrainingError(
        f"{folder}: after {state.images_seen} images the loss is {found.mean}{where} and the gradient norm {grad_norm};"
        f" {kept}. Lower optimizer.lr, or lengthen lr_schedule.warmup_images."
    )


# ---------------------------------------------------------------------------------------------------------- looking on


def is_finished(folder: str | Path, spec: TrainSpec) -> bool:
    """Whether a run's final checkpoint, and all that `spec.checkpoints` asks for, are there. As `lost_checkpoints`."""
    return not lost_checkpoints(folder, spec)


def lost_checkpoints(folder: str | Path, spec: TrainSpec) -> list[int]:
    """Which of the checkpoints kept for scoring are not there, by images seen.

    The EMA weights of those that are there are read and verified: this is for the start of a study; to look on, use
    `images_seen`. Raises `DataError` that names a damaged one, and what to do; `TrainingError` for another spec's.
    """
    there = {int(path.name): path for path in states.checkpoints(Path(folder))}
    lost = []
    for images in _kept(spec):
        if images not in there:
            lost.append(images)
            continue
        checkpoint = Checkpoint.load(there[images])
        _require_of(spec, checkpoint)
        checkpoint.verify(EMA)
    return lost


def _kept(spec: TrainSpec) -> list[int]:
    return sorted({*spec.checkpoints, spec.images})


def kept_checkpoints(folder: str | Path, spec: TrainSpec) -> list[Path]:
    """Folders of the checkpoints kept for scoring, by images seen; the final one is last.

    Raises `DataError` when one is missing: the run has not ended.
    """
    found = {int(path.name): path for path in states.checkpoints(Path(folder))}
    if missing := [images for images in _kept(spec) if images not in found]:
        raise DataError(f"{folder}: no checkpoint at {missing[0]} images seen: train to the end first")
    return [found[images] for images in _kept(spec)]
