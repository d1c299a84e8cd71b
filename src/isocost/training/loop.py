"""The training loop. Time is images seen: all that a step does follows from the spec, the state and that one number."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isocost.data import sampler
from isocost.diffusion.denoiser import from_unet
from isocost.diffusion.schedule import alphas_cumprod
from isocost.encoders.latents import LatentShards
from isocost.errors import DataError, SpecError, TrainingError, lookup
from isocost.models.build import build
from isocost.optim import MuonAdamW
from isocost.processes import only_trainer, stop_signals
from isocost.runlog import Log
from isocost.specs import CheckpointRef, LrSchedule, Optimizer, TrainSettings, TrainSpec
from isocost.training import state as states
from isocost.training.ema import Average
from isocost.training.objectives import OBJECTIVES, Batch
from isocost.training.state import EMA, Checkpoint, TrainState

REPLAY = ".replay"  # in a run's folder


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
) -> Path:
    """Train a member to `spec.images` images seen, and return the folder of its final checkpoint.

    To resume, call it again: it goes on from the newest intact checkpoint in `folder`, and weights, averages and losses
    are bit for bit those of a run that was never interrupted (same device and threads). A checkpoint of
    `spec.checkpoints` that is gone, although the run has ended, is made again.

    progress: called after each step with the line of metrics.jsonl. keep_last: full states kept to resume from.
    save_every_images: how often a state is saved besides `spec.checkpoints` (None: 20 times a run). No result depends
    on it.
    locate: finds the checkpoint of `spec.start_from`.

    On SIGTERM or SIGINT the state is saved and `SystemExit` raised. Raises `TrainingError` when the loss is not finite
    or the disk is full, naming the checkpoint that is left; `DataError` for data that the spec was not made for, and
    for a damaged checkpoint among those that are kept for scoring.
    """
    folder = Path(folder)
    _check(spec, data)
    folder.mkdir(parents=True, exist_ok=True)
    save_every = save_every_images or max(spec.images // 20, 1)
    with only_trainer(folder), stop_signals() as stop:
        way = _Way(device, progress, keep_last, save_every, locate, stop)
        if spec.images in lost_checkpoints(folder, spec):
            _run(spec, data, folder, spec.images, way)
        if lost := lost_checkpoints(folder, spec):
            _replay(spec, data, folder, lost, way)
        shutil.rmtree(folder / REPLAY, ignore_errors=True)
    return folder / "checkpoints" / f"{spec.images:09d}"


@dataclass(frozen=True)
class _Way:
    """How a run is carried out: what `train` was told, and `stop`, which a signal fills. No result depends on it."""

    device: str | torch.device
    progress: Callable[[dict[str, Any]], None] | None
    keep_last: int
    save_every: int
    locate: Callable[[CheckpointRef], Path] | None
    stop: list[int]


def _run(spec: TrainSpec, data: LatentShards, folder: Path, until: int, way: _Way) -> None:
    """Go on to `until` images seen, saving states and kept checkpoints."""
    state = start(spec, way.device, way.locate)
    _resume(state, spec, folder)
    log = Log(folder, state.images_seen)
    try:
        clock = time.monotonic() - log.seconds
        while state.images_seen < until:
            line = step(state, spec, data, folder)
            line["seconds"] = round(time.monotonic() - clock, 3)
            log.write(line)
            if way.progress:
                way.progress(line)
            if way.stop or _is_due(state.images_seen, spec, way.save_every):
                log.sync()
                states.save(state, spec, folder)
                states.retain(folder, way.keep_last, spec.checkpoints)
            if way.stop and state.images_seen < until:
                raise SystemExit(128 + way.stop[0])
    finally:
        log.close()


def _replay(spec: TrainSpec, data: LatentShards, folder: Path, lost: list[int], way: _Way) -> None:
    """Train once more, in a folder aside, as far as the last of the lost checkpoints: those that are there stay."""
    aside = folder / REPLAY
    aside.mkdir(exist_ok=True)
    _run(spec, data, aside, lost[-1], way)
    for images in lost:
        states.adopt(folder, images, aside)


def step(state: TrainState, spec: TrainSpec, data: LatentShards, folder: Path) -> dict[str, float]:
    """One optimizer step on the next `spec.batch` images. Returns images_seen after it, loss, lr and grad_norm."""
    share = learning_rate(spec.lr_schedule, 1.0, state.images_seen + spec.batch / 2, spec.images)
    for group in state.optimizer.param_groups:
        group["lr"] = share * group["initial_lr"]

    state.optimizer.zero_grad(set_to_none=True)
    losses = [_backward(state, spec, batch) for batch in batches(state, spec, data)]
    loss = float(torch.cat(losses).mean())
    grad_norm = float(
        torch.nn.utils.clip_grad_norm_(state.module.parameters(), math.inf if spec.clip is None else spec.clip)
    )
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise _diverged(state, loss, grad_norm, folder)
    state.optimizer.step()
    state.images_seen += spec.batch
    state.average.update(state.images_seen, spec.batch)
    lr = share * spec.optimizer.lr
    return {"images_seen": state.images_seen, "loss": loss, "lr": lr, "grad_norm": grad_norm}


def _backward(state: TrainState, spec: TrainSpec, batch: Batch) -> Tensor:
    """Add a micro-batch's share to the gradients; the losses of its images, detached."""
    network = from_unet(state.module)  # type: ignore[arg-type]
    device = batch.latents.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=spec.precision == "bf16"):
        losses = OBJECTIVES[spec.objective](network, batch, spec)
    (losses.sum() / spec.batch).backward()
    return losses.detach()


