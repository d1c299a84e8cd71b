"""The figures, table and strips of a study of DreamBooth (arXiv 2404.01367, Fig. 6, and what it has no numbers for).

Nothing is chosen in such a study, so all images count. What a member was before it was tuned, and what it is without
images of the class, stand beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isocost.analysis.cells import Z95, best_guidance
from isocost.analysis.frames import DataFrame
from isocost.analysis.words import metric_name, with_error
from isocost.environment import environment
from isocost.reporting.page import report
from isocost.reporting.paper import matplotlib_figure, paper_figures, save
from isocost.reporting.plots import Chart, Series
from isocost.reporting.section import Section
from isocost.reporting.strips import Strip
from isocost.study import dreambooth, tables
from isocost.study.dreambooth import ALONE, PRESERVED, UNTUNED, Group, Opened
from isocost.study.store import Store

HOWS = {
    UNTUNED: "as it was",
    PRESERVED: "tuned, its prior preserved",
    ALONE: "tuned on the pictures alone",
}
CLASS_SHOWN = 8


def write_dreambooth(store: Store, folder: Path, metric: str | None = None) -> Path:
    """Write `folder`/report.html and `folder`/figures from what the store holds; returns the page's path.

    Raises `StoreError` where there is nothing scored.
    """
    table, frames = tables.table(store), tables.frames(store)
    opened, tunings = dreambooth.opened(store)
    select_by = tables.metric_label(store, opened.study.evaluation.select_by)
    metric = tables.metric_label(store, metric) if metric else select_by
    cells = best_guidance(table, metric, select_by)
    strips = strips_of(opened, dreambooth.groups(opened, tunings))
    section = subjects(table, frames, opened.token)
    paper_figures(table, cells, folder / "figures", None, strips)
    for name, plot in section.plots.items():
        save(matplotlib_figure(plot), folder / "figures", name)
    return report(
        table,
        study=opened.study,
        folder=folder,
        metric=metric,
        strips=dict(strips.values()),
        environment=environment(),
        influence=store.influence,
        select_by=select_by,
        sections=[section],
    )


def subjects(table: DataFrame, frames: DataFrame, token: str) -> Section:
    """From a study's table and what stands beside its cells: every metric by size, and all of it as a table."""
    both = pd.concat([table, frames], ignore_index=True)
    rows: Any = both[both["split"] == "all"]
    metrics = list(dict.fromkeys(table["metric"]))
    plots = {f"dreambooth-{metric.partition('[')[0]}": by_size(rows, metric) for metric in metrics}
    lines = []
    for (_, member), of_member in rows.groupby(["params", "member"]):
        for how, words in HOWS.items():
            found = of_member[of_member["how"] == how].groupby("metric")[["value", "stderr"]].mean()
            if len(found):
                pairs = found.loc[metrics].to_numpy(float)
                values = [with_error(value, Z95 * error) for value, error in pairs]
                lines.append((str(member), words, *values))
    count = int(rows["n"].min())
    return Section(
        key="dreambooth",
        title="DreamBooth",
        plots=plots,
        columns=("", "", *map(metric_name, metrics)),
        rows=tuple(lines),
        note=f"± is a 95% interval over {count} subjects, each taught by itself; “{token}” is the word that means it. "
        "similarity: drawn images beside the subject's pictures (CLIP-I, DINO), higher is better. clip (CLIP-T) and "
        "accuracy: how well they show the rest of their prompt. pres: images of the class beside the pictures, lower "
        "is better. div: how unlike two images of one prompt are. kid: how far images of the class have moved.",
        texts=2,
    )


def by_size(rows: DataFrame, metric: str) -> Chart:
    """A metric against size, one curve a way of tuning."""
    series = []
    for slot, (how, words) in enumerate(HOWS.items()):
        part = rows[(rows["metric"] == metric) & (rows["how"] == how)]
        if part.empty:
            continue
        means = part.groupby("params", sort=True).agg({"value": "mean", "stderr": "mean", "member": "first"})
        half = [Z95 * float(error) for error in means["stderr"]]
        x, y = list(map(float, means.index)), list(map(float, means["value"]))
        series.append(Series(words, x, y, half, text=list(map(str, means["member"])), slot=slot))
    name = metric_name(metric)
    return Chart(f"{name} by size", "parameters", name, tuple(series))


def strips_of(opened: Opened, groups: list[Group]) -> dict[str, tuple[str, Strip]]:
    """File name -> (title, strip): each subject by every size (Fig. 6), and its class before and after."""
    found = {}
    for place, one in enumerate(opened.subjects):
        columns = tuple(one.drawn.at(prompt)[0].text for prompt in range(len(one.plain)))
        shown = _padded(one.pictures, len(columns))
        rows = [shown, *(_images(opened, group, place, 0, len(columns)) for group in groups)]
        labels = ["the pictures", *(f"{group.member} {HOWS[group.how]}" for group in groups)]
        title = f"{one.name}, a {one.subject.noun}: every size, before and after (as Fig. 6)"
        caption = f"Taught from {len(one.pictures)} pictures, as “{one.captions[0]}”. Same noise in every row."
        found[f"subject-{one.name}"] = title, Strip(np.stack(rows), columns, tuple(labels), caption)
    rows = [_images(opened, group, 0, 1, CLASS_SHOWN) for group in groups]
    labels = [f"{group.member} {HOWS[group.how]}" for group in groups]
    first = opened.subjects[0]
    columns = tuple(first.of_class.at(place)[0].text for place in range(CLASS_SHOWN))
    title = f"Any {first.subject.noun}, before and after learning {first.name}"
    found["class"] = title, Strip(np.stack(rows), columns, tuple(labels), "Same noise in every row.")
    return found


def _images(opened: Opened, group: Group, place: int, which: int, count: int) -> np.ndarray:
    """The first images of a group's subject (which 0), or of its class (1)."""
    sets = dreambooth.subject_sets(opened, group.checkpoints[place], opened.subjects[place])
    return dreambooth.images_of(opened, sets[which])[:count]


def _padded(images: np.ndarray, count: int) -> np.ndarray:
    """`count` images: the first, or all and then white ones."""
    white = np.full((max(0, count - len(images)), *images.shape[1:]), 255, np.uint8)
    return np.concatenate([images, white])[:count]
