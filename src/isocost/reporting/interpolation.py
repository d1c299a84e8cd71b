"""The figures, table and strips of a study of the ways between captions (arXiv 2404.01367, Fig. 24).

Nothing is chosen in such a study but the guidance scale, which the table tells apart, so all ways count.
"""

from __future__ import annotations

import numpy as np

from isocost.analysis.cells import Z95, members_by_size
from isocost.analysis.frames import DataFrame
from isocost.analysis.words import metric_name, number, with_error
from isocost.reporting.plots import Chart, Series
from isocost.reporting.section import Section
from isocost.reporting.strips import Strip
from isocost.scoring.metrics import METRICS
from isocost.study.run import Trained
from isocost.study.scores import SPLITS
from isocost.study.store import Store

BY_WEIGHT = ("coherence", "attribute-coherence")
SMOOTHNESS = ("path-length", "detour", "largest-jump")
PAIRS_SHOWN = 3


def interpolation(table: DataFrame) -> Section:
    """From a study's table: coherence by weight, one curve a size, and all numbers by size and guidance."""
    cells = table[table["split"] == SPLITS[-1]]
    families = cells["metric"].str.partition("[")[0]
    plots = {}
    for scale, of_scale in cells.groupby("guidance_scale"):
        for family in BY_WEIGHT:
            chart = by_weight(of_scale, family)
            if chart is not None:
                plots[f"{family}-{scale:g}"] = chart
    metrics = list(dict.fromkeys(cells.loc[families.isin([*BY_WEIGHT, *SMOOTHNESS]), "metric"]))
    rows = []
    for (_, member, scale), part in cells.groupby(["params", "member", "guidance_scale"]):
        of_metric = part.drop_duplicates("metric").set_index("metric")
        values = [with_error(float(value), Z95 * float(error)) for value, error in zip(
            of_metric.loc[metrics, "value"], of_metric.loc[metrics, "stderr"], strict=True)]  # fmt: skip
        rows.append((str(member), number(float(scale)), *values))
    count = int(cells.loc[cells["metric"].isin(metrics), "n"].max())
    return Section(
        key="interpolation",
        title="Between two captions",
        plots=plots,
        columns=("", "guidance", *map(metric_name, metrics)),
        rows=tuple(rows),
        note=f"± is a 95% interval over {count} ways, each between two captions of its own. Coherence is of images "
        "strictly between the ends; distances are of features scaled to length 1.",
    )


def by_weight(cells: DataFrame, family: str) -> Chart | None:
    """Coherence against the weight of the first caption, one curve a size; None where the metric is not there."""
    rows = cells[cells["metric"].str.startswith(f"{family}/")]
    if rows.empty:
        return None
    weights = rows["metric"].str.partition("[")[0].str.partition("/")[2].astype(float)
    rows = rows.assign(weight=weights).sort_values("weight")
    series = []
    for slot, member in enumerate(members_by_size(rows)):
        means = rows[rows["member"] == member].groupby("weight").agg({"value": "mean", "stderr": "mean"})
        half = [Z95 * float(error) for error in means["stderr"]]
        x, y = list(map(float, means.index)), list(map(float, means["value"]))
        series.append(Series(member, x, y, half, slot=slot))
    scale = number(float(rows["guidance_scale"].iloc[0]))
    name = {"coherence": "Coherence", "attribute-coherence": "Attributes of either end"}[family]
    unit = METRICS[family].unit
    title = f"{name} by weight, guidance {scale}"
    return Chart(title, "weight of the first caption", f"{name} ({unit})", tuple(series), log_x=False)


def ways_by_size(trained: Trained, store: Store) -> dict[str, tuple[str, Strip]]:
    """File name -> (title, strip): the first ways at the strongest guidance, a row a size (Fig. 24)."""
    between, evaluation = trained.study.evaluation.between, trained.study.evaluation
    assert between is not None
    if not evaluation.keep_images:
        return {}
    scale = max(cell.plan.guidance.scale for cell in trained.cells)
    cells = [cell for cell in trained.cells if cell.plan.guidance.scale == scale and not cell.curve]
    cells.sort(key=lambda cell: cell.work)
    strips = {}
    places = [(trained.prompts.at(place)[0].way, place) for place in range(evaluation.images)]
    for number_of_way in range(min(PAIRS_SHOWN, evaluation.images // len(between.alphas))):
        on_it = sorted(
            ((way, place) for way, place in places if way is not None and way.number == number_of_way),
            key=lambda found: -found[0].weight,
        )
        images = np.stack([[_image(store, cell.sample_key, place, cell.key.engine.batch) for _, place in on_it]
                           for cell in cells])  # fmt: skip
        way = on_it[0][0]
        strip = Strip(
            images,
            tuple(f"{found.weight:g}" for found, _ in on_it),
            tuple(cell.label for cell in cells),
            f"From “{way.first.text}” to “{way.second.text}”: the same noise in every image.",
        )
        name = "ways" if number_of_way == 0 else f"ways-{number_of_way + 1}"
        strips[name] = (f"Between two captions, {way.path} (as Fig. 24)", strip)
    return strips


def _image(store: Store, sample_key: str, place: int, batch: int) -> np.ndarray:
    images = store.read_chunk(sample_key, place // batch).images
    assert images is not None
    return images[place % batch]
