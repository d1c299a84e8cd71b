"""The command line: parses words, calls `isocost.api`, prints for people or, with --json, for programs.

Nothing heavy is imported until a command runs, so that `isocost --help` answers at once. Exit codes: 0 done, 1 failed,
2 the request was wrong and nothing was started, 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from isocost import __version__
from isocost.errors import IsocostError

if TYPE_CHECKING:
    import pandas as pd

    from isocost.specs import StudySpec

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


def command(*examples: str, **options: Any):
    """Register a command with examples under its help."""
    return app.command(help_epilogue="Examples:\n" + "\n".join(f"  {line}" for line in examples), **options)


# --- the way through ---


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
    _answer(store, None, "paper", None, json, {"report": str(page)})
    if not json:
        _say(f"\nReport: {page}\nOpen it in a browser: {page.resolve().as_uri()}")


@command("isocost ladder sd", "isocost ladder micro --json")
def ladder(name: str = "sd", *, json: Json = False) -> None:
    """Print the members of a ladder: parameters, forward GFLOPs and normalised cost.

    For `sd` the paper's Table 1 stands beside our counts. Counted without weights, in seconds.

    Parameters
    ----------
    name
        sd (the paper's), sd-768 (Stable Diffusion 1.5's text encoder) or micro (small images).
    """
    from isocost import api

    frame = api.ladder(name)
    if json:
        _print_json(_records(frame))
        return
    from isocost.console import print_table

    print_table(frame, title=f"ladder {name}: one evaluation of one image; FLOPs = 2 x multiply-adds")


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

    spec = _study(study, set_, data)
    with shown_progress(quiet=json) as progress:
        frame = api.train(spec, store, workers, progress)
    if json:
        _print_json(_records(frame))
    else:
        print_table(frame, title=f"checkpoints of {spec.name}")


@command(
    'isocost sample runs/quickstart --member c32 --prompt "a large red circle in the centre on a blue background"',
    "isocost sample CHECKPOINT --prompt 'two small green stars' --steps 8 --guidance 2 --out stars.png",
)
def sample(
    checkpoint: Path,
    *,
    prompt: Annotated[list[str], Parameter(negative=(), help="What to draw (repeatable).")],
    member: str | None = None,
    steps: int = 20,
    sampler: str = "ddim",
    guidance: float = 2.0,
    spacing: Literal["leading", "linspace", "trailing"] = "trailing",
    eta: float = 0.0,
    replicate: int = 0,
    out: Path = Path("sample.png"),
    json: Json = False,
) -> None:
    """Draw images from a checkpoint and write them as one PNG (or one file a prompt, with {i} in --out).

    Parameters
    ----------
    checkpoint
        A checkpoint's folder, a training run's, or a store (then say which --member).
    member
        Which member of a store: c8, c16, ...
    steps
        Sampling steps, 1 to 1000.
    sampler
        ddim, ddpm, dpmpp_2m, euler or heun.
    guidance
        Classifier-free guidance scale; 1 = none.
    spacing
        How timesteps are spread.
    eta
        DDIM's eta: 0 deterministic, 1 ancestral.
    replicate
        Another number, another image of the same prompt.
    out
        Where to write.
    """
    from isocost import api
    from isocost.console import write_images

    images = api.sample(
        checkpoint,
        prompt,
        steps=steps,
        sampler=sampler,
        guidance_scale=guidance,
        spacing=spacing,
        eta=eta,
        replicate=replicate,
        member=member,
    )
    written = [str(path) for path in write_images(images, out)]
    if json:
        _print_json({"images": written})
    else:
        _say("wrote " + ", ".join(written))


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

    spec = _study(study, set_, data)
    place = store or api.default_store(spec)
    with shown_progress(quiet=json) as progress:
        api.sweep(spec, place, workers, progress)
    _answer(place, None, "paper", None, json, {"store": str(place)})
    if not json:
        _say(f"\nNext: isocost report {place}")


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
        _print_json(found.as_dict())
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
    _answer(store, budget, unit, metric, json, {}, filters)


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
        _print_json({"report": str(page)})
    else:
        _say(f"Report: {page}\nOpen it in a browser: {page.resolve().as_uri()}")


@command("isocost export runs/quickstart exported --member c32", "isocost export CHECKPOINT exported")
def export(checkpoint: Path, out: Path, *, member: str | None = None, json: Json = False) -> None:
    """Write a checkpoint as a diffusers folder with a model card; `StableDiffusionPipeline.from_pretrained` loads it.

    Parameters
    ----------
    checkpoint
        A checkpoint's folder, a training run's, or a store (then say which --member).
    out
        Folder to write; it must not exist, or be empty.
    member
        Which member of a store.
    """
    from isocost import api

    folder = api.export(checkpoint, out, member=member)
    if json:
        _print_json({"folder": str(folder)})
    else:
        _say(f'wrote {folder}\nUse it: StableDiffusionPipeline.from_pretrained("{folder}")')


@command("isocost check", "isocost check --json")
def check(*, json: Json = False) -> None:
    """List every network that isocost can use: whether its weights are here, where it looked, and what to do."""
    from isocost import api

    frame = api.check()
    if json:
        _print_json(_records(frame))
        return
    from isocost.console import print_table

    print_table(frame, title="networks")


@command("isocost env", "isocost env --json")
def env(*, json: Json = False) -> None:
    """Print versions, processor, threads, dtype and code revision: what is embedded in every score."""
    from isocost import api

    found = api.env()
    if json:
        _print_json(found)
    else:
        for name, value in found.items():
            _say(f"{name}: {value}")


# --- recipes ---

recipes = App(name="recipe", help="List recipes, write one out as YAML, or rebuild the shipped encoders.")
app.command(recipes)


@recipes.command(name="list")
def recipe_list(*, json: Json = False) -> None:
    """List the recipes."""
    from isocost.recipes import SUMMARIES

    if json:
        _print_json(SUMMARIES)
        return
    for name, summary in SUMMARIES.items():
        _say(f"{name:12} {summary}")


@recipes.command(name="show", help_epilogue="Examples:\n  isocost recipe show emoji --data shards > my.yaml")
def recipe_show(name: str, *, set_: Set = None, data: Data = None, json: Json = False) -> None:
    """Print a recipe as YAML, to be edited and given to `isocost sweep`.

    Parameters
    ----------
    name
        The recipe.
    """
    spec = _study(name, set_, data)
    if json:
        _print_json(spec.model_dump(mode="json"))
    else:
        sys.stdout.write(spec.to_yaml())


@recipes.command(name="assets", help_epilogue="Examples:\n  isocost recipe assets rebuilt --only scenes-vae")
def recipe_assets(out: Path, *, only: list[str] | None = None, json: Json = False) -> None:
    """Train the shipped encoders anew: autoencoder, both CLIPs, attribute classifier. About half an hour on two cores.

    Parameters
    ----------
    out
        Folder to write them to.
    only
        Names of those to train.
    """
    from isocost.encoders.train import train_assets

    train_assets(out, only=only)
    if json:
        _print_json({"folder": str(out)})
    else:
        _say(f"wrote {out}")


# --- the store ---

stores = App(name="store", help="Look after a folder of results.")
app.command(stores)


@stores.command(name="ls", help_epilogue="Examples:\n  isocost store ls runs/quickstart --json")
def store_ls(store: Path, *, json: Json = False) -> None:
    """List the cells of a store with their scores on all prompts."""
    from isocost import api

    frame = api.cells(store)
    if json:
        _print_json(_records(frame))
        return
    from isocost.console import print_table

    print_table(frame, title=str(store))


@stores.command(name="verify", help_epilogue="Examples:\n  isocost store verify runs/quickstart")
def store_verify(store: Path, *, json: Json = False) -> None:
    """Read every chunk and score; exit 1 and name each file that is corrupt."""
    from isocost.study.store import Store
    from isocost.study.upkeep import verify

    _outcome(verify(Store(store)), json)


@stores.command(name="merge", help_epilogue="Examples:\n  isocost store merge runs/all runs/node1 runs/node2")
def store_merge(store: Path, *others: Path, json: Json = False) -> None:
    """Copy what other stores have and this one lacks. Files are immutable, so nothing is overwritten."""
    from isocost.study.store import Store
    from isocost.study.upkeep import merge

    _outcome(merge(Store(store), [Store(other) for other in others]), json)


@stores.command(name="prune", help_epilogue="Examples:\n  isocost store prune runs/quickstart --dry-run")
def store_prune(store: Path, *, dry_run: bool = False, json: Json = False) -> None:
    """Delete what killed processes left half written, and chunks and scores of cells the study no longer has."""
    from isocost.study.store import Store
    from isocost.study.upkeep import prune

    _outcome(prune(Store(store), dry_run=dry_run), json)


@stores.command(name="compact", help_epilogue="Examples:\n  isocost store compact runs/quickstart")
def store_compact(store: Path, *, json: Json = False) -> None:
    """Rebuild the derived index of scores."""
    from isocost.study.store import Store
    from isocost.study.upkeep import compact

    _outcome(compact(Store(store)), json)


@stores.command(name="pack", help_epilogue="Examples:\n  isocost store pack runs/quickstart quickstart.tar")
def store_pack(store: Path, out: Path, *, json: Json = False) -> None:
    """Write everything in a store that is not derived as one tar, to go on elsewhere after unpacking it."""
    from isocost.study.store import Store
    from isocost.study.upkeep import pack

    _outcome(pack(Store(store), out), json)


@stores.command(
    name="publish", help_epilogue="Examples:\n  isocost store publish runs/quickstart results/quickstart-cpu"
)
def store_publish(store: Path, out: Path, *, json: Json = False) -> None:
    """Write what a repository keeps of a store: spec, scores, cells, environment and the report's figures."""
    from isocost.study.store import Store
    from isocost.study.upkeep import publish

    _outcome(publish(Store(store), out), json)


