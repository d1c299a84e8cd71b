from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from isocost.models.build import build
from isocost.specs import ModelSpec, Optimizer
from isocost.training.optimizer import make_optimizer, wide

UNET = ModelSpec(family="micro", width=8, context_dim=24, num_heads=2)
DIT = ModelSpec(family="dit-micro", width=32, context_dim=24, num_heads=2)


def peak_rates(model: ModelSpec, chosen: Optimizer) -> dict[str, float]:
    """By name, "muon" for what Muon has; every weight is in exactly one group."""
    module = build(model)
    optimizer = make_optimizer(module, model, chosen)
    names = {weight: name for name, weight in module.named_parameters()}
    rates = {}
    for group in optimizer.param_groups:
        assert group["lr"] == group["initial_lr"]
        for weight in group["params"]:
            assert names[weight] not in rates
            rates[names[weight]] = "muon" if group["momentum"] else group["lr"]
    assert set(rates) == set(names.values())
    return rates


def test_constant_is_one_rate_for_all() -> None:
    for model in (UNET, DIT):
        assert set(peak_rates(model, Optimizer(lr=0.5)).values()) == {0.5}


@pytest.mark.parametrize(
    ("model", "scaled", "kept"),
    [
        (
            UNET,
            ["conv_out.weight", "mid_block.resnets.0.conv1.weight", "time_embedding.linear_1.weight",
             "mid_block.attentions.0.transformer_blocks.0.attn2.to_q.weight"],
            ["conv_in.weight", "conv_in.bias", "time_embedding.linear_2.bias", "conv_norm_out.weight",
             "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"],
        ),
        (
            DIT,
            ["proj_out.weight", "transformer_blocks.1.ff.net.2.weight", "adaln_single.linear.weight",
             "transformer_blocks.0.attn2.to_k.weight"],
            ["pos_embed.proj.weight", "caption_projection.linear_1.weight", "scale_shift_table",
             "adaln_single.emb.timestep_embedder.linear_1.weight", "transformer_blocks.0.attn1.to_q.bias",
             "transformer_blocks.0.scale_shift_table"],
        ),
    ],
    ids=["unet", "dit"],
)  # fmt: skip
def test_width_scales_what_sums_over_the_width(model: ModelSpec, scaled: list[str], kept: list[str]) -> None:
    rates = peak_rates(model, Optimizer(lr=0.5, lr_scaling="width", base_width=2 * model.width))
    assert {rates[name] for name in scaled} == {1.0}
    assert {rates[name] for name in kept} == {0.5}
    assert set(rates.values()) == {0.5, 1.0}


def test_at_the_base_width_nothing_changes() -> None:
    chosen = Optimizer(lr=0.5, lr_scaling="width", base_width=UNET.width)
    assert set(peak_rates(UNET, chosen).values()) == {0.5}


def test_wide_weights_are_a_property_of_the_family() -> None:
    assert wide(UNET) == wide(UNET.model_copy(update={"width": 24}))
    assert wide(DIT) < wide(DIT.model_copy(update={"width": 64}))  # which is deeper


def test_muon_has_hidden_matrices_at_its_own_rate() -> None:
    for scaling in ({}, {"lr_scaling": "width", "base_width": 16}):
        rates = peak_rates(UNET, Optimizer(kind="muon", lr=0.5, **scaling))
        assert rates["mid_block.resnets.0.conv1.weight"] == "muon" and rates["conv_in.weight"] == 0.5
        assert rates["conv_out.weight"] == (1.0 if scaling else 0.5)
    rates = peak_rates(DIT, Optimizer(kind="muon", lr=0.5))
    assert rates["transformer_blocks.0.ff.net.2.weight"] == "muon"
    assert rates["pos_embed.proj.weight"] == rates["proj_out.weight"] == 0.5


def test_one_step_moves_scaled_weights_by_their_own_rate() -> None:
    """AdamW's first step is the rate itself, whatever the gradient."""
    module = build(UNET)
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    chosen = Optimizer(lr=1e-3, weight_decay=0, lr_scaling="width", base_width=16)
    optimizer = make_optimizer(module, UNET, chosen)
    for weight in module.parameters():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    for name, rate in (("conv_out.weight", 2e-3), ("conv_in.weight", 1e-3)):
        moved = (module.get_parameter(name) - before[name]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=0)


def test_a_rule_needs_its_base() -> None:
    for fields in ({"lr_scaling": "width"}, {"base_width": 8}):
        with pytest.raises(ValidationError, match="lr_scaling 'width' goes with base_width"):
            Optimizer(**fields)
