"""DreamBooth as a downstream task of the family (arXiv 2404.01367, section 3.3)."""

from __future__ import annotations

from pathlib import Path

from isocost.data.subjects import SUBJECTS
from isocost.errors import SpecError
from isocost.recipes.emoji import emoji
from isocost.recipes.scenes import micro_members, samplers
from isocost.specs import (
    Ema,
    EngineSpec,
    Evaluation,
    Grid,
    LrSchedule,
    Optimizer,
    Prior,
    StudySpec,
    Subject,
    Subjects,
    TrainSettings,
)

WIDTHS = (8, 16, 32)
BASE = "runs/samplers"
METRICS = ("similarity", "clip", "accuracy", "pres", "div", "kid")
PROMPTS = (
    "a {} in the centre on a white background",
    "a {} in the centre on a black background",
    "a {} on the left on an orange background",
    "a {} on the right on a green background",
    "a {} at the top on a purple background",
    "a {} at the bottom on a blue background",
)
PHOTOGRAPHED = {  # of the DreamBooth set, by the names that emoji have for such things
    "duck_toy": "duck",
    "teapot": "teapot",
    "clock": "clock",
    "cat": "cat",
    "dog": "dog",
    "candle": "candle",
}
SETTINGS = (
    "a {} in the jungle",
    "a {} in the snow",
    "a {} on the beach",
    "a {} with a mountain in the background",
    "a red {}",
    "a purple {}",
)


def dreambooth() -> StudySpec:
    """Three members of `samplers` taught six objects that no scene shows, with and without their own prior: a quarter
    of an hour on two cores.

    Sampled with DDIM, 20 steps and guidance 2, which suits members of this size; the paper's Fig. 6: --set
    grid.steps=[50] --set grid.guidance=[7.5]. Members are in runs/samplers, unless --set start_from says otherwise.
    """
    data = samplers().data
    subjects = tuple(Subject(name=name, noun=drawn.noun) for name, drawn in SUBJECTS.items())
    return StudySpec(
        name="dreambooth",
        data=data,
        members=micro_members(*WIDTHS),
        start_from=BASE,
        train=tuning(),
        grid=Grid(steps=(20,), guidance=(2.0,)),
        evaluation=Evaluation(metrics=METRICS, select_by="similarity"),
        dreambooth=Subjects(subjects=subjects, prompt=None, prompts=PROMPTS, class_images=36),
        engine=EngineSpec(batch=24),
    )


def dreambooth_photos(data: str, base: str = "runs/emoji") -> StudySpec:
    """The members of `emoji` taught six things of the DreamBooth set (--data FOLDER, with dreambooth-256.tar, too).

    Their encoders are those that the store `base` has trained. What a caption asks for has no classifier here.
    """
    study, tar = emoji(data), Path(data) / "dreambooth-256.tar"
    if not tar.is_file():
        raise SpecError(f"data: no dreambooth-256.tar in {data}. docs/dreambooth.md says what it is.")
    subjects = tuple(Subject(name=name, noun=noun, pictures=(str(tar),)) for name, noun in PHOTOGRAPHED.items())
    metrics = tuple(name for name in METRICS if name != "accuracy")
    return StudySpec(
        name="dreambooth-photos",
        data=study.data,
        members=study.members,
        start_from=base,
        train=tuning(),
        grid=Grid(steps=(20,), guidance=(2.0,)),
        evaluation=study.evaluation.model_copy(update={"metrics": metrics, "select_by": "similarity"}),
        dreambooth=Subjects(subjects=subjects, prompts=SETTINGS, class_images=36),
        engine=EngineSpec(batch=24),
    )


def tuning() -> TrainSettings:
    return TrainSettings(
        objective="dreambooth",
        prior=Prior(weight=1.0),
        images=2400,
        batch=16,
        optimizer=Optimizer(lr=1e-3),
        lr_schedule=LrSchedule(kind="constant"),
        caption_dropout=0.1,
        ema=Ema(halflife_images=160),
    )
