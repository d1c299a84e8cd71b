"""Whole papers: every experiment of arXiv 2404.01367 as stages of one folder of stores (`isocost reproduce`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from isocost.data.scenes import write_scenes
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

MICRO_WIDTHS = (8, 12, 16, 24, 32)
GUIDED_WIDTHS = (8, 16)
SEEDS = (0, 1, 2)
SCENES = DataSource(kind="scenes", resolution=32, images=64_000, scenes=SceneOptions(groups=1, count=2, textures=False))
MUON = Optimizer(kind="muon", lr=3e-3)
GUIDANCE_DIM = 64
LEARNED_SCALES = (1.0, 4.0)
DISTILLED_SCALES = (1.0, 1.5, 2.0, 3.0)
BEST = (1.5, 2.0)  # rates near the best of members of this size
PHOTOGRAPHS = {"train": (101, 1024), "test": (102, 24)}  # seed and how many


def paper_micro() -> tuple[Stage, ...]:
    """The whole paper on scenes: five members from 0.3M to 4M parameters, on two cores, with nothing to download."""
    return (
        Stage("pretraining", lambda root: _pretraining(), ("Table 1", "1", "3", "7", "8", "9", "10", "11", "14-16")),
        Stage("distill", _distill, ("13", "20")),
        Stage("guided", lambda root: _guided(root, "guided", "pretraining", None)),
        Stage("guided-16", lambda root: _guided(root, "guided-16", "guided", 16), ("19",)),
        Stage("guided-8", lambda root: _guided(root, "guided-8", "guided-16", 8), ("19",)),
        Stage("guided-4", lambda root: _guided(root, "guided-4", "guided-8", 4)),
        Stage("sr", _superres, ("4", "5", "12", "17", "18", "21-23"), _photographs),
        Stage("sr-distill", _superres_distill),
        Stage("interpolation", lambda root: _interpolation(), ("24",), continues="pretraining"),
        Stage("dreambooth", _dreambooth, ("6",)),
        Stage("seeds", _seeds, ("3", "9"), continues="pretraining"),
    )


PAPERS: Mapping[str, Callable[[], tuple[Stage, ...]]] = {"paper-micro": paper_micro}


# --- pretraining and its sweep ---


def _pretraining() -> StudySpec:
    images = 61_440
    return StudySpec(
        name="pretraining",
        data=SCENES,
        members=_members(MICRO_WIDTHS),
        train=TrainSettings(
            images=images,
            batch=128,
            optimizer=MUON,
            lr_schedule=LrSchedule(kind="cosine", warmup_images=1280),
            caption_dropout=0.1,
            ema=Ema(halflife_images=5000),
            checkpoints=(7_680, 15_360, 24_576, 43_008),  # the third is at 40%, as 200K of the paper's 500K steps
        ),
        grid=Grid(steps=(1, 2, 4, 8, 20), guidance=(1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)),
        extra_grids=(
            Grid(steps=(50, 100), guidance=(1.5,)),
            Grid(samplers=("ddpm",), steps=(4, 8, 20), guidance=BEST),
            Grid(samplers=("dpmpp_2m",), steps=(2, 4, 8, 20), guidance=BEST),
            Grid(steps=(2,), guidance=(1.5,), best_of=(2, 4)),
        ),
        curve=Grid(steps=(20,), guidance=(2.0,)),
        evaluation=Evaluation(images=512, references=4096, metrics=("fd", "kid", "clip", "accuracy", "density")),
    )


def _seeds(root: Path) -> StudySpec:
    """Two more training seeds, at what was found best with the first, and at the curve's plan as a control."""
    first = _pretraining()
    found = tuple(grid.model_copy(update={"seeds": SEEDS[1:]}) for grid in _best_plans(root / "pretraining"))
    of_first = [grid.model_copy(update={"seeds": SEEDS[:1]}) for grid in first.grids]
    return first.model_copy(
        update={"name": "seeds", "seeds": SEEDS, "grid": of_first[0], "extra_grids": (*of_first[1:], *found)}
    )


def _best_plans(store: Path) -> tuple[Grid, ...]:
    """Plans on the frontier of a store, for every member; of one that is not there yet, one stands for them."""
    from isocost.analysis.cells import best_guidance
    from isocost.analysis.frontier import frontier
    from isocost.study.store import Store
    from isocost.study.tables import metric_label, table

    opened = Store(store)
    if not opened.study_file.is_file():
        return (Grid(steps=(1, 2, 4), guidance=(1.5,)),)
    points = frontier(best_guidance(table(opened), metric_label(opened, "fd"))).points
    plans = dict.fromkeys(zip(points["sampler"], points["steps"], points["guidance_scale"], strict=True))
    return tuple(Grid(samplers=(sampler,), steps=(int(steps),), guidance=(scale,)) for sampler, steps, scale in plans)


# --- distillation ---


def _distill(root: Path) -> StudySpec:
    """CoDi's students, which take a guidance scale as their teachers do."""
    images = 61_440
    return _distilled(
        root,
        "distill",
        "pretraining",
        MICRO_WIDTHS,
        _distilling(images, objective="consistency", consistency=Consistency(setting="codi", distance="l2")),
        Grid(samplers=("lcm",), spacing="lcm", steps=(1, 2, 4, 8), guidance=DISTILLED_SCALES),
        before=(1, 2, 4, 8, 20),
    )


def _guided(root: Path, name: str, teachers: str, steps: int | None) -> StudySpec:
    """A stage of guided distillation, then of rounds that halve the steps."""
    images = 20_480
    counts = (steps,) if steps else (4, 8, 16)
    return _distilled(
        root,
        name,
        teachers,
        GUIDED_WIDTHS,
        _distilling(images, objective="guided", guided=Guided(guidance=LEARNED_SCALES, steps=steps)),
        Grid(steps=counts, guidance=DISTILLED_SCALES),
        before=(steps, 2 * steps) if steps else counts,
    )


