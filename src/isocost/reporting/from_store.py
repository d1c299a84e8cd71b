"""A store's report: its table, the image strips worth looking at, and the page that shows them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isocost.analysis.cells import PLAIN, Cells, best_guidance, members_by_size
from isocost.analysis.distillation import STEPS, students, undistilled
from isocost.analysis.words import full_label, guidance_name, number, sampler_name, steps_name
from isocost.data.pairs import enlarged
from isocost.environment import environment
from isocost.files import atomic_write
from isocost.reporting.axes import axes
from isocost.reporting.distillation import distillation
from isocost.reporting.downstream import downstream
from isocost.reporting.dreambooth import write_dreambooth
from isocost.reporting.figures import attribute_name
from isocost.reporting.interpolation import interpolation, ways_by_size
from isocost.reporting.page import report
from isocost.reporting.paper import matplotlib_figure, paper_figures, save
from isocost.reporting.plots import spread
from isocost.reporting.section import Section
from isocost.reporting.strips import Strip
from isocost.reporting.superres import superres
from isocost.reporting.verdicts import verdicts
from isocost.runlog import read_log
from isocost.scoring.lowres import LowResolution
from isocost.specs import DISTILLED
from isocost.study import run, tables
from isocost.study.adaptive import in_words
from isocost.study.grid import Cell, columns
from isocost.study.run import Trained
from isocost.study.store import Store
from isocost.training.lineage import training_gflops

PROMPTS_SHOWN, GUIDANCE_SHOWN = 8, 8


def write(store: Store, folder: Path, metric: str | None = None) -> Path:
    """Write `folder`/report.html and `folder`/figures, from what the store holds; images of strips are made if missing.

    Raises:
        StoreError: no study there, members not trained, or nothing scored.
    """
    if store.study().dreambooth is not None:
        return write_dreambooth(store, folder, metric)
    trained = run.opened(store)
    table = tables.table(store)
    select_by = tables.metric_label(store, trained.study.evaluation.select_by)
    metric = tables.metric_label(store, metric) if metric else select_by
    cells = best_guidance(table, metric, select_by)
    strips = study_strips(trained, cells) if trained.pairs is None else crops_by_size(trained, cells)
    sections = [interpolation(table)] if trained.study.evaluation.between else []
    strips = ways_by_size(trained, store) if sections else strips
    if cells.plain["objective"].isin(DISTILLED).any():
        sections.append(distillation(table, cells, store.influence))
        strips |= distilled_strips(trained, cells)
    sections += since_start(trained, cells)
    for section in sections:
        for name, plot in section.plots.items():
            save(matplotlib_figure(plot), folder / "figures", name)
    baselines = read_baselines(store)
    paper_figures(table, cells, folder / "figures", baselines, strips)
    upscaled = superres(table, tables.frames(store)) if trained.pairs is not None else None
    for name, plot in (upscaled.plots if upscaled else {}).items():
        save(matplotlib_figure(plot), folder / "figures", name)
    of_axes, files = axes(table, store.influence, metric, select_by, tables.report_prompts(trained.study))
    for name, frame in files.items():
        with atomic_write(folder / name) as file:
            file.write(frame.to_csv(index=False).encode())
    for section in of_axes:
        for name, plot in section.plots.items():
            save(matplotlib_figure(plot), folder / "figures", name)
    return report(
        table,
        study=trained.study,
        folder=folder,
        metric=metric,
        strips={title: strip for title, strip in strips.values()},
        accuracy_baselines=baselines,
        environment=environment(),
        influence=store.influence,
        select_by=select_by,
        losses=training_losses(trained),
        search=in_words(found) if (found := store.search()) else None,
        superres=upscaled,
        sections=[*sections, *of_axes, *verdicts(table, store.influence, select_by)],
    )


def since_start(trained: Trained, cells: Cells) -> list[Section]:
    """Members beside what they started from, where that study's scores are still where they were."""
    base = trained.study.start_from
    if base is None or not (Path(base) / "index.parquet").is_file():
        return []
    store = Store(base)
    before = best_guidance(tables.table(store), tables.metric_label(store, store.study().evaluation.select_by))
    section = downstream(before, cells)
    return [section] if section else []


