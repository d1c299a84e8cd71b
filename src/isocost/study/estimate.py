"""What a study will take, before any of it is done: counted from its spec, and timed on this machine.

Work is counted (images trained on, network evaluations, images decoded and seen by extractors), and a little of each
kind of it is done to learn its seconds. No data or checkpoint is read.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from isocost.data import scenes
from isocost.data.degradation import DEGRADATIONS, degrade, draw
from isocost.data.pairs import enlarged
from isocost.data.prompts import REFERENCE_SEED
from isocost.diffusion.denoiser import Denoiser
from isocost.diffusion.noise import batch_noise
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.models.build import build
from isocost.models.cost import forward_flops, objective_flops, training_flops
from isocost.sampling.checkpoints import Traits
from isocost.sampling.engine import prepare, threads
from isocost.sampling.timing import work_of
from isocost.scoring.measures import columns_of
from isocost.specs import (
    CheckpointRef,
    DataSpec,
    EngineSpec,
    ModelSpec,
    NoiseSchedule,
    PromptSet,
    StudySpec,
    TrainSpec,
    digest_of,
)
from isocost.study import grid
from isocost.study.artifacts import EncoderRefs
from isocost.study.dry_run import context_length_of, latent_size_of
from isocost.study.grid import Run, Scorer, StudyCheckpoint
from isocost.study.measures import loaded, metric_names
from isocost.study.stages import Stage, is_done
from isocost.study.store import Store
from isocost.training import loop

ANYWHERE = Path("anywhere")


# --- counting ---


@dataclass
class Workload:
    """What a study asks for. trained: of each member, images trained on, what else its objective evaluates counted as
    the share of a training step that it is. evaluated: of each member, evaluations of one image. images: decoded, and
    seen by every extractor. encoded: training images. references: real images that extractors see.
    """

    runs: int = 0
    cells: int = 0
    images: int = 0
    encoded: int = 0
    references: int = 0
    trained: Counter[ModelSpec] = field(default_factory=Counter)
    evaluated: Counter[ModelSpec] = field(default_factory=Counter)

    def flops(self, latent_size: int, context_length: int) -> float:
        """Of training and of sampling, decoders and extractors aside."""
        size = (latent_size, context_length)
        training = sum(count * training_flops(model, *size) for model, count in self.trained.items())
        return training + sum(count * forward_flops(model, *size) for model, count in self.evaluated.items())


def workload(study: StudySpec, done: StudySpec | None = None) -> Workload:
    """What a study asks for; less what `done`, a study that it continues, has trained and sampled for it."""
    known_runs, known_cells = expanded(done) if done is not None else ([], [])
    runs, cells = expanded(study, {(run.model.name, run.seed): _final(run) for run in known_runs})
    if done is not None:
        runs = [run for run in runs if run.spec.digest not in {known.spec.digest for known in known_runs}]
        if done.evaluation == study.evaluation:
            cells = [cell for cell in cells if cell.sample_key not in {known.sample_key for known in known_cells}]
    found = Workload(runs=len(runs))
    size = (latent_size_of(study)[0], context_length_of(study)[0])
    for run in runs:
        share = objective_flops(run.model, run.spec, *size) / training_flops(run.model, *size)
        found.trained[run.model] += round(run.spec.images * share)
    if study.dreambooth is not None:
        return _of_dreambooth(study, found, runs)
    if done is None or done.data != study.data:
        found.encoded = study.data.images or 0
    models = {one.ref.content_digest: one.model for cell in cells for one in (*cell.checkpoints, cell.guide) if one}
    images = study.evaluation.images
    cells = list({cell.sample_key: cell for cell in cells}.values())  # the end of a training curve may be on the grid
    for cell in cells:
        candidates = cell.plan.best_of.n if cell.plan.best_of else 1
        found.images += images * candidates
        for digest, rows, count in work_of(cell.plan)[0]:
            found.evaluated[models[digest]] += images * rows * count  # pyright: ignore[reportArgumentType]
    found.cells = len(cells)
    found.references = study.evaluation.references if study.data.degradation is None else 0
    return found


def _of_dreambooth(study: StudySpec, found: Workload, runs: list[Run]) -> Workload:
    """Each member is tuned on each subject, with its prior and perhaps without, and drawn from before and after."""
    assert study.dreambooth is not None and study.train is not None
    asked = study.dreambooth
    hows = 2 if asked.unpreserved and study.train.prior and study.train.prior.weight else 1
    tunings = len(asked.subjects) * hows
    found.trained = Counter({model: count * tunings for model, count in found.trained.items()})
    sets = len(asked.subjects) * (hows + 1)
    each = sets * (len(asked.prompts) * asked.images + asked.class_images)
    evaluations = study.grid.steps[0] * (2 if study.grid.guidance[0] != 1 else 1)
    for run in runs:
        found.evaluated[run.model] += each * evaluations
        found.images += each
    found.runs, found.cells = len(runs) * tunings, len(runs) * sets
    return found


def expanded(
    study: StudySpec, finals: Mapping[tuple[str, int], CheckpointRef] | None = None
) -> tuple[list[Run], list[grid.Cell]]:
    """Its runs and cells, on checkpoints that stand for those it will have; `finals`: for those that members start
    from, by name and seed."""
    side, length = latent_size_of(study)[0], context_length_of(study)[0]
    first = study.members[0]
    data = DataSpec(
        digest_of_shards="",
        images=study.data.images or 1,
        resolution=study.data.resolution,
        latent_shape=(first.out_channels, side, side),
        context_shape=(length, first.context_dim),
        autoencoder=study.data.autoencoder,
        text_encoder=study.data.text_encoder,
        degradation=study.data.degradation,
    )
    wanted = [(model.name, seed) for model in study.members for seed in study.seeds]
    starts = {key: (finals or {}).get(key) or _stand_in("start", *key) for key in wanted}
    runs = grid.runs(study, data, starts if study.start_from else None)
    if study.dreambooth is not None:
        return runs, []
    checkpoints = [one for run in runs for one in _checkpoints(study, run)]
    scorers = {asked.scorer: Scorer(asked.scorer, digest_of(asked.scorer)) for asked in study.grids}
    prompts = PromptSet(name=study.evaluation.prompts, digest_of_prompts=digest_of(study.evaluation.prompts))
    return runs, grid.expand(study, checkpoints, scorers, prompts)


def _stand_in(*what: object, images: int = 1) -> CheckpointRef:
    return CheckpointRef(content_digest=digest_of([*what, images]), images_seen=images)


def _final(run: Run) -> CheckpointRef:
    return _stand_in(run.spec.digest, images=run.spec.images)


def _checkpoints(study: StudySpec, run: Run) -> Iterator[StudyCheckpoint]:
    traits = Traits.of(run.spec)
    where = (ANYWHERE, study.data.autoencoder, study.data.text_encoder)
    for images in sorted({*run.spec.checkpoints, run.spec.images}):
        ref = _stand_in(run.spec.digest, images=images)
        yield StudyCheckpoint(run.model.name, run.model, run.seed, ref, traits, *where)
    if run.spec.teacher is not None:
        plain = dataclasses.replace(traits, objective="denoise", embeds_guidance=False, rounds_to=None, between=False)
        model = run.model.model_copy(update={"guidance_dim": None})
        yield StudyCheckpoint(run.model.name, model, run.seed, run.spec.teacher, plain, *where, undistilled=True)


# --- timing ---


class Speeds:
    """Seconds of a core that each kind of work takes on this machine; each is timed once, when it is asked for."""

    def __init__(self, turns: int = 3):
        self._turns = turns
        self._known: dict[Any, float] = {}

    def seconds(self, study: StudySpec, work: Workload) -> dict[str, float]:
        """Seconds of one core, by what they go into."""
        with threads(study.engine.threads):
            train, sample = self._of_training(study), self._of_sampling(study)
            return {
                "encode": work.encoded * self._of_encoding(study) if work.encoded else 0.0,
                "train": sum(count * train(model) for model, count in work.trained.items()),
                "sample": sum(count * sample(model) for model, count in work.evaluated.items())
                + work.images * self._of_decoding(study),
                "extract": (work.images + work.references) * self._of_extracting(study),
            }

    def longest_run(self, study: StudySpec, work: Workload) -> float:
        """Seconds of the longest training run."""
        train, runs = self._of_training(study), max(work.runs / max(len(work.trained), 1), 1)
        return max((count * train(model) / runs for model, count in work.trained.items()), default=0.0)

    def _of_training(self, study: StudySpec) -> Callable[[ModelSpec], float]:
        """Of a member, on an image."""
        assert study.train is not None
        batch, optimizer, kind = study.train.batch, study.train.optimizer, study.train.precision
        size = (latent_size_of(study)[0], context_length_of(study)[0])

        def of(model: ModelSpec) -> float:
            step = lambda: _training_step(study, model, *size)  # noqa: E731
            return self._timed(("train", model, batch, optimizer.kind, kind, *size), step, batch)

        return of

    def _of_sampling(self, study: StudySpec) -> Callable[[ModelSpec], float]:
        """Of a member, an evaluation of an image."""
        engine = study.engine
        size = (latent_size_of(study)[0], context_length_of(study)[0])
        return lambda model: self._timed(
            ("call", model, engine, *size), lambda: _evaluation(model, engine, *size), engine.batch
        )

    def _of_decoding(self, study: StudySpec) -> float:
        engine, side = study.engine, latent_size_of(study)[0]

        def decode() -> Callable[[], object]:
            autoencoder = load_autoencoder(study.data.autoencoder)
            shape = (study.members[0].out_channels, side, side)
            latents = batch_noise([(str(i), 0) for i in range(engine.batch)], "x_T", shape)
            return lambda: autoencoder.decode(latents)

        return self._timed(("decode", study.data.autoencoder, engine.batch, side), decode, engine.batch)

    def _of_encoding(self, study: StudySpec) -> float:
        """Of a training image, drawn and encoded with its caption, and what degrading it leaves."""
        source, batch = study.data, 64

        def encode() -> Callable[[], object]:
            autoencoder, text_encoder = load_autoencoder(source.autoencoder), load_text_encoder(source.text_encoder)

            def once() -> None:
                drawn = scenes.scenes(REFERENCE_SEED, range(batch), source.resolution, source.scenes)
                images = [scene.image for scene in drawn]
                autoencoder.encode(np.stack(images))
                text_encoder.encode([scene.caption for scene in drawn])
                if source.degradation is not None:
                    how = DEGRADATIONS[source.degradation]
                    low = [degrade(image, draw(how, REFERENCE_SEED, i)) for i, image in enumerate(images)]
                    autoencoder.encode(np.stack([enlarged(image) for image in low]))

            return once

        return self._timed(
            ("encode", source.autoencoder, source.text_encoder, source.resolution, source.degradation), encode, batch
        )

    def _of_extracting(self, study: StudySpec) -> float:
        """Of an image, by every extractor that the metrics ask for."""
        batch, data = study.engine.batch, study.data
        refs = EncoderRefs(data.autoencoder, data.text_encoder, study.evaluation.extractor, study.evaluation.classifier)
        names = metric_names(study.evaluation, refs)

        def extract() -> Callable[[], object]:
            images = scenes.draw(REFERENCE_SEED, range(batch), data.resolution, data.scenes)
            columns = [column for column in columns_of(loaded(names)) if column.of == "images"]
            return lambda: [column.function(images) for column in columns]

        return self._timed(("extract", names, batch, data.resolution), extract, batch)

    def _timed(self, key: Any, prepare: Callable[[], Callable[[], object]], images: int) -> float:
        """Seconds an image of what `prepare` returns, the first call left out: of the processor's time, so that what
        else the machine does counts little."""
        name = digest_of(repr(key))
        if name not in self._known:
            once = prepare()
            once()
            turns = []
            for _ in range(self._turns):
                begun = time.process_time()
                once()
                turns.append((time.process_time() - begun) / images)
            self._known[name] = float(np.median(turns))
        return self._known[name]


class _AnyData:
    """As much of `LatentShards` as a training step reads, with numbers of the right shapes."""

    def __init__(self, spec: DataSpec):
        self.latent_shape, self.shards = spec.latent_shape, (spec.images,)
        self._latents = np.random.default_rng(0).standard_normal((spec.images, *spec.latent_shape), np.float32)
        self._contexts = np.random.default_rng(1).standard_normal((spec.images, *spec.context_shape), np.float32)
        self.null_context = self._contexts[0]

    def __len__(self) -> int:
        return len(self._latents)

    def prefetch(self, *_: object) -> None:
        """All is in memory."""

    def latents(self, indices: np.ndarray) -> np.ndarray:
        return self._latents[indices]

    def contexts(self, indices: np.ndarray) -> np.ndarray:
        return self._contexts[indices]


def _training_step(study: StudySpec, model: ModelSpec, side: int, length: int) -> Callable[[], object]:
    """A step of the training loop, of the objective `denoise`."""
    assert study.train is not None
    model = model.model_copy(update={"guidance_dim": None, "in_channels": model.out_channels})
    settings = {name: getattr(study.train, name) for name in type(study.train).model_fields}
    settings |= {"objective": "denoise", "consistency": None, "guided": None, "prior": None, "checkpoints": ()}
    source = DataSpec(
        digest_of_shards="",
        images=settings["batch"],
        resolution=study.data.resolution,
        latent_shape=(model.out_channels, side, side),
        context_shape=(length, model.context_dim),
        autoencoder="",
        text_encoder="",
    )
    spec, data = TrainSpec(model=model, data=source, seed=0, **settings), cast(Any, _AnyData(source))
    state = loop.start(spec)
    sharing = loop.sharing(state).__enter__()  # of one thread: there is none to end
    return lambda: loop.step(state, spec, data, ANYWHERE, threads=sharing)


def _evaluation(model: ModelSpec, engine: EngineSpec, side: int, length: int) -> Callable[[], object]:
    """A call of a member's network on a batch, with what it computes once a trajectory left out."""
    model = model.model_copy(update={"guidance_dim": None, "in_channels": model.out_channels})
    denoiser = Denoiser(prepare(build(model, "cpu"), engine), NoiseSchedule(), "v_prediction")  # pyright: ignore
    denoise = denoiser.bind(torch.randn(engine.batch, length, model.context_dim), 1)
    latents = torch.randn(engine.batch, model.out_channels, side, side)

    def call() -> object:
        with torch.inference_mode():
            return denoise(latents, 500)

    return call


