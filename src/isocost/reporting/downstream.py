"""Members before and after fine-tuning: does the better start become the better end? (arXiv 2404.01367, section 3.2)"""

from __future__ import annotations

from isocost.analysis.cells import Z95, Cells
from isocost.analysis.downstream import before_and_after, rank_correlation
from isocost.analysis.words import metric_name, with_error
from isocost.reporting.plots import Chart, Series
from isocost.reporting.section import Section


def downstream(before: Cells, after: Cells) -> Section | None:
    """A figure, a table and the rank correlation; None where no member is in both."""
    rows = before_and_after(before, after)
    if rows.empty:
        return None
    names = [f"{metric_name(cells.metric)} {when}" for cells, when in ((before, "before"), (after, "after"))]
    series = [
        Series(
            str(row["member"]),
            (float(row["before_value"]),),
            (float(row["after_value"]),),
            (Z95 * float(row["after_stderr"]),),
            slot=slot,
        )
        for slot, row in enumerate(rows.to_dict("records"))
    ]
    table = [
        (
            str(row["member"]),
            with_error(row["before_value"], Z95 * row["before_stderr"]),
            with_error(row["after_value"], Z95 * row["after_stderr"]),
            str(row["after_steps"]),
        )
        for row in rows.to_dict("records")
    ]
    ticks = tuple(sorted(float(f"{value:.3g}") for value in rows["before_value"]))
    found = rank_correlation(rows)
    sentence = "Fewer than three members are in both: no rank correlation."
    if found is not None:
        verdict = "" if found.decided else ", which does not tell them from unrelated ones"
        sentence = (
            f"Rank correlation of quality before and after fine-tuning over {found.members} members: "
            f"{found.rho:.2f} ({found.low:.2f} to {found.high:.2f} where scores move by their errors){verdict}."
        )
    chart = Chart("After fine-tuning against before", names[0], names[1], tuple(series), x_ticks=ticks)
    return Section(
        key="downstream",
        title="Before and after fine-tuning",
        plots={"downstream": chart},
        columns=("", *names, "steps"),
        rows=tuple(table),
        sentences=(sentence,),
        note="Each member at the best of its cells, chosen on one half of the prompts; values are the other half's.",
    )