# --- shared by commands ---


def _study(reference: str, overrides: list[str] | None, data: str | None) -> StudySpec:
    from isocost import api

    arguments = {"data": data} if data is not None else {}
    return api.load_study(reference, dict(api.parse_override(text) for text in overrides or []), **arguments)


def _answer(
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

        _print_json(asdict(found) | extra)
        return
    from isocost.console import print_frontier

    if budget is None:
        print_frontier(api.frontier(store, unit, metric, filters))
    _say(found.sentence)


def _outcome(found: dict[str, Any], json: bool) -> None:
    """Print what an upkeep command did; exit 1 where it found something broken."""
    if json:
        _print_json(found)
    else:
        for name, value in found.items():
            lines = value if isinstance(value, list) else [value]
            for line in lines or ["none"]:
                _say(f"{name}: {line}")
    if found.get("corrupt"):
        sys.exit(1)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict(orient="records")  # pyright: ignore[reportReturnType]


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(_plain(value), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    """JSON's own types: numpy scalars become Python's, NaN and infinity null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return str(value) if isinstance(value, Path) else value


def _say(line: str) -> None:
    print(line)


def main(tokens: list[str] | None = None) -> None:
    """Entry point. Every error that we raise on purpose is one line on stderr and an exit code."""
    try:
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        _fail(" ".join(str(error).split()), 2)
    except IsocostError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; what was done is kept: run the same command again to go on.", 130)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1)


def _fail(message: str, code: int) -> None:
    print(f"isocost: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
