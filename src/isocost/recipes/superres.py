"""4x super-resolution of photographs as a downstream task of the family (arXiv 2404.01367, section 3.2)."""

from __future__ import annotations

from pathlib import Path

from isocost.errors import SpecError
from isocost.recipes.scenes import micro_members
from isocost.specs import DataSource, Ema, Evaluation, Grid, LrSchedule, Optimizer, StudySpec, TrainSettings

WIDTHS = (8, 16, 24)
RESOLUTION = 64
AUTOENCODER, BASE = "runs/photo-vae", "runs/sr-base"
PAPER_STEPS = (4, 6, 8, 10, 20, 50, 100, 250)
CURVE_STEPS = (4, 20, 50)


def sr_base(data: str) -> StudySpec:
    """Members for `sr` to start from: text-to-image on captioned emoji (--data), in the photographs' latents.

    The autoencoder has to be there first: `isocost recipe photo-vae runs/photo-vae --train ...`.
    """
    images = 32_768
    return StudySpec(
        name="sr-base",
        data=DataSource(
            kind="images",
            resolution=RESOLUTION,
            train=_shards(data, "emoji-*-train.tar"),
            val=_shards(data, "emoji-*-val.tar"),
            autoencoder=AUTOENCODER,
        ),
        members=micro_members(*WIDTHS),
        train=TrainSettings(
            images=images,
            batch=64,
            optimizer=Optimizer(kind="muon", lr=2e-3),
            lr_schedule=LrSchedule(kind="cosine", warmup_images=1280),
            caption_dropout=0.1,
            ema=Ema(halflife_images=6400),
        ),
        grid=Grid(steps=(20,), guidance=(1.0, 2.0, 4.0)),
        evaluation=Evaluation(
            prompts="val",
            images=230,  # each held-out caption once
            references=230,
            metrics=("kid[efficientnet-lite0]",),
            select_by="kid[efficientnet-lite0]",
        ),
    )


def sr(data: str) -> StudySpec:
    """Three members tuned for 4x super-resolution of photographs (--data), from those of `sr-base`: 40 minutes.

    Each kept checkpoint is a fine-tuning budget, at a constant rate, so that none is another's unfinished run. DDIM
    without guidance on crops of the Kodak photographs: the last at all of the paper's steps, each at three of them, and
    the last at 1 and 2 steps too, which the paper leaves out and where small members may be at their best.
    `--data` holds sr-train-*.tar and sr-test-kodak.tar. The paper's own protocol:
    --set evaluation.prompts=div2k-sr-3k:FOLDER --set data.resolution=512.
    """
    images = 32_768
    (kodak,) = _shards(data, "sr-test-kodak.tar")
    return StudySpec(
        name="sr",
        data=DataSource(
            kind="images",
            resolution=RESOLUTION,
            images=images // 2,
            train=_shards(data, "sr-train-*.tar"),
            autoencoder=AUTOENCODER,
            degradation="realesrgan",
        ),
        members=tuple(model.conditioned for model in micro_members(*WIDTHS)),
        start_from=BASE,
        train=TrainSettings(
            objective="superres",
            images=images,
            batch=64,
            optimizer=Optimizer(kind="muon", lr=2e-3),
            lr_schedule=LrSchedule(kind="constant", warmup_images=1280),
            caption_dropout=0.0,
            ema=Ema(halflife_images=2000),
            checkpoints=(images // 4, images // 2),
        ),
        grid=Grid(samplers=("ddim",), steps=PAPER_STEPS),
        extra_grids=(Grid(samplers=("ddim",), steps=(1, 2)),),
        curve=Grid(samplers=("ddim",), steps=CURVE_STEPS),
        evaluation=Evaluation(
            prompts=f"sr-{RESOLUTION}:{kodak}",
            images=192,
            metrics=("kid[efficientnet-lite0]", "fd[efficientnet-lite0-16]", "lite0-distance", "psnr", "ssim"),
            select_by="kid[efficientnet-lite0]",
        ),
    )


def _shards(data: str, pattern: str) -> tuple[str, ...]:
    found = tuple(str(path) for path in sorted(Path(data).glob(pattern)))
    if not found:
        raise SpecError(f"data: no {pattern} in {data}.")
    return found
