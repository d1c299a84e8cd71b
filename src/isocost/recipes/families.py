"""Small studies of other networks and objectives than the paper's, on procedural scenes: minutes on two cores."""

from __future__ import annotations

from isocost.models.ladder import ladder
from isocost.recipes.scenes import micro_members
from isocost.specs import (
    DataSource,
    Ema,
    Evaluation,
    Grid,
    LrSchedule,
    ModelSpec,
    NoiseSchedule,
    Optimizer,
    SceneOptions,
    StudySpec,
    TrainSettings,
)


def dit() -> StudySpec:
    """Three diffusion transformers on one-group scenes at 32 px: minutes on two cores."""
    members = tuple(model for model in ladder("dit-micro").members if model.width in (64, 96, 128))
    return _study("dit", members, TrainSettings(**_SETTINGS), ("ddim",))


def flow() -> StudySpec:
    """The quickstart's members trained by flow matching, sampled by Euler, Heun and DPM-Solver++: minutes on two cores.

    Straight paths, their velocity, and timesteps drawn as Stable Diffusion 3 draws them (arXiv 2403.03206).
    """
    train = TrainSettings(**_SETTINGS, schedule=NoiseSchedule(kind="flow"), prediction="flow", timesteps="logit_normal")
    return _study("flow", micro_members(8, 16, 24), train, ("euler", "heun", "dpmpp_2m"))


_SETTINGS = {
    "images": 40_960,
    "batch": 128,
    "optimizer": Optimizer(kind="muon", lr=3e-3),
    "lr_schedule": LrSchedule(kind="cosine", warmup_images=1280),
    "caption_dropout": 0.1,
    "ema": Ema(halflife_images=5_000),
}


def _study(name: str, members: tuple[ModelSpec, ...], train: TrainSettings, samplers: tuple[str, ...]) -> StudySpec:
    """The quickstart's data and scores."""
    return StudySpec(
        name=name,
        data=DataSource(
            kind="scenes", resolution=32, images=32_000, scenes=SceneOptions(groups=1, count=2, textures=False)
        ),
        members=members,
        train=train,
        grid=Grid(samplers=samplers, steps=(2, 5, 10), guidance=(1.0, 2.0, 4.0)),
        evaluation=Evaluation(images=512, references=4096),
    )
