"""Axes that the paper leaves out: training seeds, images per parameter, best-of-n."""

from __future__ import annotations

from isocost.recipes.scenes import quickstart
from isocost.specs import Grid, StudySpec


def axes() -> StudySpec:
    """What do training seeds, images per parameter and best-of-n change? Three members, two seeds each: half an hour.

    The members of `quickstart`, each trained twice, with six kept checkpoints, by which neighbours overlap in images
    per parameter. Beside one image of every caption the best of 2 and of 4, at fewer steps; the CLIP that keeps them
    also gives the features of `fd`, so judge those cells by `--metric accuracy`. Other ways to guide: CFG in an
    interval, and c16 and c24 guided by c8.
    """
    study = quickstart()
    assert study.train is not None
    images, batch = study.train.images, study.train.batch
    kept = tuple(images * part // 32 // batch * batch for part in (1, 2, 4, 8, 16))
    return study.model_copy(
        update={
            "name": "axes",
            "seeds": (0, 1),
            "train": study.train.model_copy(update={"checkpoints": kept}),
            "grid": Grid(samplers=("ddim",), steps=(1, 2, 4, 8), guidance=(1.0, 2.0, 4.0)),
            "extra_grids": (
                Grid(samplers=("ddim",), steps=(1, 2, 4), guidance=(1.0, 2.0), best_of=(2, 4)),
                Grid(samplers=("ddim",), steps=(4, 8), guidance=(2.0, 4.0), interval=(100, 800)),
                Grid(samplers=("ddim",), steps=(4, 8), guidance=(1.5, 2.0), mode="autoguidance", guide="c8"),
            ),
            "curve": Grid(samplers=("ddim",), steps=(8,), guidance=(2.0,)),
        }
    )