def batches(state: TrainState, spec: TrainSpec, data: LatentShards) -> Iterator[Batch]:
    """The next step's images in `spec.accumulation` parts. How many parts there are moves no random number."""
    seed, seen = spec.seed, state.images_seen
    device = next(state.module.parameters()).device
    indices = sampler.indices(len(data), seed, seen, spec.batch)
    noise = sampler.generator(seed, "noise", seen).standard_normal((spec.batch, *data.latent_shape), dtype=np.float32)
    timesteps = sampler.generator(seed, "timesteps", seen).integers(spec.schedule.num_train_timesteps, size=spec.batch)
    dropped = sampler.generator(seed, "captions", seen).random(spec.batch) < spec.caption_dropout
    alpha_cumprod = alphas_cumprod(spec.schedule)[timesteps]
    for part in np.split(np.arange(spec.batch), spec.accumulation):
        contexts = data.contexts(indices[part])
        contexts[dropped[part]] = data.null_context
        arrays = data.latents(indices[part]), contexts, noise[part], timesteps[part], alpha_cumprod[part]
        yield Batch(*(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))


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
    if spec.teacher is not None:
        raise SpecError(f"teacher: objective '{spec.objective}' has none; leave it out")
    if spec.prediction == "epsilon" and spec.schedule.zero_terminal_snr:
        raise SpecError("prediction 'epsilon' learns nothing at zero terminal SNR: use 'v_prediction'")
    if spec.data != data.spec:
        different = [name for name, value in data.spec.canonical().items() if value != spec.data.canonical()[name]]
        raise DataError(f"{data.folder}: not the data of the spec ({', '.join(different)} differ)")
    channels, dim = data.latent_shape[0], data.context_shape[1]
    if spec.model.in_channels != channels or spec.model.out_channels != channels:
        raise DataError(
            f"{data.folder}: latents have {channels} channels, the model {spec.model.in_channels} in and "
            f"{spec.model.out_channels} out"
        )
    if spec.model.context_dim != dim:
        raise DataError(
            f"{data.folder}: text embeddings are {dim} wide, the model's context_dim is {spec.model.context_dim}"
        )


def start(
    spec: TrainSpec, device: str | torch.device = "cpu", locate: Callable[[CheckpointRef], Path] | None = None
) -> TrainState:
    """The state at 0 images seen; initial weights follow from the seed, whatever the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        module = build(spec.model, "cpu")
    if spec.start_from is not None:
        module.load_state_dict(_located(spec.start_from, locate).weights(spec.start_from.weights))
    # Convolutions of 8x8 latents gain nothing from channels_last on a CPU (measured); on GPUs they do.
    layout = torch.channels_last if torch.device(device).type == "cuda" else torch.contiguous_format
    module = module.to(device, memory_format=layout).train()  # type: ignore[call-overload]
    return TrainState(module, Average(module, spec.ema), _optimizer(module, spec.optimizer))


def _optimizer(module: torch.nn.Module, chosen: Optimizer) -> torch.optim.Optimizer:
    """AdamW, on all weights or beside Muon."""
    weights = dict(module.named_parameters())
    hidden = {name for name, weight in weights.items() if chosen.kind == "muon" and _is_hidden_matrix(name, weight)}
    return MuonAdamW(
        [weight for name, weight in weights.items() if name in hidden],
        [weight for name, weight in weights.items() if name not in hidden],
        muon_lr=chosen.muon_lr,
        lr=chosen.lr,
        betas=(chosen.beta1, chosen.beta2),
        eps=chosen.eps,
        weight_decay=chosen.weight_decay,
        fused=True,
    )


def _is_hidden_matrix(name: str, weight: Tensor) -> bool:
    """A matrix or convolution between hidden features; those that touch the latent are not."""
    return weight.ndim >= 2 and not name.startswith(("conv_in.", "conv_out."))


def _located(ref: CheckpointRef, locate: Callable[[CheckpointRef], Path] | None) -> Checkpoint:
    if locate is None:
        raise SpecError("start_from names a checkpoint by content, but nothing says where it lies: pass `locate`")
    checkpoint = Checkpoint.load(locate(ref))
    if checkpoint.ref(ref.weights) != ref:
        raise DataError(f"{checkpoint.folder}: not the checkpoint that start_from names")
    return checkpoint


def _resume(state: TrainState, spec: TrainSpec, folder: Path) -> None:
    """Restore the newest intact checkpoint, if there is one."""
    states.clean(folder)
    for checkpoint in states.intact(folder):
        _require_of(spec, checkpoint)
        checkpoint.restore(state)
        return
    (folder / "spec.yaml").write_text(spec.to_yaml())


def _require_of(spec: TrainSpec, checkpoint: Checkpoint) -> None:
    if checkpoint.spec.digest != spec.digest:
        raise TrainingError(f"{checkpoint.folder}: a checkpoint of another spec: give each run a folder of its own")


def _is_due(images_seen: int, spec: TrainSettings, save_every: int) -> bool:
    crossed = images_seen // save_every != (images_seen - spec.batch) // save_every
    return crossed or images_seen in spec.checkpoints or images_seen == spec.images


def _diverged(state: TrainState, loss: float, grad_norm: float, folder: Path) -> TrainingError:
    good = next(states.intact(folder), None)
    kept = f"the last good checkpoint is {good.folder}" if good else "no checkpoint was saved before it"
    return TrainingError(
        f"{folder}: after {state.images_seen} images the loss is {loss} and the gradient norm {grad_norm}; {kept}. "
        "Lower optimizer.lr, or lengthen lr_schedule.warmup_images."
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
