"""What people see in a terminal: progress, tables, and image files. Only the CLI uses it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from isocost.analysis.words import number, with_error
from isocost.errors import DataError
from isocost.models.ladder import format_parameters

if TYPE_CHECKING:
    import pandas as pd

    from isocost.analysis.claims import Judgement, Verdict
    from isocost.models.memory import Spread
    from isocost.scoring.results import Scores
    from isocost.study.dry_run import DryRun
    from isocost.study.estimate import StageEstimate
    from isocost.study.status import Status

Report = Callable[[str, float, float, str], None]

# Where stderr is no terminal (a log file, CI) a line is written this often instead of a moving bar.
SECONDS_BETWEEN_LINES = 10
RIGHT = ("value", "plug-in", "n", "references")  # columns of numbers


@contextlib.contextmanager
def shown_progress(quiet: bool = False) -> Iterator[Report]:
    """A progress function for `isocost.api`: bars on a terminal, a line now and then in a log, nothing when quiet."""
    if quiet:
        yield lambda stage, done, total, note="": None
    elif sys.stderr.isatty():
        with _bars(Console(stderr=True)) as bars:
            yield _moving(bars)
    else:
        yield _lines()


def _moving(bars: Progress) -> Report:
    tasks: dict[str, TaskID] = {}

    def show(stage: str, done: float, total: float, note: str = "") -> None:
        if stage not in tasks:
            tasks[stage] = bars.add_task(stage, total=total, note="")
        bars.update(tasks[stage], completed=done, total=total, note=note)

    return show


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:20}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}", markup=True),
        console=console,
    )


def _lines() -> Report:
    last: dict[str, float] = {}
    start = time.monotonic()

    def show(stage: str, done: float, total: float, note: str = "") -> None:
        now = time.monotonic()
        if stage not in last or done >= total or now - last[stage] >= SECONDS_BETWEEN_LINES:
            last[stage] = now
            share = done / total if total else 1.0
            print(f"[{now - start:5.0f} s] {stage}: {share:4.0%} {note}".rstrip(), file=sys.stderr, flush=True)

    return show


def print_table(frame: pd.DataFrame, title: str = "") -> None:
    """A DataFrame as a table: numbers to four digits, nothing cut off that fits."""
    shown = Table(title=title, title_justify="left")
    for name in frame.columns:
        numeric = frame[name].dtype.kind in "iufb"
        shown.add_column(escape(str(name)), justify="right" if numeric else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        shown.add_row(*(_cell(value) for value in row))
    _console().print(shown)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return escape(str(value))  # rich would take `[fid-tf]` for a style, and drop it


def _console() -> Console:
    """Terminals keep their width; where there is none, rows are not folded at 80 columns."""
    return Console() if sys.stdout.isatty() else Console(width=160)


def print_frontier(found: dict[str, Any]) -> None:
    """The frontier of `isocost.reporting.page.summary`: a table, then what crosses where, and what to be careful of."""
    shown = Table(title=f"frontier under {found['unit']} cost", title_justify="left")
    for name in found["columns"]:
        shown.add_column(escape(name), overflow="fold")
    for row in found["rows"]:
        shown.add_row(*map(escape, row))
    _console().print(shown)
    for line in (*found["crossovers"], *found["notes"], *found["left_out"]):
        print(f"- {line}")
    print()


def print_claims(found: Judgement, disagreements: Sequence[str] = ()) -> None:
    """Claims that could be tested as a table, those that could not in lines, then what there is to know."""
    tested = [verdict for verdict in found.verdicts if not verdict.missing]
    several = len(found.studies) > 1
    if tested:
        shown = Table(title="claims of arXiv 2404.01367", title_justify="left", show_lines=True)
        for name, width in (("", 4), ("claim", 34), ("verdict", 12)):
            shown.add_column(name, width=width, overflow="fold")
        if several:
            shown.add_column("study", width=14, overflow="fold")
        shown.add_column("on what", overflow="fold")
        for verdict in tested:
            where = [escape(verdict.study)] if several else []
            shown.add_row(verdict.id, verdict.claim, verdict.verdict, *where, escape(verdict.sentence))
        _console().print(shown)
    if len(tested) < len(found.verdicts):
        print("\nNot testable here:")
    for verdict in found.verdicts:
        if verdict.missing:
            nearest = f" (nearest: {verdict.study})" if several and verdict.study else ""
            print(f"  {verdict.id:4} {verdict.claim}: needs {verdict.missing}{nearest}")
    print()
    for line in (*found.notes, *_notes(tested), *disagreements):
        print(f"- {line}")


def _notes(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Notes on claims, each once, with the claims that it is of."""
    claims: dict[str, list[str]] = {}
    for verdict in verdicts:
        for note in verdict.notes:
            claims.setdefault(note, []).append(verdict.id)
    for note, ids in claims.items():
        yield f"{', '.join(ids)}: {note.rstrip('.')}."


