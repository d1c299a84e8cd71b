"""Whole papers at the scale of a laptop or of one GPU: every experiment of arXiv 2404.01367 as stages of one folder of
stores (`isocost reproduce`). The paper's own scale is in `isocost.recipes.paper`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from isocost.data.scenes import write_scenes
from isocost.data.subjects import SUBJECTS
from isocost.models.ladder import ladder
from isocost.recipes.dreambooth import METRICS as DREAMBOOTH_METRICS
from isocost.recipes.dreambooth import PROMPTS, tuning
from isocost.recipes.interpolation import ALPHAS
from isocost.specs import (
    Between,
    Consistency,
    DataSource,
    Ema,
    EngineSpec,
    Evaluation,
    Grid,
    Guided,
    LrSchedule,
    ModelSpec,
    Optimizer,
    SceneOptions,
    StudySpec,
    Subject,
    Subjects,
    TrainSettings,
)
from isocost.study.stages import Stage

PRETRAINING = "pretraining"
MUON = Optimizer(kind="muon", lr=3e-3)
GUIDANCE_DIM = 64
GUIDED_SCALES = (1.0, 4.0)  # that students of guided distillation learn
DISTILLED_SCALES = (1.0, 1.5, 2.0, 3.0)
BEST = (1.5, 2.0)  # rates near the best of members of this size
SEEDS = (0, 1, 2)
TRAIN, TEST = 101, 102  # seeds of the scenes that stand for photographs


@dataclass(frozen=True)
class Scale:
    """How large a paper is.

    `tuned`: widths of the members tuned for other tasks; `guided`: of those of guided distillation. `images`: seen in
    pretraining; `distilling`: in consistency distillation; `tuning`: in super-resolution and in each
    stage of guided distillation. `checkpoints`: shares of pretraining at which one is kept, 0.4 being the paper's 200K
    of 500K steps.
    """

    data: DataSource
    widths: tuple[int, ...]
    guided: tuple[int, ...]
    images: int
    distilling: int
    tuning: int
    evaluation: Evaluation
    engine: EngineSpec = field(default_factory=EngineSpec)
    batch: int = 128
    checkpoints: tuple[float, ...] = (0.125, 0.25, 0.4, 0.7)
    guidance: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    pairs: int = 40
    photographs: tuple[int, int] = (1024, 32)  # the latter give 16 crops each, of which FD-32 takes 256 a half
    tuned: tuple[int, ...] = (8, 16, 32)
    superres_steps: tuple[int, ...] = (1, 2, 4, 8, 20, 50, 100)
    subjects: int = 4

    @property
    def precision(self) -> Any:
        return self.engine.dtype


MICRO = Scale(
    data=DataSource(
        kind="scenes", resolution=32, images=64_000, scenes=SceneOptions(groups=1, count=2, textures=False)
    ),
    widths=(8, 12, 16, 24, 32),
    guided=(8, 16),
    images=61_440,
    distilling=40_960,
    tuning=20_480,
    evaluation=Evaluation(images=512, references=4096, metrics=("fd", "kid", "clip", "accuracy", "density")),
)
GPU = Scale(
    data=DataSource(kind="scenes", resolution=64, images=1_000_000),
    widths=(16, 24, 32, 48, 64, 96),
    guided=(24, 48),
    images=5_120_000,
    distilling=2_560_000,
    tuning=1_024_000,
    evaluation=Evaluation(images=10_000, references=10_000, metrics=("fd", "kid", "clip", "accuracy", "density")),
    engine=EngineSpec(dtype="bf16", device="cuda", batch=500),
    batch=256,
    guidance=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0),
    pairs=500,
    photographs=(8192, 64),
    tuned=(16, 24, 32, 48, 64, 96),
    superres_steps=(1, 2, 4, 6, 8, 10, 20, 50, 100, 250),
    subjects=len(SUBJECTS),
)


def paper_micro() -> tuple[Stage, ...]:
    """Every experiment on procedural scenes: five members of 0.3M to 4M parameters, two cores, nothing to download."""
    return _stages(MICRO)


def paper_gpu() -> tuple[Stage, ...]:
    """The same on one GPU: six members on scenes of 64 pixels, two groups and textures, 10,000 images a cell."""
    return _stages(GPU)


def _stages(scale: Scale) -> tuple[Stage, ...]:
    """One training seed of everything first; then two more of what that found."""

    def stage(
        name: str,
        study: Callable[[Scale, Path], StudySpec],
        *figures: str,
        continues: str | None = PRETRAINING,
        prepare: Callable[[Path], None] | None = None,
    ) -> Stage:
        return Stage(name, partial(study, scale), figures, prepare, continues)

    def guided(name: str, teachers: str, steps: int | None, *figures: str) -> Stage:
        return stage(name, partial(_guided, name=name, teachers=teachers, steps=steps), *figures)

    drawn = ("Table 1", "Fig. 1", "Fig. 3", "Fig. 7", "Fig. 8", "Fig. 9", "Fig. 10", "Fig. 11", "Fig. 14-16")
    upscaled = ("Fig. 4", "Fig. 5", "Fig. 12", "Fig. 17", "Fig. 18", "Fig. 21-23")
    return (
        stage(PRETRAINING, _pretraining, *drawn, continues=None),
        stage("distill", _distill, "Fig. 13", "Fig. 20"),
        guided("guided", PRETRAINING, None),
        guided("guided-16", "guided", 16, "Fig. 19"),
        guided("guided-8", "guided-16", 8, "Fig. 19"),
        guided("guided-4", "guided-8", 4),
        stage("sr", _superres, *upscaled, continues=None, prepare=partial(_write_photographs, scale)),
        stage("sr-distill", _superres_distill, continues="sr"),
        stage("trained-on", _trained_on),
        stage("interpolation", _interpolation, "Fig. 24"),
        stage("dreambooth", _dreambooth, "Fig. 6", continues=None),
        stage("seeds", _seeds, "Fig. 3", "Fig. 9"),
    )


# --- pretraining and its sweep ---


def _pretraining(scale: Scale, root: Path) -> StudySpec:
    return StudySpec(
        name=PRETRAINING,
        data=scale.data,
        members=_members(scale.widths),
        train=TrainSettings(
            images=scale.images,
            batch=scale.batch,
            optimizer=MUON,
            lr_schedule=LrSchedule(kind="cosine", warmup_images=10 * scale.batch),
            precision=scale.precision,
            caption_dropout=0.1,
            ema=Ema(halflife_images=5000 * scale.images // MICRO.images),
            checkpoints=tuple(_whole_steps(share * scale.images, scale.batch) for share in scale.checkpoints),
        ),
        grid=Grid(steps=(1, 2, 4, 8, 20), guidance=scale.guidance),
        extra_grids=(
            Grid(steps=(50,), guidance=BEST),
            Grid(steps=(100,), guidance=BEST[:1]),
            Grid(samplers=("ddpm",), steps=(4, 8, 20), guidance=BEST),
            Grid(samplers=("dpmpp_2m",), steps=(2, 4, 8, 20), guidance=BEST),
            Grid(steps=(2,), guidance=(1.5,), best_of=(2, 4)),
        ),
        curve=Grid(steps=(20,), guidance=(2.0,)),
        evaluation=scale.evaluation,
        engine=scale.engine,
    )


def _whole_steps(images: float, batch: int) -> int:
    return round(images / batch) * batch


def _seeds(scale: Scale, root: Path) -> StudySpec:
    """Two more training seeds, at what was found best with the first, and at the curve's plan as a control."""
    first = _pretraining(scale, root)
    of_first = [grid.model_copy(update={"seeds": SEEDS[:1]}) for grid in first.grids]
    found = [grid.model_copy(update={"seeds": SEEDS[1:]}) for grid in _best_plans(root / PRETRAINING)]
    return first.model_copy(
        update={"name": "seeds", "seeds": SEEDS, "grid": of_first[0], "extra_grids": (*of_first[1:], *found)}
    )


