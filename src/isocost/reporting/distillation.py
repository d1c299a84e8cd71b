"""The figures, table and strips of a study that distils its members (arXiv 2404.01367, Fig. 13, 19 and 20)."""

from __future__ import annotations

from typing import Any

from isocost.analysis.cells import Z95, Cells, members_by_size
from isocost.analysis.differences import Influence
from isocost.analysis.distillation import STEPS, Gain, at_equal_cost, gains, speed_ups, students, undistilled
from isocost.analysis.frames import DataFrame
from isocost.analysis.words import COST_AXES, full_label, listed, metric_name, number, steps_name, with_error
from isocost.reporting.plots import Chart, Series
from isocost.reporting.section import Section
from isocost.specs import DISTILLED


def distillation(table: DataFrame, cells: Cells, influence: Influence | None = None) -> Section:
    """From a study's table, and its cells at their best guidance."""
    found = gains(cells, influence)
    plots = {"fig13-by-size": by_size(cells), "fig13-by-cost": by_cost(cells), "kept": kept(table, cells)}
    rows = [
        (
            gain.member, str(int(gain.student["steps"])), *map(_valued, (gain.other, gain.student)),
            with_error(gain.gain, gain.half_width), gain.verdict,
            *(number(float(cell["gflops_per_image"])) for cell in (gain.other, gain.student)),
        )
        for gain in found
    ]  # fmt: skip
    name = metric_name(cells.metric)
    columns = (
        "", "steps", f"{name} before", "distilled", "gain", "", "GFLOPs before", "distilled",
    )  # fmt: skip
    return Section(
        key="distillation",
        title="Distillation",
        plots={key: plot for key, plot in plots.items() if plot is not None},
        columns=columns,
        rows=tuple(rows),
        sentences=(*_in_words(cells, influence), *_best_kept(table, cells)),
        note="± is a 95% interval; differences are paired on the same prompts and noise, at the guidance that the "
        "other half of the prompts chose.",
    )


def by_size(cells: Cells) -> Chart:
    """Fig. 13, left: quality against size, one curve a number of steps; of students 4, or what is nearest."""
    after, before = students(cells), undistilled(cells)
    few = min(after["steps"].unique(), key=lambda steps: abs(steps - STEPS))
    series = [_curve("distilled, " + steps_name(int(few)), after[after["steps"] == few], "params", 0)]
    for slot, (steps, rows) in enumerate(before.groupby("steps"), 1):
        name = "undistilled, " + steps_name(int(str(steps)))
        series.append(_curve(name, rows, "params", slot, dash=1))
    title = "Distilled and undistilled by size (as Fig. 13, left)"
    return Chart(title, "parameters", metric_name(cells.metric), tuple(series))


def by_cost(cells: Cells) -> Chart:
    """Fig. 13, right: quality against sampling cost, guidance's evaluations counted, one curve a size."""
    after, before, series = students(cells), undistilled(cells), []
    for slot, member in enumerate(members_by_size(after)):
        for dash, (name, rows) in enumerate((("distilled", after), ("undistilled", before))):
            part = rows[rows["member"] == member].sort_values("gflops_per_image")
            if len(part):
                series.append(_curve(f"{member} {name}", part, "gflops_per_image", slot, dash))
    title = "Quality against sampling cost, distilled and not (as Fig. 13, right)"
    return Chart(title, COST_AXES["gflops"], metric_name(cells.metric), tuple(series))


def kept(table: DataFrame, cells: Cells) -> Chart | None:
    """Quality of each checkpoint that training kept: whether longer training blurs. All prompts; nothing is chosen."""
    rows = _kept(table, cells, "all")
    if rows.empty:
        return None
    series = [
        _curve(member, rows[rows["member"] == member].sort_values("images_seen"), "images_seen", slot)
        for slot, member in enumerate(members_by_size(rows))
    ]
    title = "Students by images seen in distillation"
    return Chart(title, "images seen", metric_name(cells.metric), tuple(series))


def _kept(table: DataFrame, cells: Cells, split: str) -> DataFrame:
    rows = table[table["curve"].astype(bool) & (table["metric"] == cells.metric) & (table["split"] == split)]
    return rows[rows["objective"].isin(DISTILLED)]


def _curve(name: str, rows: DataFrame, x: str, slot: int, dash: int = 0) -> Series:
    text = [full_label(row) for row in rows.to_dict("records")]
    half = [Z95 * float(error) for error in rows["stderr"]]
    xs, ys = list(map(float, rows[x])), list(map(float, rows["value"]))
    return Series(name, xs, ys, half, text=text, slot=slot, dash=dash)


def _valued(cell: dict[str, Any]) -> str:
    guidance = number(float(cell["guidance_scale"]))
    return f"{with_error(float(cell['value']), Z95 * float(cell['stderr']))} (x{guidance})"


def _in_words(cells: Cells, influence: Influence | None) -> list[str]:
    """Speed-ups, equal cost, the best number of steps, and what distillation itself cost."""
    found = [speed_up.sentence for speed_up in speed_ups(cells, influence)]
    for gain in at_equal_cost(cells, influence):
        rival = full_label(gain.other | {"checkpoint": gain.other["member"]})
        how = {"ties": "ties with", "better": "is better than", "worse": "is worse than"}[gain.verdict]
        found.append(
            f"{gain.member} distilled at {steps_name(int(gain.student['steps']))} {how} the best undistilled cell that "
            f"costs no more, {rival}: by {with_error(gain.gain, gain.half_width)}."
        )
    after = students(cells)
    best = after.loc[(cells.sign * after["selection_value"]).groupby(after["member"], sort=False).idxmin()]
    said = listed((f"{row['member']} {int(row['steps'])}" for row in best.to_dict("records")), most=9)
    found.append(f"Best numbers of steps of the students, by the selection half: {said}.")
    found += [sentence for gain in gains(cells, influence) if (sentence := _paid_back(gain))]
    return list(dict.fromkeys(found))


def _paid_back(gain: Gain) -> str | None:
    """After how many images a student of 4 steps has saved what its distillation took."""
    saved = gain.other["gflops_per_image"] - gain.student["gflops_per_image"]
    own, in_all = (gain.student.get(name) for name in ("train_gflops", "total_train_gflops"))
    if gain.student["steps"] != STEPS or own is None or in_all is None or not in_all > own:
        return None
    share = f"{gain.member}: distillation took {number(own / 1e3)} TFLOPs, {own / (in_all - own):.0%} of its teacher's"
    after = f"; at equal steps it is paid back after {number(own / saved, 2)} images" if saved > 0 else ""
    return f"{share}, {number(in_all / 1e3)} in all{after}."


def _best_kept(table: DataFrame, cells: Cells) -> list[str]:
    """Which of a student's checkpoints the selection half calls best, and whether that is the last."""
    rows, found = _kept(table, cells, "selection"), []
    for member in members_by_size(rows) if len(rows) else []:
        own = rows[rows["member"] == member]
        best: Any = own.loc[(cells.sign * own["value"]).idxmin()]
        last = "the last" if best["images_seen"] == own["images_seen"].max() else "not the last"
        images = number(float(best["images_seen"]), 6)
        found.append(
            f"{member}: of {own['images_seen'].nunique()} checkpoints kept, that at {images} images is best, {last}."
        )
    return found
