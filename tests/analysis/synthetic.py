"""A study's table with a known truth: a smooth quality surface, and images that all cells share.

FD of a cell = floor of the member + discretisation error / steps + a bowl in log guidance. Each image adds an influence
value, mostly common to all cells (common random numbers), so paired differences are far surer than the values.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

FD, CLIP = "fd[scenes-clip-score-32]", "clip[scenes-clip-score]"
MEMBERS = {"c8": 8, "c16": 16, "c32": 32, "c64": 64}
SAMPLERS = ("ddim", "dpmpp_2m")
STEPS = (1, 2, 3, 4, 8, 16)
GUIDANCE = (1.0, 1.5, 2.0, 4.0)
ATTRIBUTES = ("colour", "shape", "position", "count")
NORM_COST = {"c8": 0.05, "c16": 0.15, "c32": 0.45, "c64": 1.4}


def true_fd(member: str, sampler: str, steps: int, guidance: float) -> float:
    """Known quality of a cell; the best guidance is 2, or 1.5 from 8 steps on."""
    floor = {"c8": 14.0, "c16": 8.0, "c32": 5.0, "c64": 3.5}[member]
    error = 30.0 / steps ** (1.0 if sampler == "ddim" else 1.3)
    best = 1.5 if steps >= 8 else 2.0
    return floor + error + 6.0 * np.log(guidance / best) ** 2


def costs(member: str, steps: int, guidance: float) -> dict[str, float]:
    evaluations = steps * (2 if guidance != 1 else 1)
    gflops = 4.0 * NORM_COST[member] * evaluations + 0.3
    return {
        "evaluations": evaluations,
        "gflops_per_image": gflops,
        "paper_cost": NORM_COST[member] * steps,
        "seconds_per_image": 0.002 + gflops / 150,
        "seconds_as": "measured on one machine, fp32",
    }


class World:
    """`table`, and `influence(score_key)` -> centred values [n] of a score, as a study's store gives them."""

    def __init__(self, seed=0, n=256, rho=0.95, spread=12.0, members=tuple(MEMBERS), seeds=(0,), steps=STEPS,
                 samplers=SAMPLERS, guidance=GUIDANCE, attributes=True, curve=True):  # fmt: skip
        self.rng = np.random.default_rng(seed)
        self.n, self.rho, self.spread = n, rho, spread
        self.shared = {split: self.rng.standard_normal(n) for split in ("selection", "report")}
        self.arrays: dict[str, np.ndarray] = {}
        self.attributes = attributes
        rows = []
        for training_seed in seeds:
            shift = 0.0 if len(seeds) == 1 else self.rng.normal(0, 0.5)
            for member in members:
                for sampler in samplers:
                    for count in steps:
                        for scale in guidance:
                            rows += self.cell(member, training_seed, sampler, count, scale, shift=shift)
                for images in (4096, 16384, 65536) if curve else ():
                    undertrained = 20.0 * 4096 / images
                    rows += self.cell(member, training_seed, "ddim", 8, 1.5, images, shift + undertrained, True)
        self.table = pd.DataFrame(rows)

    def influence(self, score_key: str) -> np.ndarray | None:
        return self.arrays.get(score_key)

    def cell(self, member, training_seed, sampler, steps, guidance, images=131072, shift=0.0, curve=False):
        width = MEMBERS[member]
        fd = true_fd(member, sampler, steps, guidance) + shift
        name = f"{member}/{training_seed}/{images}/{sampler}/{steps}/{guidance:g}"
        common = {
            "member": member, "width": width, "params": 2500 * width**2, "seed": training_seed, "images_seen": images,
            "train_gflops": 12.0 * NORM_COST[member] * images, "sampler": sampler, "eta": 0.0, "variance": "small",
            "spacing": "trailing", "steps": steps, "guidance_scale": guidance, "sample_key": name, "curve": curve,
            "bias": np.nan, "n": self.n, "valid": True, **costs(member, steps, guidance),
        }  # fmt: skip
        truths = {FD: (fd, self.spread, False), CLIP: (34.0 - 0.15 * fd, 2.0, True)}
        hit = float(np.clip(0.98 - 0.02 * fd, 0.05, 0.98))
        if self.attributes:
            truths["accuracy"] = (hit**1.5, 0.4, True)
            truths |= {f"accuracy/{a}": (min(0.99, hit + 0.03 * k), 0.4, True) for k, a in enumerate(ATTRIBUTES)}
        return [
            {**common, "split": split, "metric": metric, **self.score(f"{name}/{metric}/{split}", split, *truth)}
            for split in ("selection", "report")
            for metric, truth in truths.items()
        ]

    def score(self, score_key, split, truth, spread, higher):
        own = self.rng.standard_normal(self.n)
        raw = spread * (np.sqrt(self.rho) * self.shared[split] + np.sqrt(1 - self.rho) * own)
        self.arrays[score_key] = raw - raw.mean()
        stderr = raw.std(ddof=1) / np.sqrt(self.n)
        value = truth + raw.mean()
        return {"value": value, "stderr": stderr, "higher_is_better": higher, "score_key": score_key}