def _best_plans(store: Path) -> tuple[Grid, ...]:
    """Plans on the frontier of a store, for every member. Of a store that is not done, for a dry run, some like it."""
    from isocost.analysis.cells import best_guidance
    from isocost.analysis.frontier import frontier
    from isocost.study.stages import is_scored
    from isocost.study.store import Store
    from isocost.study.tables import metric_label, table

    opened = Store(store)
    if not is_scored(opened):
        return (Grid(steps=(1, 2, 4), guidance=(1.5,)),)
    points = frontier(best_guidance(table(opened), metric_label(opened, "fd"))).points
    plain = points[points["best_of"] == 1]
    plans = dict.fromkeys(zip(plain["sampler"], plain["steps"], plain["guidance_scale"], strict=True))
    return tuple(Grid(samplers=(sampler,), steps=(int(steps),), guidance=(scale,)) for sampler, steps, scale in plans)


# --- distillation ---


def _distill(scale: Scale, root: Path) -> StudySpec:
    """CoDi's students, which take a guidance scale as their teachers do."""
    train = _distilling(scale, scale.distilling, objective="consistency", consistency=_CODI)
    grid = Grid(samplers=("lcm",), spacing="lcm", steps=(1, 2, 4, 8), guidance=DISTILLED_SCALES)
    study = _distilled(scale, "distill", root / PRETRAINING, scale.widths, train, grid, before=(1, 2, 4, 8, 20))
    many = Grid(steps=(50,), guidance=BEST, undistilled=True)
    return study.model_copy(update={"extra_grids": (*study.extra_grids, many)})


