"""The paper's own study, in full: for a cluster, and to be costed before (`isocost train paper --dry-run`)."""

from __future__ import annotations

from isocost.models.ladder import ladder
from isocost.recipes.scenes import PAPER_GUIDANCE
from isocost.specs import (
    DataSource,
    Ema,
    EngineSpec,
    Evaluation,
    Grid,
    LrSchedule,
    NoiseSchedule,
    Optimizer,
    StudySpec,
    TrainSettings,
)

BATCH, STEPS = 2048, 500_000
STEPS_TO_50 = (4, 6, 8, 10, 20, 50)


def paper(data: str = "pairs", coco: str = "coco2014") -> StudySpec:
    """The paper's study (arXiv 2404.01367): 11 members from 39M to 5B, 500K steps of batch 2048. Needs a cluster.

    `data`: a folder with train/ and val/ of captioned images, for the paper's own are not public. `coco`: COCO-2014's
    images and captions. Neither is looked at before the study runs. docs/training.md says which settings are ours where
    the paper has none.
    """
    text = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # 1024 wide, which Table 1's parameters tell
    return StudySpec(
        name="paper",
        data=DataSource(
            kind="images",
            resolution=512,
            train=(f"{data}/train",),
            val=(f"{data}/val",),
            autoencoder="stabilityai/sd-vae-ft-mse",
            text_encoder=text,
        ),
        members=ladder("sd").members,
        train=TrainSettings(
            schedule=NoiseSchedule(final_alpha="first"),
            prediction="epsilon",
            images=BATCH * STEPS,
            batch=BATCH,
            optimizer=Optimizer(lr=1e-4, beta2=0.999),
            lr_schedule=LrSchedule(kind="constant", warmup_images=BATCH * 10_000),
            precision="bf16",
            caption_dropout=0.1,
            ema=Ema(halflife_images=BATCH * 6931),  # a decay of 0.9999 a step
            checkpoints=tuple(BATCH * step for step in range(50_000, STEPS, 50_000)),
        ),
        grid=Grid(samplers=("ddim",), steps=STEPS_TO_50, guidance=PAPER_GUIDANCE),
        extra_grids=(
            Grid(samplers=("ddim",), steps=(50,), guidance=(7.5,)),
            Grid(samplers=("ddim",), steps=(100, 250, 500), guidance=PAPER_GUIDANCE),
            Grid(samplers=("ddpm",), steps=STEPS_TO_50, guidance=PAPER_GUIDANCE),
            Grid(samplers=("dpmpp_2m",), steps=STEPS_TO_50[:-1], guidance=PAPER_GUIDANCE),
        ),
        curve=Grid(samplers=("ddim",), steps=(50,), guidance=(7.5,)),
        evaluation=Evaluation(
            prompts=f"coco2014-30k:{coco}",
            images=30_000,
            reference_files=(f"{coco}/fid-tf.safetensors",),
            metrics=("fd[fid-tf]", "clip"),
            extractor="openai/clip-vit-large-patch14",
            fd_dims=None,
            select_by="fd[fid-tf]",
        ),
        engine=EngineSpec(dtype="bf16", device="cuda"),
    )
