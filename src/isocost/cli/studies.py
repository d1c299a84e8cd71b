"""Commands that do a study, and answer from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isocost.cli.output import print_json, records, say
from isocost.cli.parser import Data, Json, Set, StorePath, Workers, command

if TYPE_CHECKING:
    from isocost.specs import StudySpec


@command("isocost quickstart", "isocost quickstart --store runs/try --workers 2", "isocost quickstart --json")
def quickstart(*, store: Path = Path("runs/quickstart"), workers: Workers = None, json: Json = False) -> None:
    """Train a small family on procedural scenes, sweep it, answer, and write a report. Minutes on two cores.

    Run it again to go on after an interruption.

    Parameters
    ----------
    store
        Folder of results.
    """
    from isocost import api
    from isocost.console import shown_progress

    with shown_progress(quiet=json) as progress:
        _, page = api.quickstart(store, workers, progress)
    answer(store, None, "paper", None, json, {"report": str(page)})
    if not json:
        say(f"\nReport: {page}\nOpen it in a browser: {page.resolve().as_uri()}")


@command(
    "isocost train quickstart",
    "isocost train my.yaml --store runs/mine --workers 2",
    "isocost train quickstart --set train.images=12800",
)
def train(
    study: str,
    *,
    store: StorePath = None,
    set_: Set = None,
    data: Data = None,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Train every member of a study that is not trained yet. Run it again to go on after an interruption.

    Parameters
    ----------
    study
        A recipe's name or a YAML file.
    """
    from isocost import api
    from isocost.console import print_table, shown_progress

    spec = study_of(study, set_, data)
    with shown_progress(quiet=json) as progress:
        frame = api.train(spec, store, workers, progress)
    if json:
        print_json(records(frame))
    else:
        print_table(frame, title=f"checkpoints of {spec.name}")


@command(
    "isocost sweep quickstart",
    "isocost sweep my.yaml --store runs/mine",
    "isocost sweep emoji --data shards --workers 2",
    "isocost sweep quickstart --set evaluation.images=1024 --set grid.steps='[2,4,8]'",
)
def sweep(
    study: str,
    *,
    store: StorePath = None,
    set_: Set = None,
    data: Data = None,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Train, sample and score what a study lacks, then print the answer. Run it again to go on after an interruption.

    Parameters
    ----------
    study
        A recipe's name or a YAML file.
    """
    from isocost import api
    from isocost.console import shown_progress

    spec = study_of(study, set_, data)
    place = store or api.default_store(spec)
    with shown_progress(quiet=json) as progress:
        api.sweep(spec, place, workers, progress)
    answer(place, None, "paper", None, json, {"store": str(place)})
    if not json:
        say(f"\nNext: isocost report {place}")


@command("isocost status runs/quickstart", "isocost status runs/quickstart --json")
def status(store: Path, *, json: Json = False) -> None:
    """Say how far a store is: members trained, chunks of images made, cells scored.

    Parameters
    ----------
    store
        Folder of results.
    """
    from isocost import api

    found = api.status(store)
    if json:
        print_json(found.as_dict())
        return
    from isocost.console import print_status

    print_status(found)


@command(
    "isocost plan runs/quickstart --budget 3",
    "isocost plan runs/quickstart --budget 0.5 --unit gflops --sampler ddim",
    "isocost plan runs/quickstart --budget 0.01 --unit seconds --json",
)
def plan(
    store: Path,
    *,
    budget: float | None = None,
    unit: Literal["paper", "gflops", "seconds"] = "paper",
    metric: str | None = None,
    member: str | None = None,
    sampler: str | None = None,
    json: Json = False,
) -> None:
    """Answer: which model, sampler, steps and guidance to use for a budget per image.

    Parameters
    ----------
    store
        Folder of results.
    budget
        The most that one image may cost; without it, the whole frontier.
    unit
        paper: normalised cost x steps. gflops: all evaluations, guidance, text encoder, decoder. seconds: measured.
    metric
        fd, kid, clip or accuracy. Default: the study's own.
    member
        Only this member.
    sampler
        Only this sampler.
    """
    filters = {name: value for name, value in (("member", member), ("sampler", sampler)) if value is not None}
    answer(store, budget, unit, metric, json, {}, filters)


@command("isocost report runs/quickstart", "isocost report runs/quickstart --out page --metric kid")
def report(store: Path, *, out: Path | None = None, metric: str | None = None, json: Json = False) -> None:
    """Write a store's report: one static page with the answer, figures, tables and image strips.

    Parameters
    ----------
    store
        Folder of results.
    out
        Folder to write to. Default: the store.
    metric
        fd, kid, clip or accuracy. Default: the study's own.
    """
    from isocost import api

    page = api.report(store, out, metric)
    if json:
        print_json({"report": str(page)})
    else:
        say(f"Report: {page}\nOpen it in a browser: {page.resolve().as_uri()}")


def study_of(reference: str, overrides: list[str] | None, data: str | None) -> StudySpec:
    from isocost import api

    arguments = {"data": data} if data is not None else {}
    return api.load_study(reference, dict(api.parse_override(text) for text in overrides or []), **arguments)


def answer(
    store: Path,
    budget: float | None,
    unit: str,
    metric: str | None,
    json: bool,
    extra: dict[str, Any],
    filters: dict[str, str] | None = None,
) -> None:
    """Print the recommendation for a budget, or the whole frontier where none is given."""
    from isocost import api

    found = api.plan(store, budget, unit, metric, filters)
    if json:
        from dataclasses import asdict

        print_json(asdict(found) | extra)
        return
    from isocost.console import print_frontier

    if budget is None:
        print_frontier(api.frontier(store, unit, metric, filters))
    say(found.sentence)
