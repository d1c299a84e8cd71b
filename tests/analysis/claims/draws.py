"""Tables with a known truth, drawn again and again: the structure is read once, only values and images change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pandas as pd

from isocost.analysis.cells import PLAIN
from isocost.analysis.claims.catalogue import CLAIMS
from isocost.analysis.claims.hypotheses import LEVEL, Hypothesis, Needed, needed
from isocost.analysis.differences import Influence
from isocost.analysis.quantity import Errors, Estimates
from isocost.analysis.sheet import Sheet
from isocost.scoring.frechet import frechet
from isocost.scoring.statistics import Moments, Reference
from isocost.scoring.uncertainty import Estimate, mean_estimate

SIZES = {"s": 1e6, "m": 4e6, "l": 16e6, "x": 64e6}
NORM_COST = {"s": 0.13, "m": 0.4, "l": 1.0, "x": 2.6}
FD, CLIP = "fd[own]", "clip[own]"


def cell(member: str, steps: int = 50, guidance: float = 2.0, sampler: str = "ddim", **other) -> dict:
    """A row's columns but its score; by FD unless `metric` says otherwise."""
    cost = NORM_COST[member] * steps
    return {
        "member": member, "width": int(SIZES[member] ** 0.5), "params": SIZES[member], "images_seen": 1000,
        "train_gflops": 1.0, "sampler": sampler, "eta": 0.0, "variance": "small", "spacing": "trailing", "steps": steps,
        "guidance_scale": guidance, "curve": False, "bias": np.nan, "valid": True, "paper_cost": cost,
        "gflops_per_image": 8 * cost + 0.3, "seconds_per_image": cost / 10, "seconds_as": "", "metric": FD,
        "objective": "denoise", **PLAIN, **other,
    }  # fmt: skip


class Family:
    """Cells with a true value each; `draw` gives a sheet of `n` images and `seeds` trainings, and its influence values.

    Images are common to all cells with a correlation of `rho`; each adds `spread` of the true value. `seed_sd`: of a
    training, as a share of the value, common to all cells of a member and seed.
    """

    def __init__(
        self, cells: Iterable[dict], truth: Callable[[dict], float], rho=0.9, spread=1.0, seeds=1, seed_sd=0.0
    ):
        rows, self.truth = [], {}
        for number, row in enumerate(cells):
            for half in ("selection", "report"):
                for seed in range(seeds):
                    key = f"{number}/{half}/{seed}"
                    self.truth[key] = truth(row)
                    rows.append({
                        **row, "seed": seed, "split": half, "sample_key": str(number), "score_key": key, "n": 64,
                        "value": truth(row), "stderr": 1e-3, "higher_is_better": row["metric"] == CLIP,
                    })  # fmt: skip
        self.table = pd.DataFrame(rows)
        self.sheet = Sheet.of(self.table)
        self.rho, self.spread, self.seeds, self.seed_sd = rho, spread, seeds, seed_sd

    def draw(self, rng: np.random.Generator, n: int, most: int = 256) -> tuple[Sheet, Influence]:
        """Beyond `most` images each counts for several: only the errors matter."""
        kept = min(n, most)
        shared = {half: rng.standard_normal(kept) for half in ("selection", "report")}
        members = sorted({score.member for score in self.sheet.scores})
        trained = {member: self.seed_sd * rng.standard_normal(self.seeds) for member in members}
        arrays: dict[str, np.ndarray] = {}
        scores = []
        for score in self.sheet.scores:
            own = rng.standard_normal((len(score.keys), kept))
            half = score.keys[0].split("/")[1]
            truth = self.truth[score.keys[0]]
            images = np.sqrt(self.rho) * shared[half] + np.sqrt(1 - self.rho) * own
            images = images * truth * self.spread * np.sqrt(kept / n)
            values = truth * (1 + trained[score.member]) + images.mean(1)
            arrays |= dict(zip(score.keys, images - images.mean(1, keepdims=True), strict=True))
            sign = 1.0 if truth > 0 and score.slope > 0 else -1.0
            loss, slope = sign * np.log(values.mean()), sign / values.mean()
            stderr = float(np.sqrt(np.mean(images.var(1, ddof=1) / kept)))
            changed = {"values": tuple(values), "stderr": stderr, "n": kept, "loss": loss, "slope": slope}
            scores.append(replace(score, **changed))
        return replace(self.sheet, scores=tuple(scores)), lambda key: arrays.get(key)

    def on_paper(self, claim: str, n: int) -> tuple[Hypothesis, Estimates, np.ndarray]:
        """The hypothesis on the truth itself, its errors for n images, and a root of the parts' covariance."""
        hypothesis = CLAIMS[claim].test(self.sheet)
        weights = np.zeros((len(hypothesis.parts), len(self.sheet.scores)))
        for place, quantity in enumerate(hypothesis.quantities):
            for number, weight in quantity.weights.items():
                weights[place, number] = weight * abs(self.truth[self.sheet.scores[number].keys[0]])
        root = self.spread / np.sqrt(n) * np.hstack([
            np.sqrt(self.rho) * weights.sum(1, keepdims=True), np.sqrt(1 - self.rho) * weights
        ])  # fmt: skip
        parts = len(hypothesis.parts)
        value, variance = np.array([q.value for q in hypothesis.quantities]), np.sum(root**2, axis=1)
        estimates = Estimates(value, variance, np.full(parts, n - 1.0), np.zeros(parts), 0.0, n, 1, True)
        return hypothesis, estimates, root

    def verdict(self, claim: str, rng: np.random.Generator, n: int) -> tuple[str, Hypothesis, Estimates]:
        sheet, influence = self.draw(rng, n)
        hypothesis = CLAIMS[claim].test(sheet)
        estimates = Errors(sheet.scores, influence).estimates(hypothesis.quantities)
        supports, refutes = hypothesis.p_values(estimates)
        return "supported" if supports < LEVEL else "refuted" if refutes < LEVEL else "", hypothesis, estimates

    def recommended(self, claim: str, rng: np.random.Generator, n: int) -> Needed | None:
        """What the tool says would decide it, from a pilot of n images; None where that decides already."""
        verdict, hypothesis, estimates = self.verdict(claim, rng, n)
        if verdict:
            return None
        found = needed(hypothesis, replace(estimates, n=n), LEVEL)
        return found


