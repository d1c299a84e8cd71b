"""What each command does, as one Python call of the same name: specs and paths in, typed objects and tables out.

import isocost
study = isocost.recipe("quickstart")
table = isocost.sweep(study, "runs/quickstart")
isocost.plan("runs/quickstart", budget=3)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from isocost.errors import SpecError, StoreError, did_you_mean
from isocost.specs import Budget, EngineSpec, SamplingPlan, StudySpec

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from isocost.analysis.claims import Contradiction, Judgement, Study
    from isocost.analysis.differences import Influence
    from isocost.analysis.laws import Laws
    from isocost.analysis.planner import Recommendation
    from isocost.analysis.variance import Variance
    from isocost.data.filters import FilteredIndex
    from isocost.scoring.references import ReferenceSet
    from isocost.scoring.results import Scores
    from isocost.study.dry_run import DryRun
    from isocost.study.encode import Encoded
    from isocost.study.estimate import StageEstimate
    from isocost.study.executors import Executor
    from isocost.study.search import Settings as Search
    from isocost.study.seconds import Measured
    from isocost.study.status import Status
    from isocost.study.store import Store
    from isocost.study.upscaled import Upscaled
    from isocost.training.parallel import Layout
    from isocost.training.state import Checkpoint

Progress = Callable[[str, float, float, str], None]
StudyLike = StudySpec | str | Path


def _silent(stage: str, done: float, total: float, note: str = "") -> None:
    pass


def recipe(name: str, **arguments: Any) -> StudySpec:
    """The study of a recipe: `recipe("emoji", data="shards")`. Raises `SpecError` for an unknown name or argument."""
    from isocost import recipes

    return recipes.recipe(name, **arguments)


def load_study(reference: StudyLike, overrides: Mapping[str, Any] | None = None, **arguments: Any) -> StudySpec:
    """A study from a spec, a recipe's name or a YAML file, with overrides by dotted path.

    `load_study("quickstart", {"train.images": 12800, "members.0.width": 16})`. Raises `SpecError` for a wrong path.
    """
    from isocost import recipes
    from isocost.specs import load

    if arguments and str(reference) not in recipes.RECIPES:
        raise SpecError(f"'{reference}' is no recipe, so it takes no --{', --'.join(arguments)}: say it in the file.")
    if isinstance(reference, StudySpec):
        spec, where = reference, reference.name
    elif str(reference) in recipes.RECIPES:
        spec, where = recipes.recipe(str(reference), **arguments), str(reference)
    elif Path(reference).is_file():
        spec, where = load(reference, StudySpec), str(reference)
    elif str(reference) in recipes.PAPERS:
        raise SpecError(f"'{reference}' is a paper, of several studies: isocost reproduce {reference}")
    else:
        hint = did_you_mean(str(reference), recipes.RECIPES)
        raise SpecError(f"'{reference}' is neither a recipe nor a file.{hint}")
    if not overrides:
        return spec
    value = spec.model_dump(mode="json")
    for path, new in overrides.items():
        _assign(value, path, new)
    return StudySpec.parse(value, where)


def _assign(value: Any, path: str, new: Any) -> None:
    *parents, last = path.split(".")
    for place, part in enumerate(parents):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, ValueError, IndexError, TypeError):
            options = value if isinstance(value, dict) else [str(i) for i in range(len(value or []))]
            where = ".".join(parents[: place + 1])
            raise SpecError(f"override {path}: no field '{where}'.{did_you_mean(part, options)}") from None
    if isinstance(value, dict):
        value[last] = new
    elif isinstance(value, list) and last.isdigit() and int(last) < len(value):
        value[int(last)] = new
    else:
        raise SpecError(f"override {path}: '{'.'.join(parents)}' has no '{last}'.")


def parse_override(text: str) -> tuple[str, Any]:
    """`train.images=12800` -> ("train.images", 12800). The value is YAML."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise SpecError(f"override '{text}': expected PATH=VALUE, as in train.images=12800.")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f"override '{text}': not YAML: {' '.join(str(error).split())}") from None


def open_store(path: str | Path | Store) -> Store:
    from isocost.study.store import Store

    return path if isinstance(path, Store) else Store(path)


def default_store(spec: StudySpec) -> Path:
    """`runs/NAME`."""
    return Path("runs") / spec.name


def ladder(name: str = "sd") -> pd.DataFrame:
    """Members of a ladder with parameters, forward GFLOPs and norm. cost (for `sd`: beside the paper's Table 1)."""
    import pandas as pd

    from isocost.models.ladder import rows

    return pd.DataFrame(rows(name))


