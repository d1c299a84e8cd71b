"""Variance by source on worlds whose sources are known: means over draws, coverage, and sums that have to add up."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd
import pytest

from isocost.analysis.sheet import Score, Sheet
from isocost.analysis.variance import BOTH, NOISE, PROMPTS, SEED, SEED_BY_CELL, components, variance
from isocost.errors import SpecError

METRIC = "fd[known]"
MEMBERS, STEPS, RATES = ("c8", "c16", "c32"), (2, 4, 8), (1.5, 3.0)
SIZE, STEP, RATE, SIZE_STEP = (0.3, 0.0, -0.3), (0.2, 0.0, -0.2), (0.05, -0.05), 0.04
SEEDS, DISTINCT, REPLICATES = (0, 1, 2, 3), 40, 3
OF_TRAINING, OF_CELL, OF_PROMPT, OF_NOISE, SHARED = 0.05, 0.02, 0.6, 0.5, 0.8


def truth(m: int, s: int, g: int) -> float:
    """log FD of a cell, before trainings and images."""
    return 2.0 + SIZE[m] + STEP[s] + RATE[g] + SIZE_STEP * (m - 1) * (s - 1)


EXPECTED = {
    "size": np.var(SIZE), "steps": np.var(STEP), "guidance": np.var(RATE),
    "size x steps": SIZE_STEP**2 * (2 / 3) ** 2, "size x guidance": 0.0, "steps x guidance": 0.0,
    "size x steps x guidance": 0.0, SEED: OF_TRAINING**2, SEED_BY_CELL: OF_CELL**2,
    PROMPTS: OF_PROMPT**2 / DISTINCT, NOISE: OF_NOISE**2 / (DISTINCT * REPLICATES),
}  # fmt: skip


class Drawn:
    """A table and influence values, with errors of trainings and of images drawn anew."""

    def __init__(self, rng: np.random.Generator, seeds=SEEDS, errors: bool = True):
        self.arrays: dict[str, np.ndarray] = {}
        self.values: dict[str, float] = {}
        self.cells: dict[str, tuple[int, int, int, int]] = {}
        shared = self.images(rng)
        for m, seed in itertools.product(range(3), seeds):
            training = OF_TRAINING * rng.standard_normal()
            for s, g in itertools.product(range(3), range(2)):
                own = np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * self.images(rng)
                moved = training + OF_CELL * rng.standard_normal() + own.mean() if errors else 0.0
                key = f"{m}/{s}/{g}/{seed}"
                self.cells[key], self.values[key] = (m, s, g, seed), float(np.exp(truth(m, s, g) + moved))
                self.arrays[key] = self.values[key] * (own - own.mean())

    @cached_property
    def table(self) -> pd.DataFrame:
        errors = {key: np.std(array, ddof=1) / np.sqrt(array.size) for key, array in self.arrays.items()}
        report = pd.DataFrame([row(*cell, self.values[key], key, errors[key]) for key, cell in self.cells.items()])
        selection = report.assign(split="selection", score_key="")
        return pd.concat([selection, report.assign(split="report")], ignore_index=True)

    def images(self, rng):
        """By image, prompts first: the value of its prompt and that of its noise."""
        prompts = OF_PROMPT * rng.standard_normal(DISTINCT)
        return np.tile(prompts, REPLICATES) + OF_NOISE * rng.standard_normal(DISTINCT * REPLICATES)

    def influence(self, key: str) -> np.ndarray | None:
        return self.arrays.get(key)


def row(m, s, g, seed, value, key, stderr):
    width = 8 * 2**m
    return {
        "member": MEMBERS[m], "width": width, "params": 2500 * width**2, "seed": seed, "images_seen": 1000,
        "train_gflops": 1.0, "sampler": "ddim", "eta": 0.0, "variance": "small", "spacing": "trailing",
        "steps": STEPS[s], "guidance_scale": RATES[g], "sample_key": key, "curve": False, "bias": np.nan,
        "n": DISTINCT * REPLICATES, "valid": True, "paper_cost": 1.0, "gflops_per_image": 1.0,
        "seconds_per_image": 1.0, "metric": METRIC, "score_key": key, "stderr": stderr, "value": value,
        "higher_is_better": False,
    }  # fmt: skip


@pytest.fixture(scope="module")
def found():
    """The decompositions of 60 draws; the first one's table serves all, with the scores of each."""
    rng = np.random.default_rng(0)
    worlds = [Drawn(rng) for _ in range(60)]
    sheet = Sheet.of(worlds[0].table)

    def scored(world: Drawn) -> Sheet:
        return replace(sheet, scores=tuple(rescored(score, world) for score in sheet.scores))

    def rescored(score: Score, world: Drawn) -> Score:
        if score.keys[0] not in world.values:  # of the selection half, which is not looked at
            return score
        values = tuple(world.values[key] for key in score.keys)
        return replace(score, values=values, loss=float(np.log(np.mean(values))), slope=1 / float(np.mean(values)))

    return [components(scored(world), world.influence, DISTINCT) for world in worlds]


