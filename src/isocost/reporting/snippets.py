"""Commands and code that draw as a cell of a study does, ready to be copied."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isocost.analysis.cells import PLAIN
from isocost.analysis.words import full_label, number
from isocost.specs import StudySpec

# diffusers' schedulers that do what our samplers do, and what of their settings is not their default.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"lower_order_final": False}),
    "dpmpp_2m_sde": (
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "lower_order_final": False},
    ),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}  # fmt: skip
DIGITS = 16  # of a sample key: enough to tell cells apart


@dataclass(frozen=True)
class Snippets:
    """`isocost`: shell commands that draw `prompt` as the cell does. `diffusers`: Python that does, of an export, or ""
    where that library has no such thing: then `reason` says why.
    """

    isocost: str
    diffusers: str
    reason: str = ""


def snippets(cell: Mapping[str, Any], study: StudySpec, store: str, prompt: str) -> Snippets:
    """What draws `prompt` as `cell` does, a row of `analysis.cells.Cells`; `store` as a user types it.

    The same noise as the study's only by isocost, whose noise is keyed by the prompt; diffusers takes a generator.
    """
    place = shlex.quote(store)
    if study.data.degradation is not None:
        return Snippets(_upscale(cell, place), "", "StableDiffusionPipeline gives a network no image to upscale.")
    draw = f"isocost sample {place} --cell {cell['sample_key'][:DIGITS]} --prompt {shlex.quote(prompt)}"
    reason = _why_not(cell, study)
    return Snippets(draw, "" if reason else _diffusers(cell, study, place, prompt), reason)


def _upscale(cell: Mapping[str, Any], place: str) -> str:
    how = f"--member {shlex.quote(cell['member'])} --sampler {cell['sampler']} --steps {cell['steps']}"
    return f"isocost upscale photo.jpg --checkpoint {place} {how}" + (f" --eta {cell['eta']:g}" if cell["eta"] else "")


def _why_not(cell: Mapping[str, Any], study: StudySpec) -> str:
    """Why diffusers' pipeline cannot draw a cell; "" where it can."""
    if cell["stages"]:
        return "StableDiffusionPipeline runs one checkpoint, not two on one trajectory."
    if cell["best_of"] > 1:
        return "StableDiffusionPipeline draws one image a prompt and chooses none."
    if any(cell[name] != PLAIN[name] for name in ("guidance_mode", "guidance_interval")):
        return "StableDiffusionPipeline has plain classifier-free guidance only."
    if cell["sampler"] not in SCHEDULERS:
        return "diffusers' scheduler of that name visits other timesteps."
    if cell["member"] in study.given:
        return ""
    family = next((member.family for member in study.members if member.name == cell["member"]), "")
    if family.startswith("dit"):
        return f"StableDiffusionPipeline runs UNets only, not the family '{family}'."
    if study.train is not None and "flow" in (study.train.prediction, study.train.schedule.kind):
        return "diffusers' flow schedulers tell a network its noise level, where ours tell it the timestep."
    if cell["checkpoint"] != cell["member"]:
        return "`isocost export` writes a member's last checkpoint, and this cell is of another."
    return ""


def _diffusers(cell: Mapping[str, Any], study: StudySpec, place: str, prompt: str) -> str:
    given = study.given.get(cell["member"])
    folder = str(given) if given else f"{cell['member']}-diffusers"
    export = f"isocost export {place} {shlex.quote(folder)} --member {shlex.quote(cell['member'])}"
    name, settings = SCHEDULERS[cell["sampler"]]
    settings = {"timestep_spacing": cell["spacing"], **settings}
    if cell["sampler"] == "ddpm":
        settings["variance_type"] = f"fixed_{cell['variance']}"
    how = {"num_inference_steps": int(cell["steps"]), "guidance_scale": float(cell["guidance_scale"])}
    if cell["sampler"] == "ddim" and cell["eta"]:
        how["eta"] = float(cell["eta"])
    return "\n".join([
        *([] if given else [f"# Once, in a shell: {export}"]),
        f"# {full_label(cell)}",
        "import torch",
        f"from diffusers import {name}, StableDiffusionPipeline",
        "",
        f"pipeline = StableDiffusionPipeline.from_pretrained({folder!r})",
        f"pipeline.scheduler = {name}.from_config(",
        "    pipeline.scheduler.config, " + ", ".join(f"{key}={value!r}" for key, value in settings.items()),
        ")",
        "image = pipeline(",
        f"    {prompt!r},",
        *(f"    {key}={value!r}," for key, value in how.items()),
        "    generator=torch.Generator().manual_seed(0),",
        ").images[0]",
        'image.save("sample.png")',
    ])  # fmt: skip


def plan_command(store: str, budget: float, unit: str) -> str:
    """The command that gives the planner's answer."""
    return f"isocost plan {shlex.quote(store)} --budget {number(budget).replace(',', '')} --unit {unit}"
