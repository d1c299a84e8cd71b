from __future__ import annotations

import pytest
import torch

from isocost.errors import SpecError
from isocost.models.build import FAMILIES, build
from isocost.specs import ModelSpec


def micro(width: int = 8, **fields) -> ModelSpec:
    return ModelSpec(**({"family": "micro", "width": width, "context_dim": 64, "num_heads": 4} | fields))


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("width", [8, 24])
def test_micro_maps_latents_to_latents(width: int, size: int) -> None:
    unet = build(micro(width, in_channels=5, out_channels=3))
    output = unet(torch.randn(2, 5, size, size), torch.tensor([3, 700]), torch.randn(2, 32, 64)).sample
    assert output.shape == (2, 3, size, size)
    assert output.isfinite().all()


@pytest.mark.parametrize("changed", ["timestep", "context"])
def test_micro_reads_timestep_and_context(changed: str) -> None:
    torch.manual_seed(0)
    unet = build(micro())
    latent, context = torch.randn(1, 4, 8, 8), torch.randn(1, 32, 64)
    before = unet(latent, 100, context).sample
    after = unet(latent, 900, context) if changed == "timestep" else unet(latent, 100, torch.randn(1, 32, 64))
    assert (after.sample - before).abs().max() > 1e-3


def test_same_seed_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([weight.flatten() for weight in build(micro()).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_meta_by_argument_and_by_context() -> None:
    with torch.device("meta"):
        inside = build(micro())
    for unet in (inside, build(micro(), "meta")):
        assert {weight.device.type for weight in unet.parameters()} == {"meta"}
    assert {weight.device.type for weight in build(micro()).parameters()} == {"cpu"}


def test_eight_heads_at_every_width_of_sd() -> None:
    unet = build(ModelSpec(family="sd", width=64, context_dim=32), "meta")
    heads = {module.heads for name, module in unet.named_modules() if name.endswith(("attn1", "attn2"))}
    assert heads == {8}
    assert unet.config["block_out_channels"] == (64, 128, 256, 256)


def test_no_norm_group_is_a_single_channel() -> None:
    groups = [m for m in build(micro(8), "meta").modules() if isinstance(m, torch.nn.GroupNorm)]
    assert min(norm.num_channels // norm.num_groups for norm in groups) == 4


def test_unknown_family_names_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"unknown model family 'micor'\. Did you mean 'micro'"):
        build(micro(family="micor"))
    assert set(FAMILIES) == {"sd", "micro", "dit", "dit-micro"}


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        (ModelSpec(family="sd", width=100, context_dim=1024), "multiple of 32, such as 96 or 128"),
        (ModelSpec(family="sd", width=20, context_dim=1024), "multiple of 32, such as 32"),
        (ModelSpec(family="sd", width=320, context_dim=1024, num_heads=12), "multiple of 96, such as 288 or 384"),
        (micro(10), "multiple of 4, such as 8 or 12"),
        (micro(8, num_heads=6), "multiple of 12, such as 12"),
        (ModelSpec(family="dit", width=448, context_dim=1024, num_heads=7), "multiple of 896, such as 896"),
        (ModelSpec(family="dit-micro", width=40, context_dim=64, num_heads=2), "multiple of 16, such as 32 or 48"),
    ],
)
def test_a_width_that_does_not_split_says_which_would(spec: ModelSpec, advice: str) -> None:
    with pytest.raises(SpecError, match=advice):
        build(spec, "meta")


def test_heads_need_divide_the_second_level_only() -> None:
    assert build(micro(4, num_heads=8), "meta").config["block_out_channels"] == (4, 8, 16)