def train(
    spec: StudyLike,
    store: str | Path | None = None,
    workers: int | None = None,
    progress: Progress = _silent,
    *,
    device: str | None = None,
    layout: Layout | None = None,
    save_aside: bool = False,
) -> pd.DataFrame:
    """Train every member at every seed; one row a kept checkpoint: member, seed, images_seen, digest, folder.

    Under torchrun all ranks call this and train each member together; only rank 0 gets rows. `device`: "cpu" or "cuda";
    None: the GPUs under torchrun, else the CPU. `layout`: how a run is spread over ranks and memory. `save_aside`:
    training goes on while a state is written. None of them moves a result, but for rounding.
    """
    import pandas as pd

    from isocost.study import run
    from isocost.study.together import Training, follow, leading
    from isocost.training.parallel import PLAIN, torchrun_ranks

    spec = load_study(spec)
    if spec.dreambooth is not None:
        return _tuned(spec, open_store(store or default_store(spec)), workers, progress)
    with torchrun_ranks(device) as ranks:
        training = Training(ranks, layout or PLAIN, save_aside)
        if not ranks.leads:
            follow(training)
            return pd.DataFrame()
        workers = workers or (1 if device == "cuda" else None)  # a GPU has room for one training
        with leading(ranks):
            trained = run.train(spec, open_store(store or default_store(spec)), workers, progress, training=training)
    rows = [
        {
            "member": checkpoint.name,
            "seed": checkpoint.seed,
            "images_seen": checkpoint.ref.images_seen,
            "checkpoint": checkpoint.ref.content_digest,
            "folder": str(checkpoint.folder),
        }
        for checkpoint in trained.checkpoints
        if checkpoint.seed is not None and not checkpoint.undistilled
    ]
    return pd.DataFrame(rows)


def _tuned(spec: StudySpec, store: Store, workers: int | None, progress: Progress) -> pd.DataFrame:
    """Tune every member on every subject of a study of DreamBooth; a row a tuning."""
    import pandas as pd

    from isocost.study import dreambooth
    from isocost.study.executors import Processes, default_workers

    opened, tunings = dreambooth.train(spec, store, Processes(workers or default_workers()), progress)
    checkpoints = [(one, dreambooth.tuned(opened, one)) for one in tunings]
    rows = [
        {
            "member": one.name,
            "seed": one.run.seed,
            "images_seen": checkpoint.ref.images_seen,
            "checkpoint": checkpoint.ref.content_digest,
            "folder": str(checkpoint.folder),
        }
        for one, checkpoint in checkpoints
    ]
    return pd.DataFrame(rows)


def dry_run(
    spec: StudyLike,
    *,
    gpus: int = 1,
    layout: Layout | None = None,
    mfu: float = 0.4,
    peak_tflops: float | None = None,
) -> DryRun:
    """What training a study's members will take, from its spec alone: nothing is read, made or downloaded.

    Parameters, FLOPs, memory a GPU under the layout, checkpoint sizes, and GPU-hours where the share `mfu` of
    `peak_tflops` a GPU (None: an H100's, bf16) goes into the model's own FLOPs. Raises `SpecError` where the batch does
    not split over the GPUs.
    """
    from isocost.models.budget import H100_BF16_TFLOPS, Hardware
    from isocost.models.memory import Spread
    from isocost.study.dry_run import dry_run as estimate
    from isocost.training.parallel import PLAIN

    chosen = layout or PLAIN
    spread = Spread(chosen.sharding, gpus, chosen.shard_ranks or 8, chosen.checkpoint_activations)
    return estimate(load_study(spec), Hardware(spread, mfu, peak_tflops or H100_BF16_TFLOPS))


def encode(
    spec: StudyLike,
    store: str | Path | None = None,
    share: tuple[int, int] = (0, 1),
    progress: Progress = _silent,
    device: str = "cpu",
) -> Encoded:
    """Encode share i of n of a study's training data, for `share` (i, n); each of n processes takes one.

    Whoever finds all shards done finishes the set. What is there is kept: call it again after an interruption.
    """
    from isocost.study.encode import encode as encode_share

    spec = load_study(spec)
    return encode_share(spec, open_store(store or default_store(spec)), share, progress, device)


def data_info(places: Sequence[str | Path], verify: bool = False) -> list[dict[str, Any]]:
    """What lies in folders and shards of captioned images, or of latents, here or at URLs: counts, bytes and digests.

    verify: also read every byte. Raises `DataError` naming what is damaged or missing.
    """
    from isocost.encoders.info import describe

    return [describe(place, verify) for place in places]


def data_filter(
    places: Sequence[str | Path],
    rules: Sequence[str],
    missing: str = "error",
    out: str | Path | None = None,
    progress: Progress = _silent,
) -> FilteredIndex:
    """Which captioned images pass rules such as "caption_words>=3" and "json.aesthetic>=5", counted.

    missing: what becomes of an image without a rule's field: "error", "drop" or "keep". out: file for the index.
    """
    from isocost.data.filters import filtered, parse_rule
    from isocost.data.images import open_images

    parsed = [parse_rule(rule, missing) for rule in rules]
    images = open_images(places, captions_required=False)
    return filtered(images, parsed, Path(out) if out else None, lambda done, all_: progress("filter", done, all_, ""))


