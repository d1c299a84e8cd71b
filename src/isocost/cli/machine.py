"""Commands about this machine: which weights are here, and what it is."""

from __future__ import annotations

from isocost.cli.output import print_json, records, say
from isocost.cli.parser import Json, command


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