class Pictures(Family):
    """A family from generated images on: features are drawn, and scored as a study's are.

    Features [n, `DIMS`] of a cell are normal, and those of real images standard normal, so the true Frechet distance is
    the square of how far their means are apart. Other metrics are means of a value an image.
    """

    DIMS = 4
    REAL = Reference(Moments(10**9, np.zeros(DIMS), (10**9 - 1) * np.eye(DIMS)))

    def __init__(self, family: Family):
        vars(self).update(vars(family))

    def draw(self, rng: np.random.Generator, n: int, most: int = 0) -> tuple[Sheet, Influence]:
        shared = {half: rng.standard_normal((n, self.DIMS)) for half in ("selection", "report")}
        arrays, scores = {}, []
        for (_, metric, half), number in self.sheet.places.items():
            score, found = self.sheet.scores[number], []
            for key in score.keys:
                own = rng.standard_normal((n, self.DIMS))
                features = np.sqrt(self.rho) * shared[half] + np.sqrt(1 - self.rho) * own
                found.append(self._scored(metric, features, self.truth[key]))
                arrays[key] = found[-1].influence
            values = [estimate.corrected for estimate in found]
            sign, value = np.sign(score.slope), float(np.mean(values))
            stderr = float(np.sqrt(np.mean([estimate.stderr**2 for estimate in found])))
            changed = {"loss": sign * np.log(value), "slope": sign / value, "stderr": stderr, "n": n}
            scores.append((number, replace(score, values=tuple(values), **changed)))
        return replace(
            self.sheet, scores=tuple(score for _, score in sorted(scores, key=lambda each: each[0]))
        ), arrays.get

    def _scored(self, metric: str, features: np.ndarray, truth: float) -> Estimate:
        if metric != FD:
            return mean_estimate(truth * (1 + 0.3 * features[:, 0]), unit=metric)
        return frechet(features + np.sqrt(truth) * np.eye(self.DIMS)[0], self.REAL)


# --- for each kind of claim, a table on its edge, and one where it holds ---


def by_value(values: dict) -> Callable[[dict], float]:
    """Truth by the first key of `values` all of whose items a row has."""

    def truth(row: dict) -> float:
        return next(value for key, value in values.items() if all(row[name] == wanted for name, wanted in key))

    return truth


def sizes(claim_holds: bool) -> Family:
    """C3 ("every"): on the edge m is as good as s, while l is far better."""
    values = {"s": 10.0, "m": 9.7 if claim_holds else 10.0, "l": 8.0}
    return Family([cell(member) for member in values], lambda row: values[row["member"]])


def tight(claim_holds: bool) -> Family:
    """C13 (a mean): at the larger's cheapest cost the smaller is 2% worse for one pair, 2% better for the other."""
    cells = [cell(member, steps) for member in "sml" for steps in (4, 12, 30)]
    floor = {"s": 10.0, "m": 10.0, "l": 10.0 * (1.02 if claim_holds else 1.0)}
    return Family(cells, lambda row: floor[row["member"]] * (1.02 if claim_holds and row["steps"] == 4 else 1.0))


def stable(claim_holds: bool) -> Family:
    """C2 (equivalence): on the edge one member changes by the margin itself."""
    change = {"s": 0.0, "m": 0.02 if claim_holds else 0.05, "l": 0.0}
    cells = [cell(member, images_seen=seen, curve=True) for member in "sml" for seen in (100, 400, 1000)]
    return Family(
        cells, lambda row: 10.0 * np.exp({100: 0.3, 400: change[row["member"]], 1000: 0.0}[row["images_seen"]])
    )


