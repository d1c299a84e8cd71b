"""How cells, metrics, costs and values are written, so that the terminal, the page and the figures say the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

SAMPLERS = {
    "ddim": "DDIM",
    "ddim_back": "DDIM and back",
    "ddpm": "DDPM",
    "dpmpp_2m": "DPM-Solver++ 2M",
    "dpmpp_2m_sde": "DPM-Solver++ 2M SDE",
    "euler": "Euler",
    "heun": "Heun",
    "lcm": "LCM",
    "unipc": "UniPC",
}
METRICS = {"fd": "FD", "fd-infinity": "FD∞", "kid": "KID", "clip": "CLIP score", "cmmd": "CMMD", "is": "IS"}
ACTS_AT_1 = ("cfg++", "embedded")
GUIDING = {
    "none": "no guidance",
    "cfg": "CFG",
    "cfg++": "CFG++",
    "autoguidance": "autoguidance",
    "embedded": "embedded",
}  # and each with " interval"
UNITS = {"paper": "units of paper cost", "gflops": "GFLOPs", "seconds": "seconds"}
COST_AXES = {
    "paper": "paper cost per image",
    "gflops": "GFLOPs per image",
    "seconds": "seconds per image",
}


def number(value: float, digits: int = 3) -> str:
    """`value` to `digits` significant digits, thousands grouped, without a trailing `.0`: 0.0123, 4.5, 1,230."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def compact(value: float) -> str:
    """A tick label: 0.05, 20, 5k, 1M, 2G."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return number(value / size) + suffix
    return number(value)


def with_error(value: float, half_width: float | None) -> str:
    """`12.34 ± 0.83`: the error to two significant digits, the value to the same place."""
    if half_width is None or not math.isfinite(half_width):
        return f"{number(value, 4)} (no error estimate)"
    if half_width <= 0:
        return f"{number(value, 4)} ± 0"
    decimals = max(0, 1 - math.floor(math.log10(half_width)))
    return f"{value:,.{decimals}f} ± {half_width:,.{decimals}f}"


def cost_name(cost: float, unit: str) -> str:
    """`3 units of paper cost`, `1 second`, `12.5 GFLOPs`."""
    text, name = number(cost), UNITS[unit]
    return f"{text} {name.replace('units', 'unit').replace('seconds', 'second') if text == '1' else name}"


def metric_name(metric: str) -> str:
    """`fd[clip]` -> `FD[clip]`; an unknown metric keeps its own name.

    A network that a study trained for itself lies in a folder called `extractor`, which says nothing: `KID[own]`.
    """
    head, bracket, rest = metric.partition("[")
    return METRICS.get(head, head) + bracket + ("own" + rest.removeprefix("extractor") if _is_own(rest) else rest)


def _is_own(extractor: str) -> bool:
    return extractor == "extractor]" or extractor.startswith("extractor-")  # so many dimensions of it


def sampler_name(cell: Mapping[str, Any]) -> str:
    """`DDIM`, `DDIM η 0.5`, `DDPM large variance`, `DDIM, guided by c8, best of 4`: the sampler with all that sets a
    cell apart from its namesakes, but checkpoint, steps and guidance scale."""
    name = str(SAMPLERS.get(cell["sampler"], cell["sampler"]))
    eta = cell.get("eta") or 0.0
    if eta > 0:
        name += f" η {number(eta)}"
    if cell["sampler"] == "ddpm" and cell.get("variance") == "large":
        name += " large variance"
    return ", ".join(filter(None, (name, _way_of_guiding(cell), _choice(cell))))


def _way_of_guiding(cell: Mapping[str, Any]) -> str:
    """`CFG++`, `guided by c8`, `guided at timesteps 200-800`; "" for plain guidance."""
    ways = {"cfg": "guided", "embedded": "", "cfg++": "CFG++", "autoguidance": f"guided by {cell.get('guide')}"}
    mode, interval = cell.get("guidance_mode", "cfg"), cell.get("guidance_interval")
    way = ways[mode]
    return f"{way} at timesteps {interval}" if interval else way if mode != "cfg" else ""


def _choice(cell: Mapping[str, Any]) -> str:
    return f"best of {cell['best_of']}" if cell.get("best_of", 1) > 1 else ""


def is_guided(cell: Mapping[str, Any]) -> bool:
    """Whether guidance does anything: at scale 1 only CFG++'s does, and one that is embedded costs the same there."""
    return cell["guidance_scale"] != 1 or cell.get("guidance_mode") in ACTS_AT_1


def guiding_name(way: str) -> str:
    """`CFG, in an interval`: a way of guiding as `analysis.cells.guiding` names it."""
    mode, limited, _ = way.partition(" interval")
    return GUIDING.get(mode, mode) + (", in an interval" if limited else "")


def guidance_name(scale: float) -> str:
    return "no guidance" if scale == 1 else f"guidance {number(scale)}"


def checkpoint_name(cell: Mapping[str, Any]) -> str:
    """`c16`, or `c8 for 50% of the steps, then c24`."""
    name = str(cell.get("checkpoint", cell["member"]))
    return cell["stages"] + name.removeprefix(cell["member"]) if cell.get("stages") else name


def of_any_seed(checkpoint: str) -> str:
    """`c16` of `c16 seed 0`, the name of a checkpoint that is kept apart from those of several training seeds."""
    return checkpoint.partition(" seed ")[0]


def steps_name(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def short_label(cell: Mapping[str, Any]) -> str:
    """`c32 × 2 steps (DDIM)`, or `(DDIM, no guidance)`: names a cell among the best-of-guidance ones."""
    unguided = "" if is_guided(cell) else ", no guidance"
    return f"{checkpoint_name(cell)} × {steps_name(cell['steps'])} ({sampler_name(cell)}{unguided})"


def full_label(cell: Mapping[str, Any]) -> str:
    """`c16 with DDIM, 8 steps, guidance 2`."""
    guidance = f"guidance {number(cell['guidance_scale'])}" if is_guided(cell) else "no guidance"
    return f"{checkpoint_name(cell)} with {sampler_name(cell)}, {steps_name(cell['steps'])}, {guidance}"


def listed(items: Iterable[str], most: int = 3) -> str:
    """`a`, `a and b`, `a, b and c`, or `a, b, c and 4 more`."""
    names = list(items)
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