def training_losses(trained: Trained) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Member -> (training GFLOPs so far, loss) of every step of its log; of each seed, where there are several."""
    finals = {
        checkpoint.folder.parents[1]: checkpoint
        for checkpoint in trained.checkpoints
        if checkpoint.seed is not None and not checkpoint.undistilled
    }
    several = len({checkpoint.seed for checkpoint in finals.values()}) > 1
    counted = {  # with the cells: to count is to build the networks
        row["checkpoint"]: row["train_gflops"]
        for row in trained.store.expansion()["cells"]
        if row["train_gflops"] and not row["guide"]
    }
    found = {}
    for folder, checkpoint in finals.items():
        lines = read_log(folder)
        name = f"{checkpoint.name}, seed {checkpoint.seed}" if several else checkpoint.name
        seen, loss = (np.array([line[key] for line in lines], float) for key in ("images_seen", "loss"))
        assert checkpoint.trained is not None
        gflops = counted.get(checkpoint.ref.content_digest) or training_gflops(checkpoint.trained)[0]
        found[name] = gflops / checkpoint.ref.images_seen * seen, loss
    return found


def read_baselines(store: Store) -> dict[str, dict[str, float]]:
    """Attribute -> chance, ceiling and real-image accuracy, where the study measured them."""
    path = store.path / "baselines.json"
    measured = json.loads(path.read_text()).get("levels", {}) if path.is_file() else {}
    return {attribute_name(metric): levels for metric, levels in measured.items()}


def study_strips(trained: Trained, cells: Cells) -> dict[str, tuple[str, Strip]]:
    """File name -> (title, strip) of plain plans: size by prompt (Fig. 1), guidance (Fig. 7), equal cost (Fig. 10)."""
    if cells.plain.empty:
        return {}
    shown = Pictures(trained)
    first = trained.study.grid.samplers[0]
    sampler = first if (cells.plain["sampler"] == first).any() else cells.plain["sampler"].iloc[0]
    rows = cells.plain[cells.plain["sampler"] == sampler]
    members = members_by_size(rows)
    strips = {"size": ("Every size at its most steps and best guidance (as Fig. 1)", by_size(shown, rows))}
    for place in dict.fromkeys((0, -1)):
        member = members[place]
        strips[f"guidance-{member}"] = (f"Guidance, {member} (as Fig. 7)", by_guidance(shown, member, sampler))
    equal = equal_cost(shown, rows, members[-1])
    if equal is not None:
        strips["equal-cost"] = ("About equal paper cost (as Fig. 10)", equal)
    return strips


def crops_by_size(trained: Trained, cells: Cells) -> dict[str, tuple[str, Strip]]:
    """Crops upscaled by every size at its most steps, between what they are given and what they should be (Fig. 5, 18).

    One strip at the most steps, and one at the fewest.
    """
    assert trained.pairs is not None
    shown, pairs = Pictures(trained), LowResolution(trained.pairs)
    keys = [trained.prompts.at(place)[0].text for place in range(shown.count)]
    given, targets = np.stack([enlarged(low) for low in pairs.low(keys)]), pairs.high(keys)
    rows: Any = cells.rows[cells.rows["images_seen"] == cells.rows["images_seen"].max()]
    strips = {}
    for name, which in (("most", "idxmax"), ("fewest", "idxmin")):
        at = rows.loc[getattr(rows.groupby("member")["steps"], which)()].sort_values("params")
        labels = ["given: bicubic", *(full_label(row) for row in at.to_dict("records")), "target"]
        made = [shown.of(shown.by_key[key]) for key in at["sample_key"]]
        strip = Strip(
            np.stack([given, *made, targets]), tuple(keys), tuple(labels), "Same crops and noise in every row."
        )
        strips[f"crops-{name}-steps"] = (f"Crops by size, {name} steps (as Fig. 5 and 18)", strip)
    return strips


def distilled_strips(trained: Trained, cells: Cells) -> dict[str, tuple[str, Strip]]:
    """Each size distilled beside undistilled, at about equal cost (as Fig. 20) and at equal steps."""
    if trained.pairs is not None:
        return {}
    shown, after, before = Pictures(trained), students(cells), undistilled(cells)
    strips = {}
    for name, what in (("cost", "gflops_per_image"), ("steps", "steps")):
        rows = []
        for member in members_by_size(after):
            student = nearest(after[after["member"] == member], "steps", STEPS)
            rows += [nearest(before[before["member"] == member], what, student[what]), student]
        labels = [f"{full_label(row)}, {number(row['gflops_per_image'])} GFLOPs" for row in rows]
        picked = [shown.by_key[row["sample_key"]] for row in rows]
        strip = shown.rows(picked, labels, "Undistilled over distilled, size by size; same prompts and starting noise.")
        strips[f"distilled-equal-{name}"] = (f"Distilled beside undistilled at about equal {name} (as Fig. 20)", strip)
    return strips


def nearest(rows: pd.DataFrame, column: str, value: float) -> dict[str, Any]:
    """The row whose value in a column is the nearest by ratio."""
    away: Any = rows[column].astype(float) / value
    return rows.loc[np.log(away).abs().idxmin()].to_dict()


class Pictures:
    """Images of a study's cells under its strip prompts, and the captions over their columns."""

    def __init__(self, trained: Trained):
        self.trained = trained
        self.prompts = run.strip_prompts(trained.study)
        self.count = min(PROMPTS_SHOWN, self.prompts.period or PROMPTS_SHOWN)
        self.captions = tuple(self.prompts.at(place)[0].text for place in range(self.count))
        self.by_key = {cell.key.digest: cell for cell in trained.cells}

    def of(self, cell: Cell) -> np.ndarray:
        """uint8 [count, H, W, 3]."""
        return run.strip(self.trained, cell, self.prompts, self.count)

    def rows(self, cells: Sequence[Cell], labels: Sequence[str], caption: str) -> Strip:
        return Strip(of_one_size([self.of(cell) for cell in cells]), self.captions, tuple(labels), caption)


