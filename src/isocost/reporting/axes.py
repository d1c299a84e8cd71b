"""Where the variance of a study's scores comes from, and what best-of-n buys, as parts of its report."""

from __future__ import annotations

from isocost.analysis.best_of import ANY, BestOf, best_of, judges_that_chose
from isocost.analysis.differences import Influence
from isocost.analysis.frames import DataFrame
from isocost.analysis.sheet import Missing
from isocost.analysis.variance import Variance, variance
from isocost.analysis.words import COST_AXES, METRICS, cost_name, metric_name, number, with_error
from isocost.errors import SpecError
from isocost.reporting.plots import Chart, Series
from isocost.reporting.section import Section


def axes(
    table: DataFrame,
    influence: Influence | None,
    metric: str,
    select_by: str | None = None,
    prompts: int | None = None,
) -> tuple[list[Section], dict[str, DataFrame]]:
    """Sections, and what they show as tables by name of file; none of either that the table has no cells for.

    `prompts`: as for `analysis.variance.variance`.
    """
    import pandas as pd

    sections, files = [], {}
    try:
        sources = variance(table, influence, metric, prompts)
        sections.append(variance_section(sources))
        files["variance.csv"] = sources.frame()
    except SpecError:  # no full grid of any two cells
        pass
    try:
        chosen = best_of(table, metric, influence, select_by)
        sections.append(best_of_section(chosen))
        files["best-of.csv"] = pd.DataFrame(chosen.rows())
    except Missing:  # no cells of best-of-n
        pass
    return sections, files


def variance_section(found: Variance) -> Section:
    """A row a source, the shares of one whole."""
    rows = tuple(
        (
            part.source.replace(" x ", " × "),
            "–" if part.share is None else f"{part.share:.1%}",
            "–" if part.interval is None else " to ".join(f"{end / found.total:.1%}" for end in part.interval),
            "–" if part.dof is None else number(part.dof),
        )
        for part in found.components
    )
    levels = "; ".join(
        f"{name}: {', '.join(_level(value) for value in values)}" for name, values in found.levels.items()
    )
    return Section(
        key="variance",
        title="Where the variance comes from",
        plots={},
        columns=("source", "share", "95% interval", "degrees of freedom"),
        rows=rows,
        sentences=(
            f"Of {metric_name(found.metric)}, for a cell drawn at random from a full grid ({levels}), trained anew and "
            f"scored on {found.n} other images.",
        ),
        note=_sentences(
            [
                *(f"{part.source}: {part.said}" for part in found.components if part.said),
                *found.notes,
                "the table is in variance.csv, beside this page",
            ]
        ),
    )


def _level(value: object) -> str:
    return number(value) if isinstance(value, (int, float)) else str(value)


def _sentences(notes: list[str]) -> str:
    return " ".join(f"{note[0].upper()}{note[1:].removesuffix('.')}." for note in notes)


def best_of_section(found: BestOf) -> Section:
    """A row a (member, cost, n), and quality against n at the costs of the group that has most, any size if there."""
    rows = tuple(
        (
            point.member,
            cost_name(point.cost, point.unit),
            str(choice.n),
            choice.use,
            with_error(choice.value, (choice.interval[1] - choice.interval[0]) / 2),
            "" if choice.gain_interval is None else " to ".join(number(end, 2) for end in choice.gain_interval),
            choice.verdict,
        )
        for point in found.at
        for choice in point.choices
    )
    names = {point.member for point in found.at}
    shown = [point for point in found.at if point.member == (ANY if ANY in names else found.at[-1].member)]
    series = tuple(
        Series(
            name=f"at most {cost_name(point.cost, point.unit)}",
            x=[choice.n for choice in point.choices],
            y=[choice.value for choice in point.choices],
            half_width=[(choice.interval[1] - choice.interval[0]) / 2 for choice in point.choices],
            text=[choice.use for choice in point.choices],
            slot=slot,
        )
        for slot, point in enumerate(shown)
    )
    counts = tuple(sorted({float(choice.n) for point in shown for choice in point.choices}))
    head = METRICS.get(found.metric.partition("[")[0], found.metric)
    chart = Chart(
        f"{head} by candidates at equal cost, {shown[0].member}",
        "candidates an image",
        metric_name(found.metric),
        series,
        x_ticks=counts,
    )
    return Section(
        key="best-of",
        title="Best of n, at equal cost",
        plots={"best-of": chart},
        columns=("", "cost per image", "n", "use", metric_name(found.metric), "gain on one image", ""),
        rows=rows,
        sentences=tuple(_sentences([sentence]) for sentence in found.sentences),
        note=_sentences(
            [
                f"At each cost ({COST_AXES[found.at[0].unit]}) the best of each n, chosen on one half of the prompts "
                "and judged on the other beside the best single image, by paired differences at 95% each",
                *judges_that_chose(found.metric, found.chosen_by),
                "the table is in best-of.csv, beside this page",
            ]
        ),
        texts=4,
    )