def _distilling(images: int, **objective: Any) -> TrainSettings:
    embeds = "guided" in objective
    return TrainSettings(
        images=images,
        batch=128,
        optimizer=MUON,
        lr_schedule=LrSchedule(kind="cosine", warmup_images=1280),
        caption_dropout=0.0 if embeds else 0.1,
        ema=Ema(halflife_images=images // 12),
        checkpoints=(images // 4, images // 2),
        **objective,
    )


def _distilled(
    root: Path,
    name: str,
    teachers: str,
    widths: tuple[int, ...],
    train: TrainSettings,
    grid: Grid,
    before: tuple[int, ...],
) -> StudySpec:
    """`before`: steps of what the members were, at the same guidance."""
    return StudySpec(
        name=name,
        data=SCENES,
        members=_members(widths, GUIDANCE_DIM if train.scales else None),
        start_from=str(root / teachers),
        train=train,
        grid=grid,
        extra_grids=(Grid(steps=before, guidance=grid.guidance, undistilled=True),),
        curve=grid.model_copy(update={"steps": (4 if 4 in grid.steps else grid.steps[0],), "guidance": (1.5,)}),
        evaluation=Evaluation(images=512, references=4096),
    )


# --- downstream ---


def _photographs(root: Path) -> None:
    """Larger scenes with two groups and textures, of which members see crops."""
    for name, (seed, images) in PHOTOGRAPHS.items():
        folder = root / "photographs" / name
        if not (folder / f"scenes-{seed}-00000.tar").is_file():
            write_scenes(folder, images, 64, seed)


def _superres(root: Path) -> StudySpec:
    images = 30_720
    return StudySpec(
        name="sr",
        data=_crops(root),
        members=tuple(model.conditioned for model in _members(MICRO_WIDTHS)),
        start_from=str(root / "pretraining"),
        train=TrainSettings(
            objective="superres",
            images=images,
            batch=128,
            optimizer=MUON,
            lr_schedule=LrSchedule(kind="constant", warmup_images=1280),  # a kept checkpoint is a budget
            caption_dropout=0.0,
            ema=Ema(halflife_images=2500),
            checkpoints=(images // 4, images // 2),
        ),
        grid=Grid(steps=(1, 2, 4, 8, 20, 50, 100, 250)),
        curve=Grid(steps=(50,)),
        evaluation=_of_crops(root),
    )


def _superres_distill(root: Path) -> StudySpec:
    """Students of upscalers."""
    how = Consistency(setting="codi", distance="l2")
    train = _distilling(30_720, objective="consistency", consistency=how).model_copy(update={"caption_dropout": 0.0})
    return StudySpec(
        name="sr-distill",
        data=_crops(root),
        members=tuple(model.conditioned for model in _members((8, 16, 32))),
        start_from=str(root / "sr"),
        train=train,
        grid=Grid(samplers=("lcm",), spacing="lcm", steps=(1, 2, 4, 8)),
        extra_grids=(Grid(steps=(1, 2, 4, 8, 20), undistilled=True),),
        evaluation=_of_crops(root),
    )


def _crops(root: Path) -> DataSource:
    seed, _ = PHOTOGRAPHS["train"]
    return DataSource(
        kind="images",
        resolution=32,
        images=16_384,
        train=(str(root / "photographs" / "train" / f"scenes-{seed}-00000.tar"),),
        degradation="realesrgan",
    )


def _of_crops(root: Path) -> Evaluation:
    seed, _ = PHOTOGRAPHS["test"]
    return Evaluation(
        prompts=f"sr-32:{root / 'photographs' / 'test' / f'scenes-{seed}-00000.tar'}",
        images=384,
        metrics=("fd", "kid", "similarity", "psnr", "ssim"),
    )


def _interpolation() -> StudySpec:
    pairs = 40
    return _pretraining().model_copy(
        update={
            "name": "interpolation",
            "grid": Grid(steps=(20,), guidance=(2.0, 7.5)),
            "extra_grids": (),
            "curve": None,
            "evaluation": Evaluation(
                images=pairs * len(ALPHAS),
                references=4096,
                metrics=("kid", "coherence", "attribute-coherence", "path-length", "detour", "largest-jump"),
                select_by="kid",
                keep_images=True,
                between=Between(alphas=ALPHAS),
            ),
        }
    )


def _dreambooth(root: Path) -> StudySpec:
    from isocost.data.subjects import SUBJECTS as DRAWN

    subjects = tuple(Subject(name=name, noun=drawn.noun) for name, drawn in list(DRAWN.items())[:4])
    return StudySpec(
        name="dreambooth",
        data=SCENES,
        members=_members(MICRO_WIDTHS),
        start_from=str(root / "pretraining"),
        train=tuning(),
        grid=Grid(steps=(20,), guidance=(2.0,)),
        evaluation=Evaluation(metrics=DREAMBOOTH_METRICS, select_by="similarity"),
        dreambooth=Subjects(subjects=subjects, prompt=None, prompts=PROMPTS, class_images=36),
        engine=EngineSpec(batch=24),
    )


# --- members ---


def _members(widths: tuple[int, ...], guidance_dim: int | None = None) -> tuple[ModelSpec, ...]:
    """Of the micro ladder, and between its rungs."""
    rung = ladder("micro").members[0]
    return tuple(rung.model_copy(update={"width": width, "guidance_dim": guidance_dim}) for width in widths)
