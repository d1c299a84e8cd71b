"""Adaptive search replayed over a finished study, beside full search: the same answer, with how many images?

    python benchmarks/search.py STORE [--seeds 10] [--confidence 0.95] [--pilot 2] [--all-grids] [--out FOLDER]

STORE holds a study whose cells were all made, with the features of every image. Each seed shuffles the prompts, so that
another prefix comes first, and searches anew. The search asks for images as it would of a sampler, in chunks of the
study's batch, and can see only what it has paid for: `Replay` refuses any other look.

Like is compared with like. Both searches choose on the selection half of the prompts. Full search chooses, at every
budget, the cell of the least value on all of its images; the adaptive one the cell that it believes to be that.
`regret` is by how large a share of full search's value the chosen cell's is above it, on all images of the selection
half, at the worst budget: never negative. `tie`: the 95% interval of the paired difference of the two cells holds 0, on
the report half, which neither search saw. A seed is good where at every budget both chose the same cell or tie, and
regret is at most the tolerance. Images of the adaptive search: those it asked for, and the report half of its
finalists. Full search makes all images of every cell.

`ratio`: images of full search over those of the adaptive one, median over seeds. The table says, for each point of full
search's frontier, what the adaptive searches chose at its cost.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isocost.environment import environment
from isocost.scoring.measures import Measure
from isocost.scoring.uncertainty import Estimate, paired_difference
from isocost.study import measures, run
from isocost.study.adaptive import Candidate, candidates, mean_of
from isocost.study.artifacts import against
from isocost.study.images import chunks_needed
from isocost.study.scores import Judge, cell_features
from isocost.study.search import SAME_COST, SearchResult, Settings, search
from isocost.study.store import Store

Z95 = 1.96


@dataclass(frozen=True)
class Study:
    """A finished study in memory: its arms, and of each the features of all its images, seed by seed."""

    judge: Judge
    measure: Measure
    found: list[Candidate]
    features: list[list[dict[str, np.ndarray]]]
    batch: int

    @classmethod
    def read(cls, path: Path, all_grids: bool) -> Study:
        store = Store(path)
        trained = run.opened(store)
        evaluation = trained.study.evaluation
        names = measures.metric_names(evaluation, trained.refs)
        judge = Judge.build(evaluation, measures.loaded(names), against(trained.study, store), trained.prompts)
        measure = judge.measures[evaluation.metrics.index(evaluation.select_by)]
        found = candidates(trained.cells, run.cell_rows(trained), "paper")
        grid = trained.study.grid
        if not all_grids:
            found = [
                one
                for one in found
                if one.cells[0].plan.sampler in grid.samplers
                and one.cells[0].plan.steps in grid.steps
                and one.cells[0].plan.guidance.scale in grid.guidance
            ]
        columns = [column.name for column in measure.columns()]
        chunks, images = chunks_needed(evaluation.images, trained.study.engine), evaluation.images
        features = [
            [cell_features(store, cell.key.digest, columns, chunks, images) for cell in one.cells] for one in found
        ]
        return cls(judge, measure, found, features, trained.study.engine.batch)

    def estimate(self, arm: int, places: np.ndarray) -> Estimate:
        """An arm's metric on its images at some places, mean over training seeds."""
        return mean_of(
            [
                self.judge.estimates_at(self.measure, {name: rows[places] for name, rows in seed.items()}, places)[
                    self.measure.metric
                ]
                for seed in self.features[arm]
            ]
        )

    @property
    def costs(self) -> np.ndarray:
        return np.array([one.arm.cost for one in self.found])

    def label(self, arm: int) -> str:
        return self.found[arm].cells[0].label


@dataclass(eq=False)
class Replay:
    """A study's selection half as a search's `Images`, its prompts in an order that the seed decides."""

    study: Study
    seed: int
    paid: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        places = self.study.judge.rows("selection")
        self.places = places[np.random.Generator(np.random.Philox(self.seed)).permutation(len(places))]
        self.total, self.chunk = len(places), self.study.batch

    def make(self, counts: Mapping[int, int]) -> None:
        self.paid.update(counts)

    def estimate(self, arm: int, rows: slice) -> Estimate:
        if rows.stop > self.paid.get(arm, 0):
            raise AssertionError(f"a look at image {rows.stop} of {self.study.label(arm)}, which was not paid for")
        return self.study.estimate(arm, self.places[rows])