def photo_vae(
    train: Sequence[str | Path],
    held_out: Sequence[str | Path],
    folder: str | Path,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    degradation: str = "realesrgan",
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Train an autoencoder on photographs (folders or tars) into `folder`, for super-resolution; what was measured.

    `settings`: fields of `isocost.encoders.photos.PhotoSettings`. What is there is kept: call it again after an
    interruption. Raises `SpecError` for a field or value that is wrong.
    """
    from isocost.encoders.photos import photo_settings, train_photo_vae

    return train_photo_vae(train, held_out, folder, photo_settings(settings or {}), seed, degradation, tell)


def sweep(
    spec: StudyLike,
    store: str | Path | None = None,
    workers: int | None = None,
    progress: Progress = _silent,
    *,
    executor: Executor | None = None,
    search: Search | None = None,
) -> pd.DataFrame:
    """Train, sample and score what is missing; one row a (cell, metric, split). Call again to go on after a stop.

    `executor`: where to work (`ray_cluster`); default: `workers` processes of this machine. `search`: find the
    cost-quality frontier adaptively (`adaptive_search`), and score what is on it; default: every cell.
    """
    from isocost.study import run

    spec = load_study(spec)
    return run.sweep(spec, open_store(store or default_store(spec)), workers, progress, executor, search)


def reproduce(
    paper: str,
    root: str | Path | None = None,
    only: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress = _silent,
    **folders: Any,
) -> Path:
    """Do every stage of a paper that is not done, each in a store under `root`, and write what they say together.

    `paper`: "paper-micro", "paper-gpu" or "paper". `root`: default `runs/PAPER`. `only`: some stages by name.
    `folders`: of data, as the paper takes them (`data`, `coco`, `div2k`). Returns the page; a report of its own is in
    each store. Call it again to go on after a stop. Raises as `sweep`, and `SpecError` for an unknown stage.
    """
    from isocost import recipes
    from isocost.reporting import from_store
    from isocost.study import stages

    place = Path(root or Path("runs") / paper)

    def report_of(store: Store) -> None:
        from_store.write(store, store.path)

    listed = recipes.stages(paper, **folders)
    for store in stages.reproduce(listed, place, only, workers, progress, lambda _, store: report_of(store)):
        if not (store / "report.html").is_file():  # stopped before it was written
            report_of(open_store(store))
    return paper_page(place)


def reproduction_cost(
    paper: str,
    root: str | Path | None = None,
    only: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress = _silent,
    **folders: Any,
) -> list[StageEstimate]:
    """What each stage of a paper takes: runs, cells, images, FLOPs, and seconds on this machine where it is for a CPU.

    Arguments as for `reproduce`. A little of each kind of work is done, to time it.
    """
    from isocost import recipes
    from isocost.study.estimate import estimate
    from isocost.study.executors import default_workers
    from isocost.study.stages import chosen

    listed = recipes.stages(paper, **folders)
    chosen(listed, only)
    found = estimate(listed, Path(root or Path("runs") / paper), workers or default_workers(), progress)
    return [one for one in found if only is None or one.stage in only]


def paper_page(root: str | Path) -> Path:
    """Write ROOT/report.html: the verdict on every claim by all stores under a folder, and a link to each report."""
    from isocost.reporting.paper_page import write

    return write(Path(root), claims(root))


def publish(store: str | Path, out: str | Path) -> dict[str, Any]:
    """What a repository keeps of a store, or of every store of a paper: see `isocost.study.upkeep.publish`.

    Of a paper each store's is in a folder of its own, and beside them are the page and the claims as JSON: judged by
    the stores, whose influence values are not published.
    """
    import shutil
    from dataclasses import asdict

    from isocost.files import atomic_write, json_text
    from isocost.reporting import paper_page as pages
    from isocost.study import folders, upkeep

    root, place = Path(store), Path(out)
    stores = folders.stores_in([root])
    if list(stores.values()) == [root]:
        return upkeep.publish(open_store(root), place)
    found = {name: upkeep.publish(open_store(one), place / name) for name, one in stores.items()}
    verdicts = claims(root)
    pages.write(root, verdicts, place)
    with atomic_write(place / "claims.json") as file:
        file.write(f"{json_text(asdict(verdicts))}\n".encode())
    if (root / folders.ORDER).is_file():
        shutil.copy(root / folders.ORDER, place / folders.ORDER)
    counts = {name: sum(one[name] for one in found.values()) for name in ("scores", "figures")}
    return {"folder": str(place), "stores": len(found), **counts}


def adaptive_search(confidence: float = 0.95, tolerance: float = 0.01, unit: str = "paper", seed: int = 0) -> Search:
    """A `search` for `sweep`: until, with probability `confidence`, full search would at no budget find anything better
    by more than the share `tolerance`. `unit`: of the budgets, "paper" or "gflops". See docs/search.md.
    """
    from isocost.study.search import Settings

    return Settings(confidence=confidence, tolerance=tolerance, unit=unit, seed=seed)


def search(store: str | Path) -> dict[str, Any] | None:
    """What adaptive search found in a store, with a `sentence`; None where every cell was, or is to be, scored."""
    from isocost.study.adaptive import in_words

    found = open_store(store).search()
    return found and found | {"sentence": in_words(found)}


def sweep_shard(
    spec: StudyLike,
    store: str | Path | None,
    shard: tuple[int, int],
    workers: int | None = None,
    progress: Progress = _silent,
    *,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Make the images and features of share i of n of a trained study's cells, for `shard` (i, n); score nothing.

    Shards may share a store, or have each a copy of the trained one (`isocost store merge` joins them); `sweep` scores.
    """
    from isocost.study import run

    spec = load_study(spec)
    return run.sweep_shard(spec, open_store(store or default_store(spec)), shard, workers, progress, executor)


def ray_cluster(
    spec: StudyLike, address: str | None = None, workers: int | None = None, num_gpus: float | None = None
) -> Executor:
    """An `executor` for `sweep` and `train`: actors on a Ray cluster, one CPU each; needs the extra `ray`.

    Args:
        address: of a running cluster, "HOST:PORT" or "auto". Default: what RAY_ADDRESS names, or runs on this machine;
            else one of this machine's own, while this process lives.
        workers: actors at most. Default: one per CPU of the cluster.
        num_gpus: of each actor; 0.5 lets two share one. Default: 1 where the study's engine is on cuda, else 0.

    Raises `SpecError` where Ray is not installed or no cluster answers.
    """
    from isocost.study.ray_executor import RayCluster, connected

    if num_gpus is None:
        num_gpus = 1 if load_study(spec).engine.device == "cuda" else 0
    connected(address)
    return RayCluster(address, workers, num_gpus)


def status(store: str | Path) -> Status:
    """How far a store is. Raises `StoreError` where there is none."""
    from isocost.study.status import status as read

    return read(open_store(store))


def table(store: str | Path, measured: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """The results table of a store. `measured`: by whose seconds, as for `plan`."""
    from isocost.study import tables
    from isocost.study.seconds import Wanted

    return tables.table(open_store(store), Wanted.parse(dict(measured or {}), "measured"))


def cells(store: str | Path) -> pd.DataFrame:
    """One row a cell: what it is, what it costs, and its scores on all prompts, a column each.

    Of super-resolution, rows `bicubic` and `autoencoder` come first: the floor, and the ceiling.
    """
    import pandas as pd

    from isocost.analysis.cells import PLAIN, with_plans
    from isocost.study import tables

    frame = with_plans(table(store))
    frame = frame[(frame["split"] == "all") & ~frame["metric"].str.contains("/")]
    told_apart_by = [name for name, value in PLAIN.items() if (frame[name] != value).any()]
    what = ["member", "seed", "images_seen", "sampler", "steps", "guidance_scale", *told_apart_by]
    what += ["paper_cost", "gflops_per_image"]
    wide: Any = frame.pivot_table(index=[*what, "sample_key"], columns="metric", values="value").reset_index()
    frames: Any = tables.frames(open_store(store))
    if not frames.empty:
        of_all = frames[frames["split"] == "all"].rename(columns={"frame": "member"})
        floor = of_all.pivot_table(index=["member", "sample_key"], columns="metric", values="value").reset_index()
        # Columns of whole numbers stay so, empty where they mean nothing.
        wide = pd.concat([floor.iloc[::-1], wide]).convert_dtypes()[wide.columns].reset_index(drop=True)
    wide["sample_key"] = wide["sample_key"].str[:12]
    return wide.rename_axis(columns=None)


def plan(
    store: str | Path,
    budget: float | None = None,
    unit: str = "paper",
    metric: str | None = None,
    filters: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> Recommendation:
    """The best cell within a budget an image (None: no limit), with its interval and ties.

    `unit`: "paper" (norm. cost x steps), "gflops" (every evaluation, guidance, encoders) or "seconds": as `measure`
    found them, else as the sweep itself took. `measured` says by which of several: {"device": "H100", "dtype": "bf16",
    "batch": 1}; default: those nearest to the study's own engine.
    """
    from isocost.analysis.planner import plan as answer

    limit = Budget.parse({"unit": unit, "limit": budget}, "budget") if budget is not None else None
    found, influence, metric, select_by = _judged(store, metric, measured)
    return answer(found, limit, metric, influence=influence, filters=filters, select_by=select_by)


def planner(
    store: str | Path,
    page: str | Path,
    budget: float | None = None,
    unit: str = "paper",
    metric: str | None = None,
    filters: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    draw: bool = True,
) -> Path:
    """Write the planner, `plan` for every budget, unit, metric and filter, as one HTML file; returns its path.

    The other arguments are what it shows first. `draw`: make the pictures of the frontier that the store lacks, where
    its checkpoints are. Needs no server and no network.
    """
    from isocost.errors import IsocostError
    from isocost.files import atomic_write
    from isocost.reporting.planner_page import static_page
    from isocost.reporting.planner_store import draw_frontier, embedded, planner_of
    from isocost.study import published
    from isocost.study.seconds import Wanted

    start = _planner_start(budget, unit, metric, filters)
    wanted = Wanted.parse(dict(measured or {}), "measured")
    is_store, failed = not published.is_published(Path(store)), ""
    if draw and is_store:
        try:
            draw_frontier(store, metric)
        except IsocostError as error:
            failed = f"Pictures of the frontier could not be drawn: {error}"
    made = planner_of(store, embedded(open_store(store)) if is_store else None, start, wanted)
    made.data["notes"] += [failed] if failed else []
    path = Path(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(static_page(made).encode())
    return path


def serve(
    store: str | Path,
    port: int = 8000,
    metric: str | None = None,
    measured: Mapping[str, Any] | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the planner at http://127.0.0.1:PORT/ until interrupted; needs the extra `serve`.

    Nothing is written, and nobody but this machine is answered. `ready`: called with the address.
    """
    from isocost.reporting import server
    from isocost.study.seconds import Wanted

    wanted = Wanted.parse(dict(measured or {}), "measured")
    server.serve(server.create_app(store, _planner_start(None, "paper", metric, None), wanted), port, ready)


def _planner_start(budget: float | None, unit: str, metric: str | None, filters: Mapping[str, Any] | None) -> Any:
    from isocost.analysis.cells import cost_column
    from isocost.reporting.planner import Start

    cost_column(unit)
    limit = Budget.parse({"unit": unit, "limit": budget}, "budget").limit if budget is not None else None
    kept = {name: [value] if isinstance(value, str | int) else list(value) for name, value in (filters or {}).items()}
    return Start(unit, limit, metric, kept)


def frontier(
    store: str | Path,
    unit: str = "paper",
    metric: str | None = None,
    filters: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The cost-quality frontier in words: `columns`, `rows`, `crossovers`, `notes` and the answer's `sentence`.

    Arguments as for `plan`.
    """
    from isocost.reporting.page import summary

    found, influence, metric, select_by = _judged(store, metric, measured)
    return summary(found, metric, unit, influence, filters, select_by)


def claims(
    stores: str | Path | Sequence[str | Path] | None,
    metric: str | None = None,
    unit: str = "paper",
    only: Sequence[str] | None = None,
) -> Judgement:
    """Every claim of the paper as a verdict: supported, refuted, inconclusive, or not testable on what there is.

    `stores`: a folder of results, what `isocost store publish` wrote of one, or a folder of such; or several, and each
    claim is judged where it is best tested (`isocost.analysis.claims.judge_all`). None: the numbers that the paper
    prints, which have no errors. `metric`: what claims on FID are judged by; default: what the study chooses by, where
    that is a distance. `only`: some claims by id.

    Raises:
        StoreError: no scores there.
        SpecError: an unknown claim, metric or unit; scores by two protocols.
    """
    from isocost.analysis.cells import cost_column
    from isocost.analysis.claims import judge, judge_all, printed_table

    cost_column(unit)
    if stores is None:
        return judge(printed_table(), None, metric, unit, only)
    studies, unread = _studies([stores] if isinstance(stores, (str, Path)) else stores, metric)
    found = judge_all(studies, unit, only)
    return replace(found, notes=(*found.notes, *unread))


def _studies(stores: Sequence[str | Path], metric: str | None) -> tuple[dict[str, Study], list[str]]:
    """Stores as claims read them, by name, and which of several have no scores yet. Raises where none has."""
    from isocost.analysis.claims import Study
    from isocost.study import published
    from isocost.study.folders import stores_in

    read, failed = {}, {}
    for name, folder in stores_in([Path(store) for store in stores]).items():
        try:
            spec = published.study(folder) if published.is_published(folder) else open_store(folder).study()
            read[name] = spec, *_results(folder, metric)
        except StoreError as error:
            failed[name] = error
    if failed and not read:
        raise next(iter(failed.values()))
    # A store may be called otherwise than where its members' start was looked for: `results/x-cpu` for `runs/x`.
    called = {spec.name: name for name, (spec, *_) in reversed(read.items())} | {name: name for name in read}
    starts = {name: Path(spec.start_from or "").name for name, (spec, *_) in read.items()}
    studies = {
        name: Study(found, influence, judged_by, called.get(starts[name], starts[name]))
        for name, (_, found, influence, judged_by) in read.items()
    }
    return studies, [f"{name}: not read: {error}" for name, error in failed.items()]


def laws(store: str | Path, metric: str | None = None) -> Laws:
    """What quality follows: over training, over sampling, over images per parameter, the best size and steps for a
    budget, crossovers, best-of-n at equal cost, and `variance`.

    `store` and `metric` as for `claims`. Raises as `claims` does; what cannot be fitted is said in `missing`.
    """
    from isocost.analysis.laws import laws as fitted

    found, influence, metric = _results(store, metric)
    return fitted(found, influence, metric, _report_prompts(store), axes=True)


def variance(store: str | Path, metric: str | None = None) -> Variance:
    """How much of a metric's variance is size, steps, guidance, training seed, prompts and noise; `frame()` is a table.

    `store` and `metric` as for `claims`. Raises `SpecError` where the store has no full grid of cells.
    """
    from isocost.analysis.variance import variance as decomposed

    found, influence, metric = _results(store, metric)
    return decomposed(found, influence, metric, _report_prompts(store))


def _report_prompts(store: str | Path) -> int | None:
    from isocost.study import published
    from isocost.study.tables import report_prompts

    is_published = published.is_published(Path(store))
    return report_prompts(published.study(Path(store)) if is_published else open_store(store).study())


def _results(store: str | Path, metric: str | None) -> tuple[pd.DataFrame, Influence | None, str | None]:
    """The table of a store or of what was published of one, its influence values, and the distance that judges.

    None for that: the table's own default, where the study does not choose by a distance.
    """
    from isocost.analysis.sheet import DISTANCES
    from isocost.study import published
    from isocost.study.tables import metric_label

    if published.is_published(Path(store)):
        found, influence = published.table(Path(store)), None
        chosen_by = published.study(Path(store)).evaluation.select_by
    else:
        opened = open_store(store)
        found, influence = table(store), opened.influence
        chosen_by = metric_label(opened, opened.study().evaluation.select_by)
        metric = metric_label(opened, metric) if metric else None
    return found, influence, metric or (chosen_by if chosen_by.partition("[")[0] in DISTANCES else None)


def contradictions() -> tuple[Contradiction, ...]:
    """Where the paper disagrees with itself."""
    from isocost.analysis.claims import contradictions as found

    return found()


def _judged(
    store: str | Path, metric: str | None, measured: Mapping[str, Any] | None
) -> tuple[pd.DataFrame, Influence | None, str, str]:
    """The table of a store or of what was published of one, its influence values, the metric that judges and the one
    that chose guidance, as the table calls them."""
    from isocost.study import published
    from isocost.study.tables import metric_label

    if published.is_published(Path(store)):
        chosen_by = published.study(Path(store)).evaluation.select_by
        return published.table(Path(store)), None, metric or chosen_by, chosen_by
    opened = open_store(store)
    chosen_by = metric_label(opened, opened.study().evaluation.select_by)
    return table(store, measured), opened.influence, metric_label(opened, metric or chosen_by), chosen_by


def sample(
    checkpoint: str | Path,
    prompts: Sequence[str],
    *,
    steps: int = 20,
    sampler: str = "ddim",
    guidance_scale: float = 2.0,
    spacing: str = "trailing",
    eta: float = 0.0,
    replicate: int = 0,
    member: str | None = None,
    cell: str | None = None,
) -> np.ndarray:
    """Images [n, H, W, 3] uint8 of prompts, from a checkpoint folder, a run's folder, or a store and a member's name.

    The noise of a prompt is keyed by its text and `replicate`: the same call gives the same image. `cell`: of a store,
    the one whose sample key begins so, with all that its plan says; then only `replicate` counts of the others.
    """
    import numpy as np

    from isocost.sampling.generate import generate
    from isocost.study.checkpoints import find, pipeline_of

    if not prompts:
        raise SpecError("no prompts: give at least one.")
    if cell is not None:
        from isocost.study.drawing import draw

        return draw(open_store(checkpoint), cell, prompts, replicate)
    found = find(checkpoint, member)
    how = {"sampler": sampler, "steps": steps, "spacing": spacing, "guidance": {"scale": guidance_scale}, "eta": eta}
    plan = _plan_of(found.checkpoint, "sample", **how)
    engine = EngineSpec(batch=min(len(prompts), 64))
    pipeline = pipeline_of(found, engine)
    asked = [(text, text, replicate) for text in prompts]
    batches = [asked[start : start + engine.batch] for start in range(0, len(asked), engine.batch)]
    return np.concatenate([generate(pipeline, plan, engine, batch).images for batch in batches])


def interpolate(
    checkpoint: str | Path,
    first: str,
    second: str,
    *,
    alphas: Sequence[float] = (1.0, 0.8, 0.5, 0.2, 0.0),
    path: str = "linear",
    steps: int = 20,
    sampler: str = "ddim",
    guidance_scale: float = 7.5,
    spacing: str = "trailing",
    eta: float = 0.0,
    replicate: int = 0,
    member: str | None = None,
) -> np.ndarray:
    """Images [n, H, W, 3] uint8 between two prompts, one for each weight of the first in `alphas`.

    Mixed are the embeddings of all tokens, by `path` "linear" or "spherical"; all images have the noise of the first
    prompt, so that at 1 it is what `sample` draws of it, to the bit. `checkpoint` and `member` as for `sample`.
    """
    import numpy as np

    from isocost.data.prompts import Blend
    from isocost.sampling.generate import generate
    from isocost.study.checkpoints import find, pipeline_of

    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise SpecError(f"alphas {list(alphas)}: give one or more from 0 to 1, as in 1,.8,.5,.2,0.")
    for name, prompt in (("first", first), ("second", second)):
        if not prompt.strip():
            raise SpecError(f"the {name} prompt is empty: there is nothing to go to, or from.")
    found = find(checkpoint, member)
    how = {"sampler": sampler, "steps": steps, "spacing": spacing, "guidance": {"scale": guidance_scale}, "eta": eta}
    plan, engine = _plan_of(found.checkpoint, "interpolate", **how), EngineSpec(batch=1)
    pipeline = pipeline_of(found, engine)
    drawn = [Blend(first, second, alpha, path) for alpha in alphas]
    return np.concatenate([generate(pipeline, plan, engine, [(first, one, replicate)]).images for one in drawn])


def _plan_of(checkpoint: Checkpoint, where: str, **how: Any) -> SamplingPlan:
    """A plan of one checkpoint's EMA weights, on the schedule of its training. Raises `SpecError` where that cannot be
    run with it."""
    from isocost.sampling.checkpoints import DRAWS_NONE, Traits, check_checkpoints

    spec = checkpoint.spec
    if spec.model.takes_image and "guidance" in how:
        raise SpecError(DRAWS_NONE)
    if spec.model.guidance_dim is not None and "guidance" in how:
        how["guidance"] = how["guidance"] | {"mode": "embedded"}
    fields = {
        "stages": [{"checkpoint": checkpoint.ref("ema").model_dump()}],
        "schedule": spec.schedule.model_dump(),
        "prediction": spec.prediction,
    }
    plan = SamplingPlan.parse(fields | how, where)
    check_checkpoints(plan, {plan.stages[0].checkpoint.content_digest: Traits.of(spec)})
    return plan


def upscale(
    image: str | Path | np.ndarray,
    checkpoint: str | Path,
    *,
    member: str | None = None,
    steps: int = 20,
    sampler: str = "ddim",
    spacing: str = "trailing",
    eta: float = 0.0,
    replicate: int = 0,
    tile: int | None = None,
    overlap: int | None = None,
    batch: int = 16,
    progress: Progress = _silent,
) -> Upscaled:
    """An image, a file's or uint8 [h, w, 3], four times as large, by a checkpoint trained for super-resolution.

    tile, overlap: pixels of `image`, that the network sees at a time. Default: as in its training, and a quarter.
    batch: tiles a network call. Noise is keyed by the file's name and `replicate`: the same call, the same image.

    Raises `DataError` for a file that is no image, or too small; `SpecError` for a checkpoint that draws from prompts.
    """
    from isocost.data.images import Decoded, decode
    from isocost.data.pairs import enlarged
    from isocost.sampling.upscale import LowRes, upscale_whole
    from isocost.study.checkpoints import find, pipeline_of
    from isocost.study.upscaled import Upscaled

    if isinstance(image, str | Path):
        if not Path(image).is_file():
            raise SpecError(f"{image}: no such image.")
        name, decoded = Path(image).stem, decode(Path(image).read_bytes(), str(image))
    else:
        name, decoded = "array", Decoded(image)
    found = find(checkpoint, member)
    plan = _plan_of(found.checkpoint, "upscale", sampler=sampler, steps=steps, spacing=spacing, eta=eta)
    engine = EngineSpec(batch=batch)
    made = upscale_whole(
        pipeline_of(found, engine),
        plan,
        engine,
        LowRes(name, decoded.pixels, replicate),
        tile,
        overlap,
        lambda done, total: progress("upscale", done, total, name),
    )
    return Upscaled(enlarged(decoded.pixels), made, decoded.conversions)


def measure(
    target: str | Path,
    member: str | None = None,
    *,
    batches: Sequence[int] | None = None,
    repeats: int = 5,
    again: bool = False,
    progress: Progress = _silent,
    **engine: Any,
) -> list[Measured]:
    """What checkpoints take on this machine: seconds, joules and memory, a `Measured` for each checkpoint and batch.

    Args:
        target: a store, whose every final checkpoint is measured (or a `member`'s), or a checkpoint's folder. What lies
            in a store is kept there, `plan` and `report` go by it, and it is not measured again unless `again`.
        batches: images a network call. Default: 1, and the engine's own batch.
        engine: fields of `EngineSpec` (device, dtype, compiled, threads, network) that differ from the study's engine.
    """
    from isocost.study import measured, run
    from isocost.study.store import Store

    if member is None and (Path(target) / "study.yaml").is_file():
        store: Store | None = Store(target)
        trained = run.opened(store)
        targets, scorers = measured.targets_of(trained), list(trained.scorers.values())
    else:
        one, store = measured.target_of(Path(target), member)
        targets, scorers = [one], []
    base = store.study().engine if store else EngineSpec()
    asked = EngineSpec.parse(base.model_dump() | engine, "measure")
    engines = [asked.model_copy(update={"batch": batch}) for batch in batches or sorted({1, asked.batch})]
    return measured.measure_all(targets, engines, store, scorers, repeats, again, progress)


def export(checkpoint: str | Path, folder: str | Path, *, member: str | None = None, lora: bool = False) -> Path:
    """Write a checkpoint as a folder that `StableDiffusionPipeline.from_pretrained` loads, with a model card.

    `lora`: of a run with adapters these alone, as `pipeline.load_lora_weights` takes them.
    """
    from isocost.study.checkpoints import find
    from isocost.study.export import export as write
    from isocost.study.export import export_lora

    return (export_lora if lora else write)(find(checkpoint, member), Path(folder))


def report(store: str | Path, folder: str | Path | None = None, metric: str | None = None) -> Path:
    """Write a store's report (one static page, and its figures beside it); returns the page's path."""
    from isocost.reporting.from_store import write

    opened = open_store(store)
    return write(opened, Path(folder) if folder else opened.path, metric)


def score(
    generated: Any,
    reference: Any = None,
    metrics: str | Sequence[str] = "fd,kid",
    *,
    extractor: str | None = None,
    cell: str | None = None,
    captions: Any = None,
    paired: bool | None = None,
    skip_unreadable: bool = False,
    device: str = "cpu",
    progress: Progress = _silent,
) -> Scores:
    """Scores of generated images against reference ones, each with its error; a ranking where there are several sets.

    Args:
        generated: a folder of images, a .tar or a folder of tars, a .npz or .safetensors of features, an array (uint8
            [N, H, W, 3], or features [N, D]) or a store; a list of these, or a dict of them by name.
        reference: the same, or a reference's file, or `PROTOCOL:FOLDER`; None: none, or the store's own.
        metrics: names, as in "fd,kid[fid-tf],clip"; see docs/scores.md.
        extractor: of metrics that name none. Default: the shipped one, or the study's.
        cell: of a store, the one whose sample key begins so. Default: all.
        captions: a text file with a line an image in order of keys, or a list. Default: those beside the images.
        paired: whether sets are compared image by image. Default: where their keys match.
        skip_unreadable: leave out images that cannot be read, counted and named, instead of refusing them.
        device: where extractors run.

    Raises:
        SpecError: an unknown metric, extractor or protocol, or one that does not fit what is asked.
        DataError: a file that is missing, empty or corrupt, or whose features are not finite.
    """
    from isocost.scoring.evaluate import score as evaluate
    from isocost.scoring.measures import Defaults, names_in
    from isocost.study import sources
    from isocost.study.measures import with_own

    names = names_in(metrics)
    sets = sources.open_generated(generated, cell, captions)
    stores = [images.store for images in sets if isinstance(images, sources.CellImages)]
    defaults = Defaults(extractor, None) if extractor else None
    if stores:
        of_studies = {sources.defaults_of(store): store for store in {store.path: store for store in stores}.values()}
        if len(of_studies) > 1 and not extractor:
            raise SpecError("these stores are of studies with several extractors: say which with --extractor.")
        of_study = next(iter(of_studies))
        names = [with_own(name, of_study.extractor) for name in names]
        defaults = defaults or of_study
    return evaluate(
        sets,
        sources.open_against(reference, stores),
        names,
        defaults=defaults,
        paired=paired,
        skip_unreadable=skip_unreadable,
        device=device,
        progress=progress,
    )


def build_reference(
    images: Any,
    extractor: str,
    out: str | Path | None = None,
    *,
    moments: bool = False,
    skip_unreadable: bool = False,
    device: str = "cpu",
    progress: Progress = _silent,
) -> ReferenceSet:
    """The features of reference images, or with `moments` their mean and covariance, written to `out` where given.

    `images`: a folder, a .tar, a folder of tars, an array, or `PROTOCOL:FOLDER`. Raises as `score` does.
    """
    from isocost.files import atomic_write
    from isocost.scoring.extractors import load_extractor
    from isocost.scoring.references import build
    from isocost.study.sources import open_images_named

    (found,) = build(
        open_images_named(images),
        [load_extractor(extractor, device=device)],
        moments_only=moments,
        skip_unreadable=skip_unreadable,
        report=lambda done, total: progress("read references", done, total, ""),
    )
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(out)) as file:
            file.write(found.to_bytes())
    return found


def load_reference(path: str | Path) -> ReferenceSet:
    """A reference's file. Raises `DataError` naming one that is missing or corrupt."""
    from isocost.scoring.references import load_reference as read

    return read(path)


def track(store: str | Path, to: str, follow: bool = False) -> int:
    """Copy the logs of a store's trainings to "tensorboard", "wandb" or "trackio"; returns how many lines they had.

    `follow`: go on until the trainings have ended. Raises `SpecError` where that tracker is not installed.
    """
    from isocost.specs import TrainSpec, load
    from isocost.trackers import mirror

    count = 0
    for path in sorted(open_store(store).path.glob("checkpoints/*/spec.yaml"), key=lambda path: path.stat().st_mtime):
        spec = load(path, TrainSpec)
        fields, until = spec.model_dump(mode="json"), spec.images if follow else None
        count += mirror(path.parent, to, f"{spec.model.name}-seed{spec.seed}", fields, until)
    return count


def check() -> pd.DataFrame:
    """Every network that isocost can use: whether its weights are here, where they are looked for, and what to do."""
    import pandas as pd

    from isocost.scoring.inventory import inventory

    return pd.DataFrame(inventory())


def env() -> dict[str, Any]:
    """Versions, processor, threads, dtype and code revision: what is embedded in every Score."""
    from isocost.environment import environment

    return environment()


def quickstart(
    store: str | Path = "runs/quickstart", workers: int | None = None, progress: Progress = _silent
) -> tuple[pd.DataFrame, Path]:
    """The quickstart study, trained, swept and reported: its table, and the report's path."""
    results = sweep(recipe("quickstart"), store, workers, progress)
    progress("write the report", 0, 1, "")
    page = report(store)
    progress("write the report", 1, 1, "")
    return results, page