def of_one_size(rows: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 [rows, count, H, W, 3] of rows [count, h, w, 3], each brought to the largest's size."""
    from PIL import Image

    height, width = max(row.shape[1:3] for row in rows)

    def enlarged(image: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    return np.stack([row if row.shape[1:3] == (height, width) else np.stack(list(map(enlarged, row))) for row in rows])


def by_size(shown: Pictures, rows: pd.DataFrame) -> Strip:
    """A row a member, at its most steps and the guidance chosen there."""
    most = rows.loc[rows.groupby("member")["steps"].idxmax()].sort_values("params")
    cells = [shown.by_key[key] for key in most["sample_key"]]
    labels = [full_label(row) for row in most.to_dict("records")]
    return shown.rows(cells, labels, "Same prompts and same starting noise in every row.")


def by_guidance(shown: Pictures, member: str, sampler: str) -> Strip:
    """A row a guidance scale, one member at its most steps."""
    cells = [
        cell
        for cell in shown.trained.cells
        if not cell.curve and _as_plain(cell) | PLAIN | {"member": member, "sampler": sampler} == _as_plain(cell)
    ]
    steps = max(cell.plan.steps for cell in cells)
    chosen = sorted((c for c in cells if c.plan.steps == steps), key=lambda cell: cell.plan.guidance.scale)
    of_one = {cell.plan.guidance.scale: cell for cell in chosen if cell.checkpoints == chosen[0].checkpoints}
    of_one = [of_one[scale] for scale in spread(list(of_one), GUIDANCE_SHOWN)]
    labels = [guidance_name(cell.plan.guidance.scale) for cell in of_one]
    what = f"{member} with {sampler_name(columns(of_one[0]))}, {steps_name(steps)}"
    return shown.rows(of_one, labels, f"{what}; same prompts and noise in every row.")


def _as_plain(cell: Cell) -> dict[str, Any]:
    """A cell's columns; a scale that its checkpoint embeds is plain guidance, as in `plain`."""
    row = columns(cell)
    return row | {"guidance_mode": PLAIN["guidance_mode"]} if row["guidance_mode"] == "embedded" else row


def equal_cost(shown: Pictures, rows: pd.DataFrame, largest_member: str) -> Strip | None:
    """Each member with the most steps within one budget: what the largest member pays for 2 steps or more."""
    largest = rows[(rows["member"] == largest_member) & (rows["steps"] >= 2)]
    if largest.empty:
        return None
    budget: Any = largest["paper_cost"].min()
    within = rows[rows["paper_cost"] <= budget * 1.001]
    chosen = within.loc[within.groupby("member")["steps"].idxmax()].sort_values("params")
    labels = [f"{full_label(row)}, cost {number(row['paper_cost'], 2)}" for row in chosen.to_dict("records")]
    picked = [shown.by_key[key] for key in chosen["sample_key"]]
    return shown.rows(picked, labels, f"At most {number(budget, 2)} units of the paper's cost an image.")
