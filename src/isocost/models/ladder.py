"""Ladders: families of members that differ in width, and in what follows from it, and the paper's Table 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from isocost.errors import lookup
from isocost.models import cost
from isocost.specs import ModelSpec

TABLE1_SOURCE = "Mei et al., Bigger is not Always Better, arXiv 2404.01367, Table 1"


@dataclass(frozen=True)
class Table1Row:
    """A column of Table 1, as printed. FID and CLIP: DDIM, 50 steps, CFG 7.5, 30k captions of COCO-2014 val."""

    width: int
    params: str
    gflops: float
    norm_cost: float
    fid: float
    clip: float
    note: str = ""


ERRATUM_39M = (
    "the paper's 25.3 GFLOPS cannot be right: it is about the multiply-adds of this model (26.5 G); counted as in the "
    "other columns it is 53.0, and so the norm. cost of 0.07 says too"
)

TABLE1 = (
    Table1Row(64, "39M", 25.3, 0.07, 25.30, 0.305, ERRATUM_39M),
    Table1Row(96, "83M", 102.7, 0.13, 24.30, 0.308),
    Table1Row(128, "145M", 161.5, 0.20, 24.18, 0.310),
    Table1Row(160, "223M", 233.5, 0.30, 23.76, 0.310),
    Table1Row(192, "318M", 318.5, 0.40, 22.83, 0.311),
    Table1Row(224, "430M", 416.6, 0.53, 22.35, 0.312),
    Table1Row(256, "558M", 527.8, 0.67, 22.15, 0.312),
    Table1Row(288, "704M", 652.0, 0.83, 21.82, 0.312),
    Table1Row(320, "866M", 789.3, 1.00, 21.55, 0.312),
    Table1Row(512, "2B", 1887.5, 2.39, 20.98, 0.312),
    Table1Row(768, "5B", 4082.6, 5.17, 20.14, 0.314),
)


@dataclass(frozen=True)
class Ladder:
    """Members by rising width, and the input at which their cost is counted.

    `latent_size`: side of the latent. `context_length`: text tokens. `reference`: the member of norm. cost 1.
    """

    name: str
    members: tuple[ModelSpec, ...]
    latent_size: int
    context_length: int
    reference: ModelSpec
    table1: tuple[Table1Row, ...] | None = None


def _ladder(
    name: str,
    family: str,
    widths: Sequence[int],
    reference: int,
    *,
    context_dim: int,
    heads: Callable[[int], int],
    latent_size: int,
    context_length: int,
    table1: tuple[Table1Row, ...] | None = None,
) -> Ladder:
    members = {c: ModelSpec(family=family, width=c, context_dim=context_dim, num_heads=heads(c)) for c in widths}
    return Ladder(name, tuple(members.values()), latent_size, context_length, members[reference], table1)


def _equal(heads: int) -> Callable[[int], int]:
    """As many heads at every width: they widen with it, as in the paper."""
    return lambda width: heads


def _of_width(channels: int) -> Callable[[int], int]:
    """Heads of one width, more of them with more channels, as in DiT."""
    return lambda width: width // channels


_SD_WIDTHS = tuple(row.width for row in TABLE1)
_DIT_WIDTHS = (384, 512, 640, 768, 896, 1024, 1152, 1536, 2048)

LADDERS: dict[str, Ladder] = {
    ladder.name: ladder
    for ladder in (
        # The paper's. A context of 1024 gives all eleven parameter counts of Table 1; SD 1.5's 768 does not.
        _ladder(
            "sd",
            "sd",
            _SD_WIDTHS,
            320,
            context_dim=1024,
            heads=_equal(8),
            latent_size=64,
            context_length=77,
            table1=TABLE1,
        ),
        # Stable Diffusion 1.5's own text encoder (CLIP ViT-L/14): its UNet, 859.5M parameters, is the member c320.
        _ladder("sd-768", "sd", _SD_WIDTHS, 320, context_dim=768, heads=_equal(8), latent_size=64, context_length=77),
        _ladder(
            "micro",
            "micro",
            (8, 16, 24, 32, 48, 64),
            32,
            context_dim=64,
            heads=_equal(4),
            latent_size=8,
            context_length=32,
        ),
        # Heads 64 wide, at the latent and text of `sd`: FLOPs of the two can be held against each other.
        _ladder(
            "dit", "dit", _DIT_WIDTHS, 1152, context_dim=1024, heads=_of_width(64), latent_size=64, context_length=77
        ),
        _ladder(
            "dit-micro",
            "dit-micro",
            (32, 48, 64, 96, 128, 192),
            128,
            context_dim=64,
            heads=_of_width(16),
            latent_size=8,
            context_length=32,
        ),
    )
}


def ladder(name: str) -> Ladder:
    """The ladder of that name. Raises `SpecError` with the nearest name."""
    return lookup(LADDERS, name, "ladder")


def rows(name: str) -> list[dict[str, Any]]:
    """One dict a member: name, width, params, params_m ("38.80M"), gflops (one evaluation of one image), norm_cost.

    A ladder with a published table adds paper_params, paper_gflops, paper_norm_cost, as printed, and `note`, where the
    printed figure is known to be wrong.
    """
    chosen = ladder(name)
    size = (chosen.latent_size, chosen.context_length)
    result = []
    for place, spec in enumerate(chosen.members):
        params = cost.parameters(spec)
        row: dict[str, Any] = {
            "name": spec.name,
            "width": spec.width,
            "params": params,
            "params_m": format_parameters(params),
            "gflops": cost.forward_flops(spec, *size) / 1e9,
            "norm_cost": cost.norm_cost(spec, chosen.reference, *size),
        }
        if chosen.table1:
            printed = chosen.table1[place]
            row |= {
                "paper_params": printed.params,
                "paper_gflops": printed.gflops,
                "paper_norm_cost": printed.norm_cost,
                "note": printed.note,
            }
        result.append(row)
    return result


def format_parameters(count: int) -> str:
    """38800580 -> "38.80M"; 2191746564 -> "2.19B"."""
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
