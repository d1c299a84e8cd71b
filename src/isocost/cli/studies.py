"""Commands that do a study, and answer from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isocost.cli.output import outcome, print_json, records, say
from isocost.cli.parser import Data, Json, Set, StorePath, Workers, command, share_of
from isocost.errors import SpecError

if TYPE_CHECKING:
    from isocost.specs import StudySpec
    from isocost.study.dry_run import DryRun


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
    "torchrun --nproc-per-node 8 -m isocost train paper --sharding fsdp --save-aside",
    "isocost train paper --dry-run --gpus 256 --sharding fsdp --mfu 0.4 --peak-tflops 989",
)
def train(
    study: str,
    *,
    store: StorePath = None,
    set_: Set = None,
    data: Data = None,
    workers: Workers = None,
    device: Literal["cpu", "cuda"] | None = None,
    sharding: Literal["none", "fsdp", "hsdp"] = "none",
    shard_ranks: int | None = None,
    checkpoint_activations: bool = False,
    compile_blocks: bool = False,
    save_aside: bool = False,
    dry_run: bool = False,
    gpus: int = 1,
    mfu: float = 0.4,
    peak_tflops: float | None = None,
    json: Json = False,
) -> None:
    """Train every member of a study that is not trained yet. Run it again to go on after an interruption.

    Under torchrun all ranks train each member together. None of the flags from --device to --save-aside moves a result,
    but for rounding. With --dry-run nothing is read or made: it says what training would take.

    Parameters
    ----------
    study
        A recipe's name or a YAML file.
    device
        Default: the GPUs under torchrun, else the CPU.
    sharding
        Where weights, gradients, moments and averages lie: whole on every rank, a part on each (fsdp), or a part on
        each rank of one machine, and all of it on every machine (hsdp).
    shard_ranks
        Of hsdp: how many ranks share one copy, if not those of a machine.
    checkpoint_activations
        Compute a block's activations again in the backward pass, instead of keeping them: less memory, more time.
    compile_blocks
        Compile blocks with torch.compile.
    save_aside
        Go on training while a state is written.
    dry_run
        Print parameters, FLOPs, memory a GPU, GPU-hours and checkpoint sizes, and do nothing.
    gpus
        Of a dry run: how many train a member together, spread as --sharding says.
    mfu
        Of a dry run: which share of the GPUs' peak goes into the model's own FLOPs.
    peak_tflops
        Of a dry run: the peak of one GPU in the precision of the training. Default: an H100's in bf16, 989.
    """
    from isocost import api
    from isocost.console import print_table, shown_progress
    from isocost.training.parallel import Layout, leads

    spec = study_of(study, set_, data)
    layout = Layout(sharding, shard_ranks, checkpoint_activations, compile_blocks)
    if dry_run:
        _print_dry_run(api.dry_run(spec, gpus=gpus, layout=layout, mfu=mfu, peak_tflops=peak_tflops), json)
        return
    with shown_progress(quiet=json or not leads()) as progress:
        frame = api.train(spec, store, workers, progress, device=device, layout=layout, save_aside=save_aside)
    if not leads():
        return
    if json:
        print_json(records(frame))
    else:
        print_table(frame, title=f"checkpoints of {spec.name}")


def _print_dry_run(found: DryRun, json: bool) -> None:
    if json:
        print_json(found.as_dict())
        return
    from isocost.console import print_dry_run

    print_dry_run(found)


@command(
    "isocost sweep quickstart",
    "isocost sweep my.yaml --store runs/mine",
    "isocost sweep emoji --data shards --workers 2",
    "isocost sweep quickstart --set evaluation.images=1024 --set grid.steps='[2,4,8]'",
    "isocost sweep my.yaml --search adaptive --confidence 0.95",
    "isocost sweep my.yaml --executor ray --address auto",
    "isocost sweep my.yaml --shard 0/8      (one of 8 jobs, after isocost train my.yaml)",
)
def sweep(
    study: str,
    *,
    store: StorePath = None,
    set_: Set = None,
    data: Data = None,
    workers: Workers = None,
    executor: Literal["processes", "ray"] = "processes",
    address: str | None = None,
    num_gpus: float | None = None,
    shard: str | None = None,
    search: Literal["full", "adaptive"] = "full",
    confidence: float | None = None,
    search_unit: Literal["paper", "gflops"] | None = None,
    search_seed: int | None = None,
    json: Json = False,
) -> None:
    """Train, sample and score what a study lacks, then print the answer. Run it again to go on after an interruption.

    Parameters
    ----------
    study
        A recipe's name or a YAML file.
    executor
        processes: of this machine. ray: actors on a Ray cluster whose nodes share the store's file system.
    address
        Of the Ray cluster: HOST:PORT, or auto. Default: RAY_ADDRESS, or what runs here; else one is started.
    num_gpus
        GPUs of a Ray actor; 0.5: two share one. Default: 1 where engine.device is cuda.
    shard
        i/n: only make the images of share i (0 to n-1) of the cells, of a study that is trained; `isocost sweep`
        without it scores.
    search
        full: every cell. adaptive: only as many images as it takes to find the best cell at each cost (docs/search.md).
    confidence
        Of an adaptive search: the probability with which its answer holds. Default: 0.95.
    search_unit
        Of an adaptive search: what an image's cost is counted in. Default: paper.
    search_seed
        Of an adaptive search. Default: 0.
    """
    from isocost import api
    from isocost.console import shown_progress

    if executor != "ray" and (address is not None or num_gpus is not None):
        raise SpecError("--address and --num-gpus are for --executor ray.")
    asked = {"confidence": confidence, "unit": search_unit, "seed": search_seed}
    given = {name: value for name, value in asked.items() if value is not None}
    if search != "adaptive" and given:
        raise SpecError("--confidence, --search-unit and --search-seed are for --search adaptive.")
    if search == "adaptive" and shard is not None:
        raise SpecError("--shard divides every cell of a study: it goes with --search full.")
    adaptively = api.adaptive_search(**given) if search == "adaptive" else None
    share = share_of(shard) if shard is not None else None
    spec = study_of(study, set_, data)
    place = store or api.default_store(spec)
    cluster = api.ray_cluster(spec, address, workers, num_gpus) if executor == "ray" else None
    with shown_progress(quiet=json) as progress:
        if share is None:
            api.sweep(spec, place, workers, progress, executor=cluster, search=adaptively)
        else:
            made = api.sweep_shard(spec, place, share, workers, progress, executor=cluster)
    if share is not None:
        outcome(made, json)
        return
    found = api.search(place)
    answer(place, None, "paper", None, json, {"store": str(place)} | ({"search": found} if found else {}))
    if not json:
        if found:
            say(f"\n{found['sentence']}")
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
    "isocost plan runs/quickstart --page planner.html      (to choose in a browser)",
)
def plan(
    store: Path,
    *,
    budget: float | None = None,
    unit: Literal["paper", "gflops", "seconds"] = "paper",
    metric: str | None = None,
    member: str | None = None,
    sampler: str | None = None,
    guiding: str | None = None,
    best_of: int | None = None,
    device: str | None = None,
    dtype: Literal["fp32", "bf16"] | None = None,
    batch: int | None = None,
    page: Path | None = None,
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
        paper: normalised cost x steps. gflops: all evaluations, guidance, text encoder, decoder. seconds: as
        `isocost measure` found them, else as the sweep took.
    metric
        fd, kid, clip or accuracy. Default: the study's own.
    member
        Only this member.
    sampler
        Only this sampler.
    guiding
        Only this way of guiding: none, cfg, cfg++, autoguidance or embedded, and "cfg interval" where it is limited.
    best_of
        Only the best of so many images; 1: one is drawn.
    device
        Seconds as measured there: a part of the device's name, or cpu or cuda. This and the next two: by default as
        near as possible to the study's own engine.
    dtype
        Seconds as measured in this precision.
    batch
        Seconds as measured at this batch.
    page
        Write the planner there, one HTML file: every budget, unit and filter, with pictures of the frontier.
    """
    kept = (("member", member), ("sampler", sampler), ("guiding", guiding), ("best_of", best_of))
    filters = {name: value for name, value in kept if value is not None}
    choices = (("device", device), ("dtype", dtype), ("batch", batch))
    measured = {name: value for name, value in choices if value is not None}
    if page is not None:
        from isocost import api

        written = api.planner(store, page, budget, unit, metric, filters, measured)
        outcome({"page": str(written)}, json)
        return
    answer(store, budget, unit, metric, json, {}, filters, measured)


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
    filters: dict[str, Any] | None = None,
    measured: dict[str, Any] | None = None,
) -> None:
    """Print the recommendation for a budget, or the whole frontier where none is given."""
    from isocost import api

    found = api.plan(store, budget, unit, metric, filters, measured)
    if json:
        from dataclasses import asdict

        print_json(asdict(found) | extra)
        return
    from isocost.console import print_frontier

    if budget is None:
        print_frontier(api.frontier(store, unit, metric, filters, measured))
    say(found.sentence)
