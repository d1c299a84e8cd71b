"""Beside diffusers' own forward pass, in float64: the same output and the same gradient of every weight."""

from __future__ import annotations

import pytest
import torch

from isocost.models.build import build
from isocost.specs import ModelSpec
from isocost.training.lean import LeanForward


def one_step(unet, network, x, timesteps, context):
    unet.zero_grad()
    output = network(x, timesteps, context)
    (output * torch.arange(output.numel()).view_as(output).cos()).sum().backward()
    return output.detach(), {name: weight.grad.clone() for name, weight in unet.named_parameters()}


@pytest.mark.parametrize("size", [8, 4])
def test_outputs_and_gradients_are_diffusers_own(size):
    torch.manual_seed(0)
    unet = build(ModelSpec(family="micro", width=8, context_dim=12, num_heads=2), "cpu").double()
    x, context = torch.randn(3, 4, size, size).double(), torch.randn(3, 5, 12).double()
    timesteps = torch.tensor([0, 400, 999])
    real = one_step(unet, lambda *inputs: unet(*inputs, return_dict=False)[0], x, timesteps, context)
    unet.to(memory_format=torch.channels_last)
    found = one_step(unet, LeanForward(unet), x, timesteps, context)
    torch.testing.assert_close(found[0], real[0], rtol=0, atol=1e-10)
    assert found[1].keys() == real[1].keys()
    for name, gradient in real[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-8, atol=1e-10, msg=name)
