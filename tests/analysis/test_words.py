from __future__ import annotations

import pytest

from isocost.analysis.words import checkpoint_name, full_label, metric_name, sampler_name, short_label

CELL = {"member": "c24", "sampler": "ddim", "steps": 8, "guidance_scale": 2.0}
STITCHED = {"member": "c8+c24", "checkpoint": "c8+c24", "stages": "c8 for 50% of the steps, then c24"}


@pytest.mark.parametrize(
    ("changes", "name", "label"),
    [
        ({}, "DDIM", "c24 with DDIM, 8 steps, guidance 2"),
        ({"guidance_scale": 1.0}, "DDIM", "c24 with DDIM, 8 steps, no guidance"),
        (STITCHED, "DDIM", "c8 for 50% of the steps, then c24 with DDIM, 8 steps, guidance 2"),
        ({"guidance_interval": "200-800"}, "DDIM, guided at timesteps 200-800", None),
        (
            {"guidance_mode": "cfg++", "guidance_scale": 1.0},
            "DDIM, CFG++",
            "c24 with DDIM, CFG++, 8 steps, guidance 1",
        ),
        (
            {"guidance_mode": "autoguidance", "guide": "c8", "guidance_interval": "0-500"},
            "DDIM, guided by c8 at timesteps 0-500",
            None,
        ),
        ({"best_of": 4, "eta": 0.5}, "DDIM η 0.5, best of 4", None),
    ],
)
def test_names_of_cells(changes, name, label):
    cell = CELL | changes
    assert sampler_name(cell) == name
    assert full_label(cell) == (label or f"c24 with {name}, 8 steps, guidance 2")


def test_short_labels():
    assert short_label(CELL | {"guidance_scale": 1.0}) == "c24 × 8 steps (DDIM, no guidance)"
    assert short_label(CELL | STITCHED) == "c8 for 50% of the steps, then c24 × 8 steps (DDIM)"
    assert short_label(CELL | {"guidance_mode": "cfg++", "guidance_scale": 1.0}) == "c24 × 8 steps (DDIM, CFG++)"


def test_a_stitch_of_one_seed_among_several_keeps_the_seed():
    assert checkpoint_name(CELL | STITCHED | {"checkpoint": "c8+c24 seed 1"}) == f"{STITCHED['stages']} seed 1"


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("kid[extractor]", "KID[own]"),
        ("fd[extractor-16]", "FD[own-16]"),
        ("fd[scenes-clip-score-32]", "FD[scenes-clip-score-32]"),
        ("accuracy/colour", "accuracy/colour"),
    ],
)
def test_names_of_metrics(metric, name):
    assert metric_name(metric) == name
