"""The paper's own study, in full: for a cluster, and to be costed before (`isocost reproduce paper --dry-run`)."""

from __future__ import annotations

from pathlib import Path

from isocost.models.ladder import ladder
from isocost.recipes.dreambooth import tuning
from isocost.recipes.scenes import PAPER_GUIDANCE
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
    NoiseSchedule,
    Optimizer,
    StudySpec,
    Subject,
    Subjects,
    TrainSettings,
)
from isocost.study.stages import Stage

BATCH, STEPS = 2048, 500_000
STEPS_TO_50 = (4, 6, 8, 10, 20, 50)
SUPERRES_STEPS = (4, 6, 8, 10, 20, 50, 100, 250)
GUIDED_WIDTHS = (96, 160)  # 83M and 223M
GUIDANCE_DIM = 256
GUIDED_SCALES = (1.0, 14.0)  # arXiv 2210.03142: w from 0 to 14 is scales to 15; to 8 are sampled here
TUNED_STEPS = 50_000  # of super-resolution and distillation, for which the paper says none
TEXT = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # 1024 wide, which Table 1's parameters tell
CLIP = "openai/clip-vit-large-patch14"
ENGINE = EngineSpec(dtype="bf16", device="cuda")
DREAMBOOTH = {  # the 30 subjects of arXiv 2208.12242, and what each is called
    "backpack": "backpack",
    "backpack_dog": "backpack",
    "bear_plushie": "stuffed animal",
    "berry_bowl": "bowl",
    "can": "can",
    "candle": "candle",
    "cat": "cat",
    "cat2": "cat",
    "clock": "clock",
    "colorful_sneaker": "sneaker",
    "dog": "dog",
    "dog2": "dog",
    "dog3": "dog",
    "dog5": "dog",
    "dog6": "dog",
    "dog7": "dog",
    "dog8": "dog",
    "duck_toy": "toy",
    "fancy_boot": "boot",
    "grey_sloth_plushie": "stuffed animal",
    "monster_toy": "toy",
    "pink_sunglasses": "glasses",
    "poop_emoji": "toy",
    "rc_car": "toy",
    "red_cartoon": "cartoon",
    "robot_toy": "toy",
    "shiny_sneaker": "sneaker",
    "teapot": "teapot",
    "vase": "vase",
    "wolf_plushie": "stuffed animal",
}
SETTINGS = (
    "a {} in the jungle",
    "a {} in the snow",
    "a {} on the beach",
    "a {} on a cobblestone street",
    "a {} with a city in the background",
    "a {} with a mountain in the background",
    "a red {}",
    "a purple {}",
)


def paper(data: str = "pairs", coco: str = "coco2014") -> StudySpec:
    """The paper's study (arXiv 2404.01367): 11 members from 39M to 5B, 500K steps of batch 2048. Needs a cluster.

    `data`: a folder with train/ and val/ of captioned images, for the paper's own are not public. `coco`: COCO-2014's
    images and captions. Neither is looked at before the study runs. docs/training.md says which settings are ours where
    the paper has none.
    """
    return StudySpec(
        name="paper",
        data=DataSource(
            kind="images",
            resolution=512,
            train=(f"{data}/train",),
            val=(f"{data}/val",),
            autoencoder="stabilityai/sd-vae-ft-mse",
            text_encoder=TEXT,
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
            extractor=CLIP,
            fd_dims=None,
            select_by="fd[fid-tf]",
        ),
        engine=ENGINE,
    )


def paper_stages(data: str = "pairs", coco: str = "coco2014", div2k: str = "div2k") -> tuple[Stage, ...]:
    """Every experiment at the paper's own size, 39M to 5B, for a cluster: to be costed with --dry-run before.

    `data`: also has photographs/ for super-resolution and dreambooth/, a folder a subject. `div2k`: DIV2K's validation
    images.
    """
    base = paper(data, coco)
    return (
        Stage(
            "pretraining",
            lambda root: base,
            ("Table 1", "Fig. 1", "Fig. 3", "Fig. 7", "Fig. 8", "Fig. 9", "Fig. 10", "Fig. 11", "Fig. 14-16"),
        ),
        Stage("distill", lambda root: _distill(base, root), ("Fig. 13", "Fig. 20"), continues="pretraining"),
        Stage("guided", lambda root: _guided(base, root, "guided", "pretraining", None), continues="pretraining"),
        Stage("guided-16", lambda root: _guided(base, root, "guided-16", "guided", 16), ("Fig. 19",)),
        Stage("guided-8", lambda root: _guided(base, root, "guided-8", "guided-16", 8), ("Fig. 19",)),
        Stage(
            "sr",
            lambda root: _superres(base, root, data, div2k),
            ("Fig. 4", "Fig. 5", "Fig. 12", "Fig. 17", "Fig. 18", "Fig. 21-23"),
        ),
        Stage("dreambooth", lambda root: _dreambooth(base, root, data), ("Fig. 6",)),
        Stage("interpolation", lambda root: _interpolation(base), ("Fig. 24",), continues="pretraining"),
    )