@dataclass(frozen=True)
class Truth:
    """All images: of every arm its loss on the selection half, and its estimate on the report half."""

    losses: np.ndarray
    reports: list[Estimate]
    frontier: tuple[int, ...]

    @classmethod
    def of(cls, study: Study) -> Truth:
        halves = [
            [study.estimate(arm, study.judge.rows(split)) for arm in range(len(study.found))]
            for split in ("selection", "report")
        ]
        sign = -1.0 if halves[0][0].higher_is_better else 1.0
        losses = np.array([sign * estimate.corrected for estimate in halves[0]])
        frontier: list[int] = []
        for arm in np.lexsort((losses, study.costs)):
            if not frontier or losses[arm] < losses[frontier[-1]]:
                frontier.append(int(arm))
        return cls(losses, halves[1], tuple(frontier))

    def agreement(self, study: Study, found: SearchResult) -> list[dict[str, Any]]:
        """Full search's choice and the adaptive one, at every budget at which either changes."""
        budgets = sorted({study.costs[arm] for arm in (*self.frontier, *found.frontier)})
        rows = []
        for budget in budgets:
            full, ours = (_within(frontier, study.costs, budget) for frontier in (self.frontier, found.frontier))
            if full is None or ours is None:
                continue
            difference = paired_difference(self.reports[ours], self.reports[full], fixed_reference=True)
            rows.append(
                {
                    "budget": budget,
                    "full": full,
                    "ours": ours,
                    "regret": (self.losses[ours] - self.losses[full]) / abs(self.losses[full]),
                    "report": difference.value / abs(self.reports[full].corrected),
                    "tie": abs(difference.value) <= Z95 * difference.stderr,
                }
            )
        return rows


def _within(frontier: Sequence[int], costs: np.ndarray, budget: float) -> int | None:
    """The last of a frontier's arms that a budget buys."""
    return next((arm for arm in reversed(frontier) if costs[arm] <= budget * SAME_COST), None)


def replay(study: Study, truth: Truth, settings: Settings) -> dict[str, Any]:
    """One search, and how its answer compares."""
    begun = time.perf_counter()
    found = search([one.arm for one in study.found], Replay(study, settings.seed), settings)
    seeds = len(study.found[0].cells)
    report = len(study.judge.rows("report")) * len(found.frontier)
    full = study.judge.evaluation.images * len(study.found)
    rows = truth.agreement(study, found)
    regret = max(row["regret"] for row in rows)
    return {
        "seed": settings.seed,
        "images": (found.images + report) * seeds,
        "searched": found.images * seeds,
        "share": (found.images + report) / full,
        "ratio": full / (found.images + report),
        "regret": regret,
        "report_regret": max((row["report"] for row in rows), key=abs),
        "same": sum(row["full"] == row["ours"] for row in rows),
        "budgets": len(rows),
        "good": regret <= settings.tolerance and all(row["full"] == row["ours"] or row["tie"] for row in rows),
        "doubt": found.doubt,
        "rounds": len(found.rounds),
        "seconds": time.perf_counter() - begun,
        "rows": rows,
        "counts": found.counts,
    }


# --- what is shown ---