def print_stages(paper: str, stages: Sequence[StageEstimate], flops_a_second: float) -> None:
    """A row a stage of a paper: what it is for and what it takes, in minutes here or in hours of a GPU; then in all."""
    here = all(stage.wall_seconds is not None for stage in stages)
    shown = Table(title=f"{paper}: what its stages take", title_justify="left")
    for name in ("stage", "for", "trainings", "cells", "images", "FLOPs", "minutes here" if here else "GPU-hours", ""):
        words = name in ("stage", "for", "")
        shown.add_column(name, justify="left" if words else "right", overflow="fold")
    times = [(stage.wall_seconds or 0.0) / 60 if here else stage.flops / flops_a_second / 3600 for stage in stages]
    for stage, taken in zip(stages, times, strict=True):
        counts = [f"{count:,}" for count in (stage.runs, stage.cells, stage.images)]
        what = ", ".join(stage.figures)
        shown.add_row(stage.stage, what, *counts, f"{stage.flops:.2g}", f"{taken:,.3g}", "done" if stage.done else "")
    left = sum(taken for stage, taken in zip(stages, times, strict=True) if not stage.done)
    _console().print(shown)
    unit = (
        "minutes on this machine, whose parts were timed just now"
        if here
        else (f"GPU-hours at {flops_a_second / 1e12:.0f} TFLOP/s of the networks' own FLOPs a GPU; encoders aside")
    )
    print(f"In all {sum(times):,.0f}, of which {left:,.0f} are left: {unit}.")


def print_scores(found: Scores) -> None:
    """Values with errors, what they are of, the ranking of several sets, and what there is to say of the images."""
    several = len(found.names) > 1
    biased = any(scored.estimate.bias for scored in found.scored)
    shown = Table(title="value ± standard error" + ", less its bias" * biased, title_justify="left")
    columns = ["generated"] * several + ["metric", "value", "95% interval"] + ["plug-in"] * biased
    for name in [*columns, "n", "references", "better", "unit"]:
        shown.add_column(name, overflow="fold", justify="right" if name in RIGHT else "left")
    for scored in sorted(found.scored, key=lambda scored: found.metrics.index(scored.metric)):
        row = scored.as_row()
        value = with_error(row["value"], row["stderr"]) + ("" if row["valid"] else " †")
        cells = [row["generated"]] * several + [row["metric"], value]
        cells += [f"{number(row['low'], 4)} to {number(row['high'], 4)}"] + [number(row["plug_in"], 4)] * biased
        cells += [f"{row['n']:,}", f"{row['reference_n']:,}" if row["reference_n"] else "", row["better"], row["unit"]]
        shown.add_row(*map(escape, cells), style=None if row["valid"] else "dim")
    _console().print(shown)
    if not all(scored.estimate.valid for scored in found.scored):
        print("† too few images for the value to be trusted (a Frechet distance takes 8 a dimension)")
    for line in _identities(found):
        print(line)
    for place in found.ranking:
        if place.sentence:
            print(place.sentence)
    for notice in found.notices:
        print(f"- {notice}")


