"""Recipes: functions that return a StudySpec. `isocost recipe show NAME > my.yaml` writes one out to be edited."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from isocost.errors import SpecError, did_you_mean, lookup
from isocost.recipes.distillation import distill, distill_4, distill_8, distill_16, distill_codi, distill_guided
from isocost.recipes.dreambooth import dreambooth, dreambooth_photos
from isocost.recipes.emoji import emoji
from isocost.recipes.families import dit, flow
from isocost.recipes.interpolation import interpolation
from isocost.recipes.paper import paper
from isocost.recipes.scenes import quickstart, samplers, scenes
from isocost.recipes.superres import sr, sr_base
from isocost.specs import StudySpec

RECIPES: dict[str, Callable[..., StudySpec]] = {
    "quickstart": quickstart,
    "samplers": samplers,
    "scenes": scenes,
    "dit": dit,
    "flow": flow,
    "emoji": emoji,
    "interpolation": interpolation,
    "dreambooth": dreambooth,
    "dreambooth-photos": dreambooth_photos,
    "sr-base": sr_base,
    "sr": sr,
    "distill": distill,
    "distill-codi": distill_codi,
    "distill-guided": distill_guided,
    "distill-16": distill_16,
    "distill-8": distill_8,
    "distill-4": distill_4,
    "paper": paper,
}


def recipe(name: str, **arguments: Any) -> StudySpec:
    """The study of a recipe, with the arguments that it takes (`emoji(data=...)`).

    Raises:
        SpecError: no such recipe or argument, or an argument that it needs is missing.
    """
    make = lookup(RECIPES, name, "recipe")
    parameters = inspect.signature(make).parameters
    for argument in arguments:
        if argument not in parameters:
            raise SpecError(f"recipe '{name}' takes no '{argument}'.{did_you_mean(argument, parameters)}")
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise SpecError(f"recipe '{name}' needs --{parameter.name}: {SUMMARIES[name]}")
    return make(**arguments)


SUMMARIES = {name: (make.__doc__ or "").strip().splitlines()[0] for name, make in RECIPES.items()}
