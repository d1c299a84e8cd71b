from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch.nn import functional as F

from isocost.errors import SpecError
from isocost.models.build import build
from isocost.sampling.unet import Convolution, LeanUNet
from isocost.specs import ModelSpec

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
}


def tiny(**changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY | changes).eval().requires_grad_(False)


def family(name: str, width: int) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build(ModelSpec(family=name, width=width, context_dim=8)).eval().requires_grad_(False)


UNETS = {
    "micro": (lambda: family("micro", 16), (8, 8)),
    "micro, larger": (lambda: family("micro", 16), (16, 16)),
    "micro, sides that do not halve": (lambda: family("micro", 16), (12, 10)),
    "sd": (lambda: family("sd", 32), (8, 8)),
    "sd, sides that do not halve": (lambda: family("sd", 32), (12, 12)),
    "linear projections, heads by level": (lambda: tiny(use_linear_projection=True, attention_head_dim=[2, 4]), (8, 8)),
    "two layers, two transformers": (lambda: tiny(layers_per_block=2, transformer_layers_per_block=2), (8, 8)),
    "v2's upcast attention": (lambda: tiny(upcast_attention=True), (8, 8)),
    "one level": (
        lambda: tiny(
            block_out_channels=(8,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
        ),
        (2, 2),
    ),
}


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_predictions_are_those_of_diffusers(name):
    make, size = UNETS[name]
    unet = make()
    lean = LeanUNet(copy.deepcopy(unet))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 4, *size, generator=generator)
    context = torch.randn(3, 5, 8, generator=generator)
    keys_values = lean.keys_values(context)
    for t in (999, 3):
        expected = unet(x, t, context).sample
        torch.testing.assert_close(lean(x, keys_values, lean.shifts(t)), expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(lean(x, keys_values, lean.shifts(500)), expected, atol=1e-3)
    assert not torch.allclose(lean(x, lean.keys_values(context + 1), lean.shifts(3)), expected, atol=1e-4)


@torch.no_grad()
def test_the_layout_in_memory_changes_nothing():
    lean = LeanUNet(family("micro", 16))
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8)
    inputs = x, lean.keys_values(context), lean.shifts(500)
    channels_last = lean(*inputs)
    lean.lay_out(torch.contiguous_format)
    torch.testing.assert_close(lean(*inputs), channels_last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 2), (4, 1)])
@pytest.mark.parametrize("enlarged", [None, (2, 2), (3, 4), (4, 4)])
@torch.no_grad()
def test_a_convolution_of_few_pixels_is_a_matrix(size, enlarged):
    conv = nn.Conv2d(3, 5, 3, padding=1).double()
    x, bias = torch.randn(6, 3, *size, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    ours = Convolution(conv)
    source = x if enlarged is None else F.interpolate(x, size=enlarged, mode="nearest")
    torch.testing.assert_close(ours(x, size=enlarged), conv(source))
    torch.testing.assert_close(ours(x, bias, enlarged), F.conv2d(source, conv.weight, bias, padding=1))
    assert len(ours.matrices) == 1  # made once
    ours.MATRIX_PIXELS = 0
    torch.testing.assert_close(ours(x, size=enlarged), conv(source))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"act_fn": "gelu"}, "act_fn"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"num_class_embeds": 7}, "num_class_embeds"),
        (
            {
                "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
            },
            "SimpleCrossAttnDownBlock2D, SimpleCrossAttnUpBlock2D",
        ),
    ],
)
def test_a_part_that_is_not_known(changes, named):
    with pytest.raises(SpecError, match=f"does not know this UNet's {named}: use 'diffusers'"):
        LeanUNet(tiny(**changes))
