"""Recipes: functions that return a StudySpec. `isocost recipe show NAME > my.yaml` writes one out to be edited."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from isocost.errors import SpecError, did_you_mean, lookup
from isocost.recipes.axes import axes
from isocost.recipes.distillation import distill, distill_4, distill_8, distill_16, distill_guided, distill_lcm
from isocost.recipes.dreambooth import dreambooth, dreambooth_photos
from isocost.recipes.emoji import emoji
from isocost.recipes.families import dit, flow
from isocost.recipes.interpolation import interpolation
from isocost.recipes.paper import paper, paper_stages
from isocost.recipes.papers import paper_gpu, paper_micro
from isocost.recipes.scenes import quickstart, samplers, scenes
from isocost.recipes.superres import sr, sr_base
from isocost.specs import StudySpec
from isocost.study.stages import Stage

RECIPES: dict[str, Callable[..., StudySpec]] = {
    "quickstart": quickstart,
    "samplers": samplers,
    "scenes": scenes,
    "axes": axes,
    "dit": dit,
    "flow": flow,
    "emoji": emoji,
    "interpolation": interpolation,
    "dreambooth": dreambooth,
    "dreambooth-photos": dreambooth_photos,
    "sr-base": sr_base,
    "sr": sr,
    "distill": distill,
    "distill-lcm": distill_lcm,
    "distill-guided": distill_guided,
    "distill-16": distill_16,
    "distill-8": distill_8,
    "distill-4": distill_4,
    "paper": paper,
}


PAPERS: dict[str, Callable[..., tuple[Stage, ...]]] = {
    "paper-micro": paper_micro,
    "paper-gpu": paper_gpu,
    "paper": paper_stages,
}
"""Every experiment of arXiv 2404.01367, at three scales."""


def recipe(name: str, **arguments: Any) -> StudySpec:
    """The study of a recipe, with the arguments that it takes (`emoji(data=...)`).

    Raises:
        SpecError: no such recipe or argument, or an argument that it needs is missing.
    """
    return _made(lookup(RECIPES, name, "recipe"), f"recipe '{name}'", arguments)


def stages(name: str, **arguments: Any) -> tuple[Stage, ...]:
    """The stages of a paper, with the arguments that it takes (`stages("paper", data=...)`). Raises as `recipe`."""
    return _made(lookup(PAPERS, name, "paper"), f"paper '{name}'", arguments)


def _made(make: Callable[..., Any], what: str, arguments: dict[str, Any]) -> Any:
    parameters = inspect.signature(make).parameters
    for argument in arguments:
        if argument not in parameters:
            raise SpecError(f"{what} takes no '{argument}'.{did_you_mean(argument, parameters) if parameters else ''}")
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise SpecError(f"{what} needs --{parameter.name}: {_summary(make)}")
    return make(**arguments)


def _summary(make: Callable[..., Any]) -> str:
    return (make.__doc__ or "").strip().splitlines()[0]


SUMMARIES = {name: _summary(make) for name, make in RECIPES.items()}
