"""Studies on procedural scenes with the shipped encoders: nothing to download."""

from __future__ import annotations

from isocost.models.ladder import ladder
from isocost.specs import (
    DataSource,
    Ema,
    Evaluation,
    Grid,
    LrSchedule,
    ModelSpec,
    Optimizer,
    SceneOptions,
    Stitch,
    StudySpec,
    TrainSettings,
)

PAPER_GUIDANCE = (1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)


def micro_members(*widths: int) -> tuple[ModelSpec, ...]:
    """Members of the micro ladder by width."""
    by_width = {model.width: model for model in ladder("micro").members}
    return tuple(by_width[width] for width in widths)


def quickstart() -> StudySpec:
    """Three members on one-group scenes at 32 px: trained, swept and answered in minutes on two cores.

    Sized for eight minutes at most: 1.3 passes over the images, few steps and a subset of the paper's guidance rates.
    """
    return StudySpec(
        name="quickstart",
        data=DataSource(
            kind="scenes",
            resolution=32,
            images=32_000,
            scenes=SceneOptions(groups=1, count=2, textures=False),
        ),
        members=micro_members(8, 16, 24),
        train=TrainSettings(
            images=40_960,
            batch=128,
            optimizer=Optimizer(kind="muon", lr=3e-3),
            lr_schedule=LrSchedule(kind="cosine", warmup_images=1280),
            caption_dropout=0.1,
            ema=Ema(halflife_images=5_000),
            checkpoints=(12_800, 25_600),
        ),
        grid=Grid(samplers=("ddim",), steps=(1, 2, 3, 5, 10), guidance=(1.0, 2.0, 4.0)),
        extra_grids=(Grid(samplers=("dpmpp_2m",), steps=(5, 10), guidance=(2.0,)),),
        curve=Grid(samplers=("ddim",), steps=(10,), guidance=(2.0,)),
        evaluation=Evaluation(images=512, references=4096),
    )


def samplers() -> StudySpec:
    """Does the order of sizes hold under each sampler? Four members, three samplers, the paper's guidance: an hour.

    The paper's Fig. 11: DPM-Solver++ 2M beside DDIM to 20 steps at all eight guidance rates, DDPM beside DDIM to 50 at
    the four low ones, which are the best here; and c16 and c32 sharing trajectories, either first. 512 images a cell:
    enough for adaptive search to be replayed over it.
    """
    images = 81_920
    return StudySpec(
        name="samplers",
        data=DataSource(
            kind="scenes",
            resolution=32,
            images=64_000,
            scenes=SceneOptions(groups=1, count=2, textures=False),
        ),
        members=micro_members(8, 16, 24, 32),
        train=TrainSettings(
            images=images,
            batch=128,
            optimizer=Optimizer(kind="muon", lr=3e-3),
            lr_schedule=LrSchedule(kind="cosine", warmup_images=1280),
            caption_dropout=0.1,
            ema=Ema(halflife_images=5_000),
        ),
        grid=Grid(samplers=("ddim", "dpmpp_2m"), steps=(1, 2, 4, 8, 14, 20), guidance=PAPER_GUIDANCE),
        extra_grids=(
            Grid(samplers=("ddim",), steps=(50,), guidance=PAPER_GUIDANCE[:4]),
            Grid(samplers=("ddpm",), steps=(4, 8, 20, 50), guidance=PAPER_GUIDANCE[:4]),
            Grid(steps=(2, 4, 8), guidance=PAPER_GUIDANCE[:2], stitch=Stitch(first="c16", then="c32")),
            Grid(steps=(2, 4, 8), guidance=PAPER_GUIDANCE[:2], stitch=Stitch(first="c32", then="c16")),
        ),
        evaluation=Evaluation(images=512, references=10_240),
    )


def scenes() -> StudySpec:
    """Five members on two-group scenes at 32 px, every sampler, the paper's guidance rates and 1: some hours."""
    images = 256_000
    return StudySpec(
        name="scenes",
        data=DataSource(kind="scenes", resolution=32, images=images),
        members=micro_members(8, 16, 24, 32, 48),
        train=TrainSettings(
            images=images,
            batch=128,
            optimizer=Optimizer(lr=1e-3),
            lr_schedule=LrSchedule(kind="cosine", warmup_images=2560),
            caption_dropout=0.1,
            ema=Ema(halflife_images=12_800),
            checkpoints=(32_000, 64_000, 128_000),
        ),
        grid=Grid(
            samplers=("ddim", "ddpm", "dpmpp_2m"),
            steps=(1, 2, 3, 4, 6, 8, 10, 20, 50),
            guidance=(1.0, *PAPER_GUIDANCE),
        ),
        curve=Grid(samplers=("ddim",), steps=(20,), guidance=(2.0,)),
        evaluation=Evaluation(images=1024, references=10_240),
    )
