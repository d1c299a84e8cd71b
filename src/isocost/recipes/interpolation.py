"""Images between two prompts, over the family (arXiv 2404.01367, Fig. 24)."""

from __future__ import annotations

from isocost.recipes.scenes import samplers
from isocost.specs import Between, Evaluation, Grid, StudySpec

ALPHAS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


def interpolation() -> StudySpec:
    """Are images between two captions more coherent with size, and is the way smoother? 40 pairs of scenes: minutes.

    The members of `samplers`, sampled as in the paper (DDIM, 20 steps, guidance 7.5) and with less guidance, at its
    five alphas and six between them. In a store that has those members nothing is trained: --store runs/samplers. On
    the sphere: --set evaluation.between.path=spherical.
    """
    pairs = 40
    return samplers().model_copy(
        update={
            "name": "interpolation",
            "grid": Grid(steps=(20,), guidance=(2.0, 7.5)),
            "extra_grids": (),
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
