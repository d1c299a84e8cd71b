"""What the paper prints: Table 1 as a results table without errors, the numbers of its prose, where it disagrees."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from isocost.analysis.cells import PLAIN
from isocost.analysis.frames import DataFrame
from isocost.models.ladder import TABLE1, TABLE1_SOURCE

IMAGES = 30_000
STEPS, GUIDANCE = 50, 7.5


@dataclass(frozen=True)
class Contradiction:
    """Where the paper says what does not fit: `says`, and what was `found`. `claims`: ids that hang on it."""

    claims: tuple[str, ...]
    where: str
    says: str
    found: str

    @property
    def sentence(self) -> str:
        return f"{self.where}: {self.says}; {self.found}."


@functools.cache
def printed() -> dict[str, Any]:
    """`source`, the `numbers` of the prose, and the `contradictions`."""
    return json.loads(files("isocost.analysis.claims").joinpath("printed.json").read_text(encoding="utf-8"))


def contradictions() -> tuple[Contradiction, ...]:
    return tuple(Contradiction(**(entry | {"claims": tuple(entry["claims"])})) for entry in printed()["contradictions"])


def notes_on(claim: str) -> tuple[str, ...]:
    """What to know of the paper's own statement of a claim."""
    return tuple(f"the paper, {found.sentence}" for found in contradictions() if claim in found.claims)


def printed_table() -> DataFrame:
    """Table 1 as a results table: a row a (member, metric), 30,000 images, one seed, no standard errors."""
    seen = printed()["numbers"]["training_iterations"] * printed()["numbers"]["batch"]
    rows = []
    for row in TABLE1:
        cell = {
            "member": row.params, "width": row.width, "params": _parameters(row.params), "seed": 0, "images_seen": seen,
            "train_gflops": np.nan, "sampler": "ddim", "eta": 0.0, "variance": "small", "spacing": "leading",
            "steps": STEPS, "guidance_scale": GUIDANCE, "curve": False, "bias": np.nan, "n": IMAGES, "valid": True,
            "evaluations": 2 * STEPS, "paper_cost": row.norm_cost * STEPS, "gflops_per_image": 2 * STEPS * row.gflops,
            "seconds_per_image": np.nan, "seconds_as": "", "sample_key": row.params, "split": "all", **PLAIN,
        }  # fmt: skip
        for metric, value, higher in (("fd[paper]", row.fid, False), ("clip[paper]", row.clip, True)):
            score = {
                "value": value,
                "stderr": np.nan,
                "higher_is_better": higher,
                "score_key": f"{row.params}/{metric}",
            }
            rows.append({**cell, "metric": metric, **score, "protocol": TABLE1_SOURCE})
    return pd.DataFrame(rows)


def _parameters(name: str) -> float:
    return float(name[:-1]) * {"M": 1e6, "B": 1e9}[name[-1]]
