"""A study on real pictures: captioned emoji, with encoders of its own."""

from __future__ import annotations

from pathlib import Path

from isocost.errors import SpecError
from isocost.recipes.scenes import micro_members
from isocost.specs import (
    DataSource,
    Ema,
    EncoderTraining,
    Evaluation,
    Grid,
    LrSchedule,
    Optimizer,
    StudySpec,
    TrainSettings,
)


def emoji(data: str, resolution: int = 32) -> StudySpec:
    """Captioned emoji (--data FOLDER with emoji-*-train.tar and emoji-*-val.tar), encoders trained on them first.

    KID decides, as 230 held-out references are too few for a Frechet distance. `docs/data.md` says how the shards are
    made.
    """
    folder = Path(data)
    shards = {
        split: tuple(str(path) for path in sorted(folder.glob(f"emoji-*-{split}.tar"))) for split in ("train", "val")
    }
    for split, found in shards.items():
        if not found:
            raise SpecError(f"data: no emoji-*-{split}.tar in {folder}. docs/data.md says how to make them.")
    images = 64_000
    return StudySpec(
        name="emoji",
        data=DataSource(
            kind="images",
            resolution=resolution,
            train=shards["train"],
            val=shards["val"],
            autoencoder="own",
            text_encoder="own",
            encoder_training=EncoderTraining(
                autoencoder_images=64_000, clip_images=96_000, channels=24, vocabulary=2048, context_length=24
            ),
        ),
        members=micro_members(8, 16, 32),
        train=TrainSettings(
            images=images,
            batch=64,
            optimizer=Optimizer(kind="muon", lr=2e-3),
            lr_schedule=LrSchedule(kind="cosine", warmup_images=1280),
            caption_dropout=0.1,
            ema=Ema(halflife_images=6400),
            checkpoints=(16_000, 32_000),
        ),
        grid=Grid(samplers=("ddim",), steps=(1, 2, 4, 8, 20), guidance=(1.0, 2.0, 4.0, 8.0)),
        extra_grids=(Grid(samplers=("dpmpp_2m",), steps=(4, 8), guidance=(2.0, 4.0)),),
        curve=Grid(samplers=("ddim",), steps=(20,), guidance=(2.0,)),
        evaluation=Evaluation(
            prompts="val",
            images=230,  # each held-out caption once: replicates of a prompt are not independent
            references=230,
            metrics=("kid", "fd", "clip"),
            extractor="own",
            select_by="kid",
        ),
    )