@pytest.mark.parametrize("source", EXPECTED)
def test_every_source_is_found_without_bias(found, source):
    values = np.array([draw[source].variance for draw in found])
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - EXPECTED[source]) < 3.5 * error + 1e-12


def test_intervals_hold_what_is_true(found):
    held = {
        source: np.mean([draw[source].interval[0] <= true <= draw[source].interval[1] for draw in found])
        for source, true in EXPECTED.items()
    }
    assert min(held.values()) >= 0.85 and np.mean(list(held.values())) >= 0.93, held


def test_shares_are_of_one_whole(found):
    for draw in found[:5]:
        assert sum(part.share for part in draw.components) == pytest.approx(1)
        assert draw.shared == pytest.approx(SHARED, abs=0.12)
    assert "size" in found[0].sentence and found[0].seeds == (4, 4)


def test_without_errors_effects_add_up_to_the_variance_of_the_cells():
    table = Drawn(np.random.default_rng(1), seeds=(0,), errors=False).table.assign(stderr=0.0)
    draw = variance(table)
    cells = [truth(m, s, g) for m, s, g in itertools.product(range(3), range(3), range(2))]
    effects = [part.variance for part in draw.components if part.dof and part.source != BOTH]
    assert sum(effects) == pytest.approx(np.var(cells)) and draw[BOTH].variance == 0
    assert draw["size"].variance == pytest.approx(EXPECTED["size"])


def test_what_one_seed_one_image_a_prompt_and_no_influence_leave_open():
    world = Drawn(np.random.default_rng(2), seeds=(0,))
    draw = variance(world.table, world.influence)
    assert draw[SEED].variance is None and "one training seed" in draw[SEED].said
    assert "cannot be told" in draw[BOTH].said and any("counts as size" in note for note in draw.notes)
    unpaired = variance(world.table)
    assert unpaired.shared is None and any("no influence values" in note for note in unpaired.notes)
    unknown = variance(world.table.assign(stderr=np.nan))
    assert unknown[BOTH].variance is None and "no errors" in unknown[BOTH].said


def test_seeds_that_have_a_part_of_the_cells_tell_of_seeds_alone():
    """As where a second training is scored at the best cells alone."""
    world = Drawn(np.random.default_rng(3))
    rest = (world.table["seed"] > 0) & (world.table["guidance_scale"] == RATES[0])
    draw = variance(world.table[~rest], world.influence)
    assert draw.seeds == (1, 4) and draw[SEED].dof == 9 and draw["guidance"].dof == 1
    assert any("grid is of training seed 0" in note for note in draw.notes)


def test_the_largest_full_grid_is_taken():
    world = Drawn(np.random.default_rng(4), seeds=(0,))
    ragged = world.table[~((world.table["steps"] == 8) & (world.table["guidance_scale"] == RATES[1]))]
    draw = variance(ragged, world.influence)
    assert draw.levels == {"size": MEMBERS, "steps": (2, 4), "guidance": RATES}
    assert any("3 of 15 cells" in note for note in draw.notes)


def test_a_table_without_a_grid_says_what_it_needs():
    table = Drawn(np.random.default_rng(5), seeds=(0,)).table
    with pytest.raises(SpecError, match="needs two cells or more"):
        variance(table[(table["steps"] == 2) & (table["guidance_scale"] == 3) & (table["member"] == "c8")])
    one = variance(table[table["member"] == "c8"])
    assert one["size"].variance is None and "one level in common: c8" in one["size"].said
