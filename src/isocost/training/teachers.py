"""The networks of a distillation: the student's own, its frozen teacher's, and one with the student's average weights.

The average is the run's own, `TrainSpec.ema`, which is also what is sampled from: so it follows from images seen, lies
in every checkpoint, and a run that goes on has the same target to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from isocost.errors import DataError, SpecError
from isocost.models.build import build
from isocost.specs import DISTILLED, TrainSpec
from isocost.training.ema import Average
from isocost.training.objectives import Networks
from isocost.training.parallel import Layout
from isocost.training.state import Checkpoint


def check(spec: TrainSpec, layout: Layout) -> None:
    """Raise `SpecError` for a teacher without an objective that has one, or the other way round; and for guidance that
    is distilled into a model that does not embed it, or the other way round."""
    distilled = spec.objective in DISTILLED
    if distilled != (spec.teacher is not None):
        advice = "name the checkpoint to learn from" if distilled else "leave it out"
        raise SpecError(f"teacher: objective '{spec.objective}' has {'one' if distilled else 'none'}; {advice}")
    check_embeds(spec.model.guidance_dim, spec)
    if distilled and layout.sharding != "none":
        raise SpecError(f"objective '{spec.objective}' keeps whole weights on every rank: use sharding 'none'")


def check_embeds(guidance_dim: int | None, spec: Any) -> None:
    """Raise `SpecError` unless a member embeds guidance where the `TrainSettings` distil it, and nowhere else."""
    if spec.scales is not None and guidance_dim is None:
        raise SpecError(
            f"objective '{spec.objective}' embeds guidance {list(spec.scales)}: give its members a guidance_dim"
        )
    if spec.scales is None and guidance_dim is not None:
        raise SpecError(
            f"guidance_dim {guidance_dim}: objective '{spec.objective}' here distils no guidance: leave it out"
        )


def check_teacher(teacher: Checkpoint, spec: TrainSpec) -> None:
    """Raise `DataError` naming in what the teacher does not fit its student."""
    known, said = teacher.spec, f"{teacher.folder}: this teacher"
    different = [
        ("latents of another shape", known.data.latent_shape, spec.data.latent_shape),
        ("latents of another autoencoder", known.data.autoencoder, spec.data.autoencoder),
        ("text of another encoder", known.data.text_encoder, spec.data.text_encoder),
        ("another prediction", known.prediction, spec.prediction),
        ("another schedule", known.schedule, spec.schedule),
        ("other inputs", known.model.takes_image, spec.model.takes_image),
    ]
    for what, own, wanted in different:
        if own != wanted:
            raise DataError(f"{said} has {what} than its student: {_shown(own)}, and {_shown(wanted)} is asked for")
    embeds = known.model.guidance_dim is not None
    if spec.scales is not None and not embeds and known.caption_dropout == 0:
        raise DataError(
            f"{said} cannot be guided: it was trained without caption dropout. Distil without guidance (consistency."
            "guidance null), or train a teacher with caption_dropout 0.1"
        )
    if spec.scales is None and embeds:
        raise DataError(f"{said} embeds guidance, so its student has to: give it a range of scales, and a guidance_dim")
    if spec.guided and spec.guided.steps is not None and known.objective != "guided":
        raise DataError(f"{said} is no student of guided distillation: rounds begin from stage 1 (guided.steps null)")
    taught = known.guided.steps if known.guided else None
    if spec.guided and taught is not None and spec.guided.steps != taught // 2:
        raise DataError(f"{said} takes {taught} steps: the next round has {taught // 2}, not {spec.guided.steps}")


def networks_of(
    spec: TrainSpec,
    network: Any,
    average: Average,
    teacher: Checkpoint,
    forward: Callable[[nn.Module], Any],
    device: str | torch.device,
) -> Networks:
    """`network`: the student's; `forward`: the pass of a module, as the student's is made."""
    assert spec.teacher is not None
    # Laid out as the student is, so that the two give the same bits before the first step.
    taught_by: Any = teacher.network(spec.teacher.weights, device).to(memory_format=torch.channels_last)  # pyright: ignore
    if not all(parameter.isfinite().all() for parameter in taught_by.parameters()):
        raise DataError(f"{teacher.folder}: this teacher has weights that are not finite: take an earlier checkpoint")
    embeds = teacher.spec.model.guidance_dim is not None
    return Networks(network, forward(taught_by), forward(_following(spec, average, device)), embeds)


def _following(spec: TrainSpec, average: Average, device: str | torch.device) -> nn.Module:
    """A module whose weights are the averages themselves: they follow without a copy."""
    with torch.random.fork_rng(devices=[]):
        module = build(spec.model, "cpu").to(device).eval().requires_grad_(False)  # pyright: ignore
    averages = average.state_dict()
    for name, parameter in module.named_parameters():
        parameter.data = averages[name]
    return module


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return value[:24] if isinstance(value, str) else str(value)