def _identities(found: Scores) -> Iterator[str]:
    """Which extractors and references, by digest, and under which protocol."""
    yield from dict.fromkeys(f"extractor {scored.extractor}" for scored in found.scored if scored.extractor)
    references: dict[str, list[str]] = {}
    for scored in found.scored:
        if scored.reference:
            name = f"reference {scored.reference[:16]} (protocol: {scored.protocol or 'none'})"
            references.setdefault(name, []).append(scored.metric)
    for name, metrics in references.items():
        yield f"{name} of {', '.join(dict.fromkeys(metrics))}"


def print_dry_run(found: DryRun) -> None:
    """A row a member: what its training takes; then the totals, and what they rest on."""
    spread = found.hardware.spread
    title = f"training {found.study}, one seed, {spread.ranks} GPU(s), {_spread(spread)}"
    shown = Table(title=title, title_justify="left")
    heads = ("member", "weights", "FLOPs", "a GPU's batch", "GB a GPU", "of them activations", "GPU-hours", "days")
    for name in (*heads, "GB a state", "GB to sample"):
        shown.add_column(name, justify="left" if name == "member" else "right", overflow="fold")
    for member in found.members:
        memory = member.memory
        shown.add_row(
            member.member,
            format_parameters(member.parameters),
            f"{member.flops:.3g}",
            f"{member.micro_batch}",
            *(f"{size / 1e9:,.4g}" for size in (memory.total, memory.activations)),
            f"{member.gpu_hours:,.4g}",
            f"{member.days:,.3g}",
            *(f"{size / 1e9:,.3g}" for size in (member.state_bytes, member.ema_bytes)),
        )
    _console().print(shown)
    first, totals = found.members[0], found.totals
    print(f"{first.images:,} images a member in {first.steps:,} steps; {found.seeds} seed(s)")
    print(
        f"in all: {totals['flops']:.3g} FLOPs, {totals['gpu_hours']:,.4g} GPU-hours, {totals['days']:,.3g} days one "
        f"after another, {totals['disk_bytes'] / 1e9:,.4g} GB of checkpoints"
    )
    print(f"latents {found.latent_size}x{found.latent_size}, {found.context_length} tokens a caption")
    for line in found.assumptions:
        print(f"- assumed: {line}")


def _spread(spread: Spread) -> str:
    words = {"none": "not sharded", "fsdp": "fsdp", "hsdp": f"hsdp over {spread.shards}"}[spread.sharding]
    return words + ", activations recomputed" * spread.checkpoint_activations


def print_status(found: Status) -> None:
    """One line a run, then the sweep's counts."""
    print(f"{found.study} in {found.store}")
    for run in found.members:
        print(f"  {run['member']:6} seed {run['seed']}: {run['images_seen']:,} of {run['images']:,} images seen")
    if found.cells is None:
        print("  cells: known once the members are trained")
    else:
        if found.smaller_batches:
            print(f"  cells that go on at a smaller batch, as memory ran out: {found.smaller_batches}")
        if found.search:
            print(f"  search: {found.search['images']['search']:,} images, doubt {found.search['doubt']:.2f}")
        print(f"  chunks: {found.chunks_done} of {found.chunks_wanted}; cells scored: {found.scored} of {found.cells}")
    print("finished" if found.finished else "not finished: `isocost sweep` goes on from here")


def write_images(images: np.ndarray, out: Path) -> list[Path]:
    """One PNG with the images [n, H, W, 3] side by side, or one a file where `out` holds `{i}`.

    Raises:
        DataError: the file cannot be written.
    """
    from PIL import Image

    if "{i}" in out.name:
        files = {out.with_name(out.name.replace("{i}", str(i))): image for i, image in enumerate(images)}
    else:
        files = {out: np.concatenate(list(images), axis=1)}
    for path, image in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot write the image: {error}") from None
    return list(files)
