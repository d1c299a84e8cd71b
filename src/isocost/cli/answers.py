"""Commands that answer from results alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from isocost.cli.output import print_json, say
from isocost.cli.parser import Json, command
from isocost.errors import SpecError


@command(
    "isocost claims runs/quickstart",
    "isocost claims results/samplers-cpu --only C3 --only C13",
    "isocost claims results/samplers-cpu results/sr-cpu results/interpolation-cpu",
    "isocost claims --printed      (the paper's own numbers)",
    "isocost claims runs/mine --metric kid --json",
)
def claims(
    *stores: Path,
    printed: Annotated[bool, Parameter(negative=())] = False,
    metric: str | None = None,
    unit: Literal["paper", "gflops", "seconds"] = "paper",
    only: Annotated[list[str] | None, Parameter(negative=())] = None,
    json: Json = False,
) -> None:
    """Judge every claim of the paper by one store or several: supported, refuted, inconclusive, or not testable there.

    Each with its effect, what it rests on, and what would decide it (docs/claims.md).

    Parameters
    ----------
    stores
        Folders of results, or what `isocost store publish` wrote of them, or folders of such. Of several, each claim is
        judged by the one that tests it best.
    printed
        Judge by the numbers that the paper prints, and say where they disagree.
    metric
        What claims on FID are judged by. Default: what the study chooses by, where that is a distance.
    unit
        Of sampling cost, in claims on it.
    only
        A claim's id; repeatable. Errors are then corrected over these alone.
    """
    from isocost import api

    if bool(stores) == printed:
        raise SpecError("claims: give a folder of results, or --printed.")
    found = api.claims(stores or None, metric, unit, only)
    disagreements = [contradiction.sentence for contradiction in api.contradictions()] if printed else []
    if json:
        print_json(asdict(found) | ({"contradictions": disagreements} if printed else {}))
        return
    from isocost.console import print_claims

    print_claims(found, disagreements)


@command("isocost laws runs/quickstart", "isocost laws results/samplers-cpu --json")
def laws(store: Path, *, metric: str | None = None, json: Json = False) -> None:
    """Fit how quality follows training, sampling and size, and where larger members overtake smaller ones.

    What was held out of each fit, and how far off it was, is said with it (docs/laws.md).

    Parameters
    ----------
    store
        Folder of results, or what `isocost store publish` wrote of one.
    metric
        Default: what the study chooses by, where that is a distance.
    """
    from isocost import api

    found = api.laws(store, metric)
    if json:
        print_json(found.as_dict())
        return
    for line in found.sentences:
        say(f"- {line}")


@command("isocost serve runs/quickstart", "isocost serve results/samplers-cpu --port 8100")
def serve(
    store: Path,
    *,
    port: int = 8000,
    metric: str | None = None,
    device: str | None = None,
    dtype: Literal["fp32", "bf16"] | None = None,
    batch: int | None = None,
) -> None:
    """Show the planner in a browser: `isocost plan` for every budget, unit and filter, with pictures.

    It reads only, and answers this machine only. `isocost plan STORE --page FILE` writes the same as one file.

    Parameters
    ----------
    store
        Folder of results, or what `isocost store publish` wrote of one.
    port
        Where it listens, on 127.0.0.1; 0: any that is free.
    metric
        What is judged by at first. Default: the study's own.
    device
        Seconds as measured there, as for `isocost plan`; so the next two.
    dtype
        Seconds as measured in this precision.
    batch
        Seconds as measured at this batch.
    """
    from isocost import api

    choices = (("device", device), ("dtype", dtype), ("batch", batch))
    measured = {name: value for name, value in choices if value is not None}
    api.serve(store, port, metric, measured, lambda address: say(f"Planner: {address} (stop with Ctrl+C)"))