def _distill(base: StudySpec, root: Path) -> StudySpec:
    """CoDi at 4 steps over the same rates, beside what the members were; at 1, 2 and 8 too, to see which are best."""
    train = _tuned(base, objective="consistency", consistency=Consistency(setting="codi", distance="l2"))
    students = Grid(samplers=("lcm",), spacing="lcm", steps=(1, 2, 4, 8), guidance=PAPER_GUIDANCE)
    before = Grid(steps=STEPS_TO_50, guidance=PAPER_GUIDANCE, undistilled=True)
    update = {"name": "distill", "start_from": str(root / "pretraining"), "train": train, "curve": None}
    return base.model_copy(update=update | {"grid": students, "extra_grids": (before,)})


def _guided(base: StudySpec, root: Path, name: str, teachers: str, steps: int | None) -> StudySpec:
    how = Guided(guidance=GUIDED_SCALES, steps=steps)
    train = _tuned(base, objective="guided", guided=how, caption_dropout=0.0)
    counts = (steps,) if steps else (8, 16, 32)
    update = {
        "name": name,
        "members": _members(base, GUIDED_WIDTHS, GUIDANCE_DIM),
        "start_from": str(root / teachers),
        "train": train,
        "grid": Grid(steps=counts, guidance=PAPER_GUIDANCE),
        "extra_grids": (Grid(steps=counts, guidance=PAPER_GUIDANCE, undistilled=True),),
        "curve": None,
    }
    return base.model_copy(update=update)


def _superres(base: StudySpec, root: Path, data: str, div2k: str) -> StudySpec:
    """Without guidance; checkpoints of fine-tuning are budgets, for Fig. 4."""
    train = _tuned(base, objective="superres", caption_dropout=0.0)
    source = base.data.model_copy(
        update={"train": (f"{data}/photographs",), "val": (), "degradation": "realesrgan", "images": BATCH * 1000}
    )
    update = {
        "name": "sr",
        "data": source,
        "members": tuple(model.conditioned for model in base.members),
        "start_from": str(root / "pretraining"),
        "train": train.model_copy(update={"checkpoints": tuple(train.images * share // 4 for share in (1, 2, 3))}),
        "grid": Grid(steps=SUPERRES_STEPS),
        "extra_grids": (),
        "curve": Grid(steps=(50,)),
        "evaluation": Evaluation(
            prompts=f"div2k-sr-3k:{div2k}",
            images=3000,
            metrics=("fd[fid-tf]", "lpips", "is", "psnr", "ssim"),
            extractor=CLIP,
            fd_dims=None,
            select_by="fd[fid-tf]",
        ),
    }
    return base.model_copy(update=update)


def _dreambooth(base: StudySpec, root: Path, data: str) -> StudySpec:
    subjects = [
        Subject(name=name, noun=noun, pictures=(f"{data}/dreambooth/{name}",)) for name, noun in DREAMBOOTH.items()
    ]
    update = {
        "name": "dreambooth",
        "start_from": str(root / "pretraining"),
        "train": tuning().model_copy(
            update={"schedule": base.train.schedule, "prediction": base.train.prediction, "precision": "bf16"}
            if base.train
            else {}
        ),
        "grid": Grid(steps=(50,), guidance=(7.5,)),
        "extra_grids": (),
        "curve": None,
        "evaluation": base.evaluation.model_copy(
            update={"metrics": ("similarity", "clip", "pres", "div"), "select_by": "similarity"}
        ),
        "dreambooth": Subjects(subjects=tuple(subjects), prompts=SETTINGS, class_images=200),
    }
    return base.model_copy(update=update)


def _interpolation(base: StudySpec) -> StudySpec:
    between = Between()
    update = {
        "name": "interpolation",
        "grid": Grid(steps=(20,), guidance=(7.5,)),
        "extra_grids": (),
        "curve": None,
        "evaluation": base.evaluation.model_copy(
            update={
                "images": 1000 * len(between.alphas),
                "metrics": ("fd[fid-tf]", "coherence", "path-length", "detour", "largest-jump"),
                "keep_images": True,
                "between": between,
            }
        ),
    }
    return base.model_copy(update=update)


def _tuned(base: StudySpec, **objective: object) -> TrainSettings:
    """The members' own settings, for fewer steps."""
    assert base.train is not None
    return base.train.model_copy(update={"images": BATCH * TUNED_STEPS, "checkpoints": (), **objective})


def _members(base: StudySpec, widths: tuple[int, ...], guidance_dim: int) -> tuple[ModelSpec, ...]:
    return tuple(
        model.model_copy(update={"guidance_dim": guidance_dim}) for model in base.members if model.width in widths
    )