def table(study: Study, truth: Truth, runs: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: each point of full search's frontier, and what the searches chose at its cost."""
    lines = [
        "| at most (paper cost) | full search | same cell | tie | another | regret, mean | regret, worst |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in truth.frontier:
        rows = [row for one in runs for row in one["rows"] if np.isclose(row["budget"], study.costs[arm])]
        same = [row["ours"] == row["full"] for row in rows]
        tie = [row["tie"] and not equal for row, equal in zip(rows, same, strict=True)]
        regrets = [row["regret"] for row in rows]
        lines.append(
            f"| {study.costs[arm]:.3g} | {study.label(arm)} | {sum(same)} of {len(rows)} | {sum(tie)} | "
            f"{len(rows) - sum(same) - sum(tie)} | {np.mean(regrets):.2%} | {max(regrets):.2%} |"
        )
    return "\n".join(lines)


def figure(study: Study, truth: Truth, runs: Sequence[Mapping[str, Any]], path: Path, tolerance: float) -> None:
    """Regret and share of images by seed; and for the first seed how many images each cell got."""
    import matplotlib.pyplot as plt

    curves = list(dict.fromkeys(one.arm.curve for one in study.found))
    columns = max(2, -(-len(curves) // 2))
    made = plt.figure(figsize=(2.6 * columns, 7.5), layout="constrained")
    parts: Any = made.subfigures(2, 1, height_ratios=(1, 1.7))
    top, bottom = parts
    regret, share = top.subplots(1, 2)
    seeds = [one["seed"] for one in runs]
    regret.plot(seeds, [100 * one["regret"] for one in runs], "o", color="#2a6f97", clip_on=False)
    regret.axhline(100 * tolerance, color="0.4", linewidth=1, linestyle="--")
    regret.set(title="regret at the worst budget, % (dashed: the tolerance)", xlabel="search seed", xticks=seeds)
    regret.set_ylim(0, 100 * max(1.6 * tolerance, *(1.1 * one["regret"] for one in runs)))
    searched = np.array([100 * one["share"] * one["searched"] / one["images"] for one in runs])
    reported = np.array([100 * one["share"] for one in runs]) - searched
    share.bar(seeds, searched, color="#2a6f97", label="search")
    share.bar(seeds, reported, bottom=searched, color="#e09f3e", label="report half of the finalists")
    share.set(title="images, % of full search", xlabel="search seed", xticks=seeds)
    share.set_ylim(0, 1.3 * (searched + reported).max())
    share.legend(frameon=False, loc="upper center", ncols=2)
    axes = bottom.subplots(2, columns, sharex=True, sharey=True, squeeze=False).ravel()
    total = len(study.judge.rows("selection"))
    for curve, axis in zip(curves, axes, strict=False):
        image = _map(study, truth, runs[0], curve, axis, total)
    for axis in axes[len(curves) :]:
        axis.axis("off")
    bottom.colorbar(
        image, ax=axes.tolist(), label="images of the selection half", ticks=range(0, total + 1, study.batch)
    )
    bottom.supxlabel("guidance", fontsize=10)
    bottom.supylabel("steps", fontsize=10)
    bottom.suptitle(
        f"seed {runs[0]['seed']}: images by cell; ○ full search's frontier, × the adaptive one", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=130)


def _map(study: Study, truth: Truth, one: Mapping[str, Any], curve: str, axis: Any, total: int) -> Any:
    """Images by steps and guidance of one curve."""
    arms = [number for number, candidate in enumerate(study.found) if candidate.arm.curve == curve]
    plans = {number: study.found[number].cells[0].plan for number in arms}
    steps = sorted({plan.steps for plan in plans.values()})
    scales = sorted({plan.guidance.scale for plan in plans.values()})
    counts = np.full((len(steps), len(scales)), np.nan)
    place = {number: (steps.index(plan.steps), scales.index(plan.guidance.scale)) for number, plan in plans.items()}
    for number, (row, column) in place.items():
        counts[row, column] = one["counts"][number]
    image = axis.imshow(counts, origin="lower", aspect="auto", cmap="Blues", vmin=0, vmax=total)
    chosen = {row["ours"] for row in one["rows"]}
    for marker, frontier in (("o", truth.frontier), ("x", chosen)):
        for number in set(frontier) & set(arms):
            row, column = place[number]
            face = "none" if marker == "o" else "#c1121f"
            edge = {"edgecolors": "#e09f3e"} if marker == "o" else {}
            axis.scatter(column, row, marker=marker, s=70 if marker == "o" else 25, c=face, linewidths=1.5, **edge)
    cell = study.found[arms[0]].cells[0]
    axis.set_title(f"{cell.member} {cell.plan.sampler}", fontsize=9)
    axis.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales], fontsize=7)
    axis.set_yticks(range(len(steps)), [str(count) for count in steps], fontsize=7)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--confidence", type=float, default=Settings().confidence)
    parser.add_argument("--pilot", type=int, default=Settings().pilot, help="one cell in so many is looked at first")
    parser.add_argument("--all-grids", action="store_true", help="the study's extra grids too")
    parser.add_argument("--out", type=Path, help="folder for search.png and search.md")
    args = parser.parse_args()
    study = Study.read(args.store, args.all_grids)
    truth = Truth.of(study)
    runs = []
    for seed in range(args.seeds):
        one = replay(study, truth, Settings(seed=seed, confidence=args.confidence, pilot=args.pilot))
        runs.append(one)
        said = {name: one[name] for name in ("images", "share", "regret", "report_regret", "same", "budgets", "good")}
        print({"seed": seed} | {name: round(float(value), 4) for name, value in said.items()}, flush=True)
    print(table(study, truth, runs))
    if args.out:
        figure(study, truth, runs, args.out / "search.png", Settings().tolerance)
        (args.out / "search.md").write_text(table(study, truth, runs) + "\n")
    ratios = [one["ratio"] for one in runs]
    result = {
        "name": f"adaptive search: {len(study.found)} cells of {study.judge.evaluation.images} images",
        "ratio": round(statistics.median(ratios), 2),
        "ratios": {"least": round(min(ratios), 2), "most": round(max(ratios), 2)},
        "good": f"{sum(one['good'] for one in runs)} of {len(runs)}",
        "regret": {
            "median": statistics.median(one["regret"] for one in runs),
            "worst": max(one["regret"] for one in runs),
        },
        "images": {
            "full": study.judge.evaluation.images * len(study.found),
            "adaptive": [one["images"] for one in runs],
        },
        "seconds of deciding": round(statistics.median(one["seconds"] for one in runs), 1),
        "baseline": "full search: all images of every cell",
        "device": environment(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