# --- of a paper ---


@dataclass(frozen=True)
class StageEstimate:
    """What a stage of a paper will take. seconds: of one core, by what they go into; empty where the study's engine is
    on another device, whose hours follow from `flops`. wall_seconds: with the workers that there are, None there.
    done: its store has all of it.
    """

    stage: str
    figures: tuple[str, ...]
    runs: int
    cells: int
    images: int
    flops: float
    seconds: dict[str, float]
    wall_seconds: float | None
    done: bool


def estimate(
    stages: Sequence[Stage],
    root: Path,
    workers: int,
    progress: Callable[[str, float, float, str], None] = lambda stage, done, total, note="": None,
) -> Iterator[StageEstimate]:
    """What each stage will take, those done included. Members and extractors are timed where the study is for a CPU."""
    speeds = Speeds()
    studies = {stage.name: stage.study(root) for stage in stages}
    for place, stage in enumerate(stages):
        progress("estimate", place, len(stages), stage.name)
        study = studies[stage.name]
        work = workload(study, studies[stage.continues] if stage.continues else None)
        seconds = speeds.seconds(study, work) if study.engine.device == "cpu" else {}
        yield StageEstimate(
            stage=stage.name,
            figures=stage.figures,
            runs=work.runs,
            cells=work.cells,
            images=work.images,
            flops=work.flops(latent_size_of(study)[0], context_length_of(study)[0]),
            seconds=seconds,
            wall_seconds=_wall(seconds, speeds.longest_run(study, work), workers) if seconds else None,
            done=is_done(Store(root / stage.name), study),
        )
    progress("estimate", len(stages), len(stages), "")


def _wall(seconds: Mapping[str, float], longest_run: float, workers: int) -> float:
    """A member is trained by one worker: training lasts as long as the longest, at least."""
    training = max(seconds["train"] / workers, longest_run)
    return training + (sum(seconds.values()) - seconds["train"]) / workers
