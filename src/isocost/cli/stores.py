"""The `isocost store` commands."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from isocost.cli.output import outcome, print_json, records
from isocost.cli.parser import Json, app

stores = App(name="store", help="Look after a folder of results.")
app.command(stores)


@stores.command(name="ls", help_epilogue="Examples:\n  isocost store ls runs/quickstart --json")
def store_ls(store: Path, *, json: Json = False) -> None:
    """List the cells of a store with their scores on all prompts."""
    from isocost import api

    frame = api.cells(store)
    if json:
        print_json(records(frame))
        return
    from isocost.console import print_table

    print_table(frame, title=str(store))


@stores.command(name="verify", help_epilogue="Examples:\n  isocost store verify runs/quickstart")
def store_verify(store: Path, *, json: Json = False) -> None:
    """Read every chunk and score; exit 1 and name each file that is corrupt."""
    from isocost.study.store import Store
    from isocost.study.upkeep import verify

    outcome(verify(Store(store)), json)


@stores.command(name="merge", help_epilogue="Examples:\n  isocost store merge runs/all runs/node1 runs/node2")
def store_merge(store: Path, *others: Path, json: Json = False) -> None:
    """Copy what other stores have and this one lacks. Files are immutable, so nothing is overwritten."""
    from isocost.study.store import Store
    from isocost.study.upkeep import merge

    outcome(merge(Store(store), [Store(other) for other in others]), json)


@stores.command(name="prune", help_epilogue="Examples:\n  isocost store prune runs/quickstart --dry-run")
def store_prune(store: Path, *, dry_run: bool = False, json: Json = False) -> None:
    """Delete what killed processes left half written, and chunks and scores of cells the study no longer has."""
    from isocost.study.store import Store
    from isocost.study.upkeep import prune

    outcome(prune(Store(store), dry_run=dry_run), json)


@stores.command(name="compact", help_epilogue="Examples:\n  isocost store compact runs/quickstart")
def store_compact(store: Path, *, json: Json = False) -> None:
    """Put influence values of many scores into few files, in half precision, and rebuild what is derived."""
    from isocost.study.store import Store
    from isocost.study.upkeep import compact

    outcome(compact(Store(store)), json)


@stores.command(name="pack", help_epilogue="Examples:\n  isocost store pack runs/quickstart quickstart.tar")
def store_pack(store: Path, out: Path, *, json: Json = False) -> None:
    """Write everything in a store that is not derived as one tar, to go on elsewhere after unpacking it."""
    from isocost.study.store import Store
    from isocost.study.upkeep import pack

    outcome(pack(Store(store), out), json)


@stores.command(
    name="publish",
    help_epilogue="Examples:\n  isocost store publish runs/quickstart results/quickstart-cpu\n"
    "  isocost store publish runs/paper-micro results/paper-micro",
)
def store_publish(store: Path, out: Path, *, json: Json = False) -> None:
    """Write what a repository keeps of a store: spec, scores, cells, environment, digests and the report's figures.

    Of a folder of stores, as `isocost reproduce` makes one: of each, with the verdicts on the paper's claims by all.
    """
    from isocost import api

    outcome(api.publish(store, out), json)
