from __future__ import annotations

import pytest
import torch

from isocost.specs import Ema
from isocost.training.ema import Average, decay


def test_half_life_is_counted_in_images_whatever_the_batch():
    ema = Ema(halflife_images=1000, rampup=None)
    for batch in (1, 8, 50):
        assert decay(ema, 10**6, batch) ** (1000 / batch) == pytest.approx(0.5)


def test_rampup_limits_the_half_life_early_on():
    ema = Ema(halflife_images=1000, rampup=0.05)
    assert decay(ema, 200, 10) == pytest.approx(0.5 ** (10 / 10))
    assert decay(ema, 20_000, 10) == decay(ema, 10**9, 10) == pytest.approx(0.5 ** (10 / 1000))


def test_average_against_the_closed_form():
    module = torch.nn.Linear(1, 1, bias=False)
    average = Average(module, Ema(halflife_images=40, rampup=None))
    start = module.weight.item()
    kept = 0.5 ** (8 / 40)
    for step in range(1, 21):
        with torch.no_grad():
            module.weight.fill_(5.0)
        average.update(8 * step, 8)
        expected = 5 + (start - 5) * kept**step
        assert average.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert module.weight.item() == 5.0


def test_average_of_bf16_weights_is_fp32():
    module = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    torch.nn.init.ones_(module.weight)
    average = Average(module, Ema(halflife_images=10_000, rampup=None))
    with torch.no_grad():
        module.weight.fill_(2.0)
    average.update(1, 1)
    assert 1 < average.state_dict()["weight"].item() < 1.001
