"""Parts are those of the trajectory, and sum as a plan asks. Nothing here asserts how long anything takes."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.models.build import build
from isocost.recipes.scenes import micro_members
from isocost.sampling import timing
from isocost.sampling.engine import prepare
from isocost.sampling.generate import Pipeline
from isocost.sampling.timing import image_price, measure, work_of
from isocost.specs import CheckpointRef, EngineSpec, Guidance, NoiseSchedule, SamplingPlan, Stage

SMALL, LARGE = (CheckpointRef(content_digest=name, images_seen=0) for name in ("small", "large"))
PARTS = {
    "small": {"text": 0.5, "noise": 0.25, "start/1": 1, "start/2": 2, "call/1": 10, "call/2": 18, "decode": 0.125},
    "large": {"text": 0.5, "noise": 0.25, "start/1": 3, "start/2": 6, "call/1": 100, "call/2": 190, "decode": 0.125},
}
ONCE = 0.5 + 0.25 + 0.125


def plan(**changes) -> SamplingPlan:
    values = {
        "stages": (Stage(checkpoint=SMALL),),
        "schedule": NoiseSchedule(),
        "prediction": "v_prediction",
        "sampler": "ddim",
        "steps": 4,
        "guidance": Guidance(scale=2.0),
    }
    return SamplingPlan(**(values | changes))


HALVES = (Stage(checkpoint=SMALL, until=0.5), Stage(checkpoint=LARGE))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"guidance": Guidance()}, ONCE + 1 + 4 * 10),
        ({}, ONCE + 2 + 4 * 18),
        ({"sampler": "heun"}, ONCE + 2 + 7 * 18),
        ({"sampler": "ddpm"}, ONCE + 3 * 0.25 + 2 + 4 * 18),
        ({"stages": HALVES}, ONCE + 2 + 2 * 18 + 6 + 2 * 190),
        ({"guidance": Guidance(scale=2, mode="autoguidance", guide=LARGE)}, ONCE + 1 + 4 * 10 + 3 + 4 * 100),
        ({"guidance": Guidance(scale=2, interval=(700, 999))}, ONCE + 2 + 2 * 18 + 1 + 2 * 10),
    ],
)
def test_a_plans_price_by_hand(changes, expected):
    assert image_price(PARTS, *work_of(plan(**changes))) == pytest.approx(expected)


def test_candidates_share_the_prompts_embedding():
    calls, noises = work_of(plan())
    once = image_price(PARTS, calls, noises)
    assert image_price(PARTS, calls, noises, candidates=3) == pytest.approx(3 * once - 2 * 0.5)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    return Pipeline(
        network=prepare(build(micro_members(8)[0]), EngineSpec()),
        autoencoder=load_autoencoder("scenes-vae"),
        text_encoder=load_text_encoder("scenes-clip-condition"),
        latent_shape=(4, 8, 8),
        caption_dropout=0.1,
    )


def test_every_part_of_a_pipeline_is_timed_and_whole_plans_with_them(pipeline):
    plans = [plan(guidance=Guidance(), steps=1), plan(steps=2)]
    found = measure(pipeline, plans, EngineSpec(batch=2), repeats=1, more={"other": lambda: None})
    assert set(found.seconds) == {*PARTS["small"], "other"}
    assert all(value > 0 for value in found.seconds.values())
    assert found.joules is None
    assert [(whole.steps, whole.guidance) for whole in found.wholes] == [(1, 1.0), (2, 2.0)]
    seconds = found.seconds
    shared = seconds["text"] + seconds["noise"] + seconds["decode"]
    assert found.wholes[1].modelled == pytest.approx(shared + seconds["start/2"] + 2 * seconds["call/2"])


def test_rows_that_no_plan_has_are_not_timed(pipeline):
    found = measure(pipeline, [plan(guidance=Guidance(), steps=1)], EngineSpec(batch=1), repeats=1)
    assert not {"start/2", "call/2"} & set(found.seconds)


def test_seconds_are_medians_of_turns_after_the_first_calls(monkeypatch):
    """A clock that says what each call took: slow first calls are left out, and one slow turn moves nothing."""
    calls: Counter[str] = Counter()
    took = {"a": [9.0, 1.0, 1.0, 7.0, 1.0], "b": [9.0, 2.0, 2.0, 2.0, 5.0]}

    def seconds_of(run, times, device):
        name = run()
        calls[name] += 1
        return took[name][calls[name] - 1] * times

    monkeypatch.setattr(timing, "seconds_of", seconds_of)
    assert timing._medians({"a": lambda: "a", "b": lambda: "b"}, 3, "cpu") == {"a": 1.0, "b": 2.0}
    assert calls == {"a": 5, "b": 5}


def test_joules_are_those_of_the_window(monkeypatch):
    counter = itertools.count(step=8)
    monkeypatch.setattr(timing, "joules_meter", lambda device: lambda: float(next(counter)))
    monkeypatch.setattr(timing, "seconds_of", lambda run, times, device: 0.5 * times)
    found = timing._joules({"a": lambda: None}, EngineSpec(batch=2))
    assert found == {"a": 8 / 2 / 2}  # 8 joules in the window of two calls of two images


def test_no_two_captions_are_equal(pipeline):
    captions = timing._fresh_captions(), timing._fresh_captions()
    made = [next(which) for which in captions for _ in range(3)]
    assert len(set(made)) == 6
    assert not pipeline.text_encoder.count_truncated(made)