def _trained_on(scale: Scale, root: Path) -> StudySpec:
    """What students are to be held against, too: their teachers, trained on for as many images as they were."""
    students = _distill(scale, root)
    train = _pretraining(scale, root).train
    assert train is not None and students.train is not None
    same = {name: getattr(students.train, name) for name in ("images", "lr_schedule", "ema", "checkpoints")}
    return students.model_copy(
        update={
            "name": "trained-on",
            "members": _members(scale.tuned),
            "train": train.model_copy(update=same),
            "grid": Grid(steps=students.grid.steps, guidance=DISTILLED_SCALES),
            "extra_grids": (),
            "curve": None,
        }
    )


def _guided(scale: Scale, root: Path, name: str, teachers: str, steps: int | None) -> StudySpec:
    """Guided distillation, then rounds of `steps`, half of those before."""
    counts = (steps,) if steps else (4, 8, 16)
    train = _distilling(scale, scale.tuning, objective="guided", guided=Guided(guidance=GUIDED_SCALES, steps=steps))
    grid = Grid(steps=counts, guidance=DISTILLED_SCALES)
    before = (steps, 2 * steps) if steps else counts
    return _distilled(scale, name, root / teachers, scale.guided, train, grid, before)


_CODI = Consistency(setting="codi", distance="l2")


