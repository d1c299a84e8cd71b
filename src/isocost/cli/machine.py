"""Commands about this machine: which weights are here, what it is, and what checkpoints take on it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

from isocost.cli.output import print_json, records, say
from isocost.cli.parser import Json, command
from isocost.errors import SpecError


@command("isocost check", "isocost check --json")
def check(*, json: Json = False) -> None:
    """List every network that isocost can use: whether its weights are here, where it looked, and what to do."""
    from isocost import api

    frame = api.check()
    if json:
        print_json(records(frame))
        return
    from isocost.console import print_table

    print_table(frame.drop(columns="what to do"), title="networks")
    missing = frame[~frame["found"]].groupby("what to do", sort=False)["name"].unique()
    if not missing.empty:
        say("\nWhat would provide those that are not here (or a folder of such files, named by $ISOCOST_WEIGHTS):")
    for command_line, names in missing.items():
        say(f"  {command_line}    # {', '.join(names)}")


@command("isocost env", "isocost env --json")
def env(*, json: Json = False) -> None:
    """Print versions, processor, threads, dtype and code revision: what is embedded in every score."""
    from isocost import api

    found = api.env()
    if json:
        print_json(found)
    else:
        for name, value in found.items():
            say(f"{name}: {value}")


@command(
    "isocost measure runs/quickstart",
    "isocost measure runs/quickstart --batch 1,64 --dtype bf16 --device cuda",
    "isocost measure CHECKPOINT --threads 0 --json",
)
def measure(
    target: Path,
    *,
    member: str | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    dtype: Literal["fp32", "bf16"] | None = None,
    batch: str | None = None,
    compiled: bool | None = None,
    network: Literal["lean", "diffusers"] | None = None,
    threads: int | None = None,
    repeats: int = 5,
    again: bool = False,
    json: Json = False,
) -> None:
    """Time checkpoints: seconds and joules of each part of an image, peak memory, and how well parts add up to plans.

    What lies in a store is kept there: `isocost plan --unit seconds` and `isocost report` then go by it. Nothing is
    measured twice. Keep the machine quiet meanwhile.

    Parameters
    ----------
    target
        A store, or a checkpoint's folder.
    member
        Only this member of a store.
    device
        Where the networks run. This and the next four: by default as the study's engine has it.
    dtype
        Weights' precision.
    compiled
        With torch.compile.
    network
        Whose forward pass.
    threads
        Threads of one process: 1, as a sweep's worker has it; 0 for every core.
    batch
        Images a network call, as 1,64. Default: 1 and the study's own.
    repeats
        Turns, of which the medians are taken.
    again
        Measure anew what was measured before.
    """
    from isocost import api
    from isocost.console import print_table, shown_progress

    engine = {"device": device, "dtype": dtype, "compiled": compiled, "network": network}
    engine["threads"] = api.env()["cores"] if threads == 0 else threads
    with shown_progress(quiet=json) as progress:
        found = api.measure(
            target,
            member,
            batches=_batches(batch),
            repeats=repeats,
            again=again,
            progress=progress,
            **{name: value for name, value in engine.items() if value is not None},
        )
    if json:
        print_json(found)
        return
    import pandas as pd

    for words, group in itertools.groupby(found, lambda measured: measured.words):
        rows = [row for measured in group for row in measured.columns()]
        print_table(pd.DataFrame(rows), title=f"{words}: milliseconds an image")


def _batches(text: str | None) -> list[int] | None:
    if text is None:
        return None
    if not all(part.strip().isdigit() and int(part) for part in text.split(",")):
        raise SpecError(f"--batch {text}: expected whole numbers from 1, as in 1,64.")
    return [int(part) for part in text.split(",")]