def many_steps(claim_holds: bool) -> Family:
    """C18 (no gain): on the edge one member gains the margin."""
    gain = {"s": 0.0, "m": 0.0 if claim_holds else 0.02, "l": -0.1}
    cells = [cell(member, steps) for member in "sml" for steps in (50, 100)]
    return Family(cells, lambda row: 10.0 * np.exp(-gain[row["member"]] * (row["steps"] == 100)))


def trend(claim_holds: bool) -> Family:
    """C10 (a slope over size): on the edge it is 0, but not flat."""
    values = {"s": 0.50, "m": 0.52, "l": 0.50 if not claim_holds else 0.53}
    cells = [
        {**cell(member, objective=objective), "metric": metric}
        for member in "sml"
        for objective, metric in (("denoise", FD), ("dreambooth", FD), ("dreambooth", "similarity[own]"))
    ]  # fmt: skip
    return Family(cells, lambda row: 1 / values[row["member"]])


def guidance(claim_holds: bool) -> Family:
    """C12: on the edge 2 is best everywhere, but 3 is as good in one group, and so is 1.5 in another."""
    cells = [cell(member, steps, rate) for member in "sl" for steps in (4, 20) for rate in (1.5, 2.0, 3.0)]

    def truth(row: dict) -> float:
        large, many, rate = row["member"] == "l", row["steps"] == 20, row["guidance_scale"]
        if claim_holds:
            best = 1.5 if large and many else 3.0 if not large and not many else 2.0
            return 10.0 * (1 if rate == best else 1.05)
        worse = {1.5: 0.0 if large else 0.3, 2.0: 0.0, 3.0: 0.3 if large else 0.0}[rate]
        return 10.0 * np.exp(worse)

    return Family(cells, truth)


def drives(claim_holds: bool) -> Family:
    """C6 (one effect over another): on the edge size and compute bring as much."""
    size = {"s": 0.0, "m": 0.1, "l": 0.25 if claim_holds else 0.2}
    compute = {10: 0.0, 400: 0.1, 1000: 0.2}
    cells = [cell(m, objective="superres", images_seen=seen, guidance=1.0) for m in "sml" for seen in compute]
    return Family(cells, lambda row: 10.0 * np.exp(-size[row["member"]] - compute[row["images_seen"]]))


def speed_up(claim_holds: bool) -> Family:
    """C23 (a ratio within a factor): on the edge one member's students are 6.25 times as fast."""
    factor = {"s": 5.0, "m": 5.0 if claim_holds else 6.25, "l": 5.0}
    cells = [cell(member, steps) for member in "sml" for steps in (4, 10, 20, 50)]
    cells += [cell(member, 4, objective="consistency", sampler="lcm") for member in "sml"]

    def truth(row: dict) -> float:
        steps = row["steps"] if row["objective"] == "denoise" else 4 * factor[row["member"]]
        knots = np.log([4, 10, 20, 50])
        return 10.0 * np.exp(np.interp(np.log(steps), knots, [1.0, 0.6, 0.3, 0.0]))

    return Family(cells, truth)


def guided(claim_holds: bool) -> Family:
    """C26 (a difference either way): on the edge both sizes gain alike."""
    gain = {"s": 0.2, "l": 0.25 if claim_holds else 0.2}
    cells = [cell(member, 8, objective=objective) for member in "sl" for objective in ("denoise", "guided")]
    return Family(cells, lambda row: 10.0 * np.exp(-gain[row["member"]] * (row["objective"] == "guided")))


def moved(claim_holds: bool) -> Family:
    """C11 (two metrics): on the edge guidance moves FD as much as CLIP score."""
    cells = [
        {**cell(member, 20, rate), "metric": metric} for member in "sl" for rate in (1.5, 4.0) for metric in (FD, CLIP)
    ]
    far = 0.14 if claim_holds else 0.1

    def truth(row: dict) -> float:
        up = row["guidance_scale"] == 4.0
        return 10.0 * np.exp(far * up) if row["metric"] == FD else 30.0 * np.exp(-0.1 * up)

    return Family(cells, truth)


KINDS = {
    "C3": sizes, "C13": tight, "C2": stable, "C18": many_steps, "C10": trend, "C12": guidance, "C6": drives,
    "C23": speed_up, "C26": guided, "C11": moved,
}  # fmt: skip

# Images a cell on the edge: so many that an error of the first kind would show, were the test too keen.
EDGE_IMAGES = {"C2": 4000, "C18": 4000, "C23": 2000}
# Images of a pilot that is too small to decide: fewer for a mean of single images than for a Frechet distance.
PILOT_IMAGES = {"C10": 16}
