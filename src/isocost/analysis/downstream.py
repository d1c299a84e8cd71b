"""Does quality after pretraining tell quality downstream? Members before and after fine-tuning, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from isocost.analysis.cells import Cells
from isocost.analysis.frames import DataFrame

DRAWS = 10_000


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho, the limits between which 95% of it fall where scores move by their errors, and members."""

    rho: float
    low: float
    high: float
    members: int

    @property
    def decided(self) -> bool:
        """Whether the interval leaves 0 out. Of three members no order is rarer than one in six by chance alone."""
        return self.low > 0 or self.high < 0


def before_and_after(before: Cells, after: Cells) -> DataFrame:
    """The best cell of each member's final checkpoint in both: one row a member of both, smallest first.

    Columns `member`, `params` and, for each of `before` and `after`, `_value`, `_stderr` (of the report half), `_steps`
    and `_sign` (a value times it is lower where better). The best is chosen on the selection half.
    """
    parts = []
    for name, cells in (("before", before), ("after", after)):
        rows = cells.plain[cells.plain["images_seen"] == cells.plain.groupby("member")["images_seen"].transform("max")]
        best = rows.loc[(rows["selection_value"] * cells.sign).groupby(rows["member"]).idxmin()].set_index("member")
        kept = best[["value", "stderr", "steps"]].assign(sign=cells.sign).add_prefix(f"{name}_")
        parts.append(kept if parts else kept.assign(params=best["params"]))
    both: DataFrame = pd.concat(parts, axis=1, join="inner").sort_values("params").reset_index(names="member")
    return both


def rank_correlation(rows: DataFrame, draws: int = DRAWS, seed: int = 0) -> RankCorrelation | None:
    """Of the losses of `before_and_after`; None of fewer than three members.

    Intervals are those of the scores' own errors, independent between members: cells share prompts and noise, which
    makes differences between members surer than that.
    """
    if len(rows) < 3:
        return None
    rng = np.random.default_rng(seed)
    ranks, count = [], len(rows)
    for name in ("before", "after"):
        value, stderr, sign = (rows[f"{name}_{column}"].to_numpy(float) for column in ("value", "stderr", "sign"))
        drawn = value + stderr * rng.standard_normal((draws, count))
        losses = pd.DataFrame(sign * np.vstack([value, drawn]))
        ranks.append(losses.rank(axis=1).to_numpy() - (count + 1) / 2)
    rho = (ranks[0] * ranks[1]).sum(axis=1) / np.sqrt((ranks[0] ** 2).sum(axis=1) * (ranks[1] ** 2).sum(axis=1))
    low, high = np.quantile(rho[1:], [0.025, 0.975])
    return RankCorrelation(float(rho[0]), float(low), float(high), count)