def _distilling(scale: Scale, images: int, **objective: Any) -> TrainSettings:
    return TrainSettings(
        images=images,
        batch=scale.batch,
        optimizer=MUON,
        lr_schedule=LrSchedule(kind="cosine", warmup_images=10 * scale.batch),
        precision=scale.precision,
        caption_dropout=0.0 if "guided" in objective else 0.1,
        ema=Ema(halflife_images=images // 12),
        checkpoints=tuple(_whole_steps(share * images, scale.batch) for share in (0.25, 0.5)),
        **objective,
    )


def _distilled(
    scale: Scale,
    name: str,
    teachers: Path,
    widths: tuple[int, ...],
    train: TrainSettings,
    grid: Grid,
    before: tuple[int, ...],
) -> StudySpec:
    """`before`: steps of what the members were, at the same guidance."""
    return StudySpec(
        name=name,
        data=scale.data,
        members=_members(widths, GUIDANCE_DIM if train.scales else None),
        start_from=str(teachers),
        train=train,
        grid=grid,
        extra_grids=(Grid(steps=before, guidance=grid.guidance, undistilled=True),),
        curve=grid.model_copy(update={"steps": (4 if 4 in grid.steps else grid.steps[0],), "guidance": (1.5,)}),
        evaluation=scale.evaluation,
        engine=scale.engine,
    )


# --- downstream ---


def _superres(scale: Scale, root: Path) -> StudySpec:
    """Steps to 250 without guidance; kept checkpoints are budgets of fine-tuning, at a constant rate."""
    return StudySpec(
        name="sr",
        data=_crops(scale, root),
        members=tuple(model.conditioned for model in _members(scale.tuned)),
        start_from=str(root / PRETRAINING),
        train=TrainSettings(
            objective="superres",
            images=scale.tuning,
            batch=scale.batch,
            optimizer=MUON,
            lr_schedule=LrSchedule(kind="constant", warmup_images=10 * scale.batch),
            precision=scale.precision,
            caption_dropout=0.0,
            ema=Ema(halflife_images=scale.tuning // 12),
            checkpoints=tuple(_whole_steps(share * scale.tuning, scale.batch) for share in (0.25, 0.5)),
        ),
        grid=Grid(steps=scale.superres_steps),
        curve=Grid(steps=(50,)),
        evaluation=_of_crops(scale, root),
        engine=scale.engine,
    )


def _superres_distill(scale: Scale, root: Path) -> StudySpec:
    """Students of upscalers."""
    train = _distilling(scale, scale.tuning, objective="consistency", consistency=_CODI)
    return StudySpec(
        name="sr-distill",
        data=_crops(scale, root),
        members=tuple(model.conditioned for model in _members(scale.tuned)),
        start_from=str(root / "sr"),
        train=train.model_copy(update={"caption_dropout": 0.0}),
        grid=Grid(samplers=("lcm",), spacing="lcm", steps=(1, 2, 4, 8)),
        extra_grids=(Grid(steps=(1, 2, 4, 8, 20), undistilled=True),),
        evaluation=_of_crops(scale, root),
        engine=scale.engine,
    )


def _write_photographs(scale: Scale, root: Path) -> None:
    """Scenes twice as large as what members upscale to, two groups of things with textures, of which they see crops."""
    for seed, images in zip((TRAIN, TEST), scale.photographs, strict=True):
        if not _photographs(root, seed).is_dir():
            write_scenes(_photographs(root, seed), images, 2 * scale.data.resolution, seed)


def _photographs(root: Path, seed: int) -> Path:
    return root / "photographs" / {TRAIN: "train", TEST: "test"}[seed]


def _crops(scale: Scale, root: Path) -> DataSource:
    return DataSource(
        kind="images",
        resolution=scale.data.resolution,
        images=16 * scale.photographs[0],
        train=(str(_photographs(root, TRAIN)),),
        degradation="realesrgan",
    )


def _of_crops(scale: Scale, root: Path) -> Evaluation:
    return Evaluation(
        prompts=f"sr-{scale.data.resolution}:{_photographs(root, TEST)}",
        images=16 * scale.photographs[1],
        metrics=("fd", "kid", "similarity", "psnr", "ssim"),
    )


def _interpolation(scale: Scale, root: Path) -> StudySpec:
    """The paper's guidance rate, and one that suits members of this size."""
    return _pretraining(scale, root).model_copy(
        update={
            "name": "interpolation",
            "grid": Grid(steps=(20,), guidance=(2.0, 7.5)),
            "extra_grids": (),
            "curve": None,
            "evaluation": Evaluation(
                images=scale.pairs * len(ALPHAS),
                references=scale.evaluation.references,
                metrics=("kid", "coherence", "attribute-coherence", "path-length", "detour", "largest-jump"),
                select_by="kid",
                keep_images=True,
                between=Between(alphas=ALPHAS),
            ),
        }
    )


def _dreambooth(scale: Scale, root: Path) -> StudySpec:
    subjects = [Subject(name=name, noun=drawn.noun) for name, drawn in list(SUBJECTS.items())[: scale.subjects]]
    return StudySpec(
        name="dreambooth",
        data=scale.data,
        members=_members(scale.tuned),
        start_from=str(root / PRETRAINING),
        train=tuning(),
        grid=Grid(steps=(20,), guidance=(2.0,)),
        evaluation=Evaluation(metrics=DREAMBOOTH_METRICS, select_by="similarity"),
        dreambooth=Subjects(subjects=tuple(subjects), prompt=None, prompts=PROMPTS, class_images=36),
        engine=scale.engine.model_copy(update={"batch": 24}),
    )


# --- members ---


def _members(widths: tuple[int, ...], guidance_dim: int | None = None) -> tuple[ModelSpec, ...]:
    """Of the micro ladder, and between its rungs."""
    rung = ladder("micro").members[0]
    return tuple(rung.model_copy(update={"width": width, "guidance_dim": guidance_dim}) for width in widths)
