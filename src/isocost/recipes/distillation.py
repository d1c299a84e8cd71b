"""Distilling a family whose members are trained: consistency, and guided with halved steps (arXiv 2404.01367, 5.5)."""

from __future__ import annotations

from typing import Any

from isocost.recipes.scenes import micro_members
from isocost.specs import (
    Consistency,
    DataSource,
    Ema,
    Evaluation,
    Grid,
    Guided,
    LrSchedule,
    ModelSpec,
    Optimizer,
    SceneOptions,
    StudySpec,
    TrainSettings,
)

TEACHERS = "runs/quickstart"
WIDTHS = (8, 16, 24)
IMAGES = 20_480
SCALES = (1.0, 4.0)
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0)
GUIDANCE_DIM = 64


def distill() -> StudySpec:
    """Members of the quickstart distilled for 1 to 8 steps (CoDi, as the paper): half an hour on two cores.

    Their teachers are sampled on the same prompts and noise. Of another study: --set start_from=STORE.
    """
    longer = {
        "images": 2 * IMAGES,
        "checkpoints": (IMAGES // 2, IMAGES),
        "optimizer": Optimizer(kind="muon", lr=3e-3),
        "lr_schedule": LrSchedule(kind="cosine", warmup_images=1280),
        "ema": Ema(halflife_images=IMAGES // 6),
    }
    return _consistency("distill", Consistency(setting="codi", distance="l2"), caption_dropout=0.1, **longer)


def distill_lcm() -> StudySpec:
    """The same with guidance embedded (LCM): a step takes one evaluation. Its images are those of its teacher's many
    steps, so where few steps are a teacher's best, as on scenes, CoDi's students are better."""
    return _consistency("distill-lcm", Consistency(guidance=SCALES), caption_dropout=0.0)


def _consistency(name: str, how: Consistency, caption_dropout: float, **settings: Any) -> StudySpec:
    objective = {"objective": "consistency", "consistency": how, "caption_dropout": caption_dropout}
    train = TrainSettings(**(_SETTINGS | settings | objective))
    sampling = {"samplers": ("lcm",), "spacing": "lcm"}
    return _study(name, TEACHERS, WIDTHS, train, sampling, steps=(1, 2, 4, 8), before=(1, 2, 4, 8, 20))


def distill_guided() -> StudySpec:
    """Stage 1 of guided distillation of two members of the quickstart: guidance in one evaluation a step."""
    return _guided("distill-guided", TEACHERS, steps=None)


def distill_16() -> StudySpec:
    """A round of progressive distillation, to 16 steps, of the members of distill-guided."""
    return _guided("distill-16", "runs/distill-guided", steps=16)


def distill_8() -> StudySpec:
    """The next round, to 8 steps, of the members of distill-16."""
    return _guided("distill-8", "runs/distill-16", steps=8)


def distill_4() -> StudySpec:
    """The next round, to 4 steps, of the members of distill-8."""
    return _guided("distill-4", "runs/distill-8", steps=4)


def _guided(name: str, teachers: str, steps: int | None) -> StudySpec:
    how = Guided(guidance=SCALES, steps=steps)
    train = TrainSettings(**_SETTINGS, objective="guided", guided=how, caption_dropout=0.0)
    counts = (steps,) if steps else (2, 4, 8, 16)
    before = (steps, 2 * steps) if steps else counts
    return _study(name, teachers, WIDTHS[:2], train, {"samplers": ("ddim",)}, steps=counts, before=before)


_SETTINGS: dict[str, Any] = {
    "images": IMAGES,
    "batch": 128,
    "optimizer": Optimizer(lr=2e-3),  # at 5e-4 students of so few images do not learn to tell scales apart
    "lr_schedule": LrSchedule(kind="constant", warmup_images=1280),  # so that no kept checkpoint is an unfinished run
    "ema": Ema(halflife_images=1728),  # a decay of 0.95 a step, as of the target network of LCM
    "checkpoints": (IMAGES // 4, IMAGES // 2),
}


def _study(
    name: str,
    teachers: str,
    widths: tuple[int, ...],
    train: TrainSettings,
    sampling: dict[str, Any],
    steps: tuple[int, ...],
    before: tuple[int, ...],
) -> StudySpec:
    """The quickstart's data and scores. `steps`: of students; `before`: of what they were."""
    return StudySpec(
        name=name,
        data=DataSource(
            kind="scenes", resolution=32, images=32_000, scenes=SceneOptions(groups=1, count=2, textures=False)
        ),
        members=_members(widths, GUIDANCE_DIM if train.scales else None),
        start_from=teachers,
        train=train,
        grid=Grid(steps=steps, guidance=GUIDANCE, **sampling),
        extra_grids=(Grid(steps=before, guidance=GUIDANCE, undistilled=True),),
        curve=Grid(steps=(4 if 4 in steps else steps[0],), guidance=(1.5,), **sampling),
        evaluation=Evaluation(images=512, references=4096),
    )


def _members(widths: tuple[int, ...], guidance_dim: int | None) -> tuple[ModelSpec, ...]:
    return tuple(model.model_copy(update={"guidance_dim": guidance_dim}) for model in micro_members(*widths))
