"""The application that commands register with, and the flags that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from isocost import __version__
from isocost.errors import SpecError

HELP = """Which diffusion model, how many steps, which sampler and how much guidance give the best images for a budget?

Train a family of latent diffusion models, sample a grid of (model x sampler x steps x guidance), score it with
intervals, and get the answer."""

START = """Start with:  isocost quickstart        (minutes on a laptop, nothing to download)
Then:        isocost plan runs/quickstart --budget 3
Your own:    isocost recipe show quickstart > my.yaml;  isocost sweep my.yaml"""

app = App(name="isocost", help=HELP, help_epilogue=START, version=__version__, help_format="plaintext")

Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON for programs; nothing else on stdout.")]
Workers = Annotated[int | None, Parameter(help="Processes, one thread each. Default: one per core.")]
Set = Annotated[
    list[str] | None,
    Parameter(name="--set", negative=(), help="Override a field: --set train.images=12800 (repeatable)."),
]
Data = Annotated[str | None, Parameter(help="Folder of data, for recipes that read files (emoji).")]
StorePath = Annotated[Path | None, Parameter(help="Folder of results. Default: runs/NAME.")]


def share_of(shard: str) -> tuple[int, int]:
    """`--shard 0/4` as (0, 4). Raises `SpecError` for anything else."""
    i, slash, n = shard.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise SpecError(f"--shard {shard}: expected i/n with 0 <= i < n, as in 0/4.")
    return int(i), int(n)


def command(*examples: str, **options: Any):
    """Register a command with examples under its help."""
    return app.command(help_epilogue="Examples:\n" + "\n".join(f"  {line}" for line in examples), **options)
