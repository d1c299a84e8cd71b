from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.pixart_transformer_2d import PixArtTransformer2DModel

from isocost.diffusion.denoiser import from_unet
from isocost.models.build import blocks, build
from isocost.specs import ModelSpec


def dit(width: int = 32, **fields) -> ModelSpec:
    return ModelSpec(**({"family": "dit-micro", "width": width, "context_dim": 24, "num_heads": 2} | fields))


def trained(spec: ModelSpec, seed: int = 0) -> Any:
    """A DiT whose weights are all random: freshly initialised it gives 0 whatever it is given."""
    torch.manual_seed(seed)
    module = build(spec)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return module.eval()


def inputs(size: int = 8, rows: int = 2, spec: ModelSpec | None = None):
    spec = spec or dit()
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(rows, spec.in_channels, size, size, generator=generator)
    return latent, torch.tensor([3, 700])[:rows], torch.randn(rows, 5, spec.context_dim, generator=generator)


def pixart(spec: ModelSpec, depth: int, size: int) -> PixArtTransformer2DModel:
    """diffusers' own transformer of the same shape."""
    return PixArtTransformer2DModel(
        num_attention_heads=spec.num_heads,
        attention_head_dim=spec.width // spec.num_heads,
        in_channels=spec.in_channels,
        out_channels=spec.out_channels,
        num_layers=depth,
        cross_attention_dim=spec.width,
        caption_channels=spec.context_dim,
        sample_size=size,
        interpolation_scale=1,  # pyright: ignore[reportArgumentType]
        use_additional_conditions=False,
    ).eval()


@pytest.mark.parametrize("size", [8, 12, 16])
def test_weights_and_output_are_those_of_diffusers_at_any_size(size: int) -> None:
    module = trained(dit(in_channels=3, out_channels=5))
    theirs = pixart(dit(in_channels=3, out_channels=5), depth=2, size=8)
    theirs.load_state_dict(module.state_dict())
    latent, timesteps, context = inputs(size, spec=dit(in_channels=3))
    with torch.no_grad():
        ours = module(latent, timesteps, context).sample
        expected = theirs(latent, encoder_hidden_states=context, timestep=timesteps).sample
    assert ours.shape == (2, 5, size, size)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changed", ["latent", "timestep", "context"])
def test_reads_all_three(changed: str) -> None:
    module, (latent, timesteps, context) = trained(dit()), inputs()
    with torch.no_grad():
        before = module(latent, timesteps, context).sample
        if changed == "latent":
            after = module(latent + 0.1, timesteps, context).sample
        elif changed == "timestep":
            after = module(latent, timesteps + 100, context).sample
        else:
            after = module(latent, timesteps, context.flip(0)).sample
    assert (after - before).abs().max() > 1e-3


def test_is_called_as_a_unet_is() -> None:
    module, (latent, timesteps, context) = trained(dit()), inputs()
    with torch.no_grad():
        expected = module(latent, timesteps, context).sample
        assert torch.equal(from_unet(module)(latent, timesteps, context), expected)
        one_for_all = module(latent, 700, context).sample
    torch.testing.assert_close(one_for_all[1], expected[1])
    assert (one_for_all[0] - expected[0]).abs().max() > 1e-3


def test_places_differ() -> None:
    """The same patch everywhere, and no two tokens alike."""
    module, (_, timesteps, context) = trained(dit()), inputs()
    with torch.no_grad():
        output = module(torch.ones(1, 4, 8, 8), timesteps[:1], context[:1]).sample
    patches = output.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(16, -1)
    assert torch.cdist(patches, patches).add(torch.eye(16)).min() > 1e-4


def test_starts_at_zero_and_learns_from_the_first_step() -> None:
    torch.manual_seed(0)
    module, (latent, timesteps, context) = build(dit()), inputs()
    output = module(latent, timesteps, context).sample
    assert not output.any()
    (output - latent).square().mean().backward()
    assert module.get_parameter("proj_out.weight").grad is not None
    assert module.get_parameter("proj_out.weight").grad.abs().max() > 0  # pyright: ignore[reportOptionalMemberAccess]


def test_on_meta_and_back_without_loss() -> None:
    """As a checkpoint is loaded: built without memory, weights assigned."""
    module = trained(dit())
    empty = build(dit(), "meta")
    empty.load_state_dict(module.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(empty.eval()(*inputs()).sample, module(*inputs()).sample)


def test_depth_and_blocks() -> None:
    for width, depth in ((384, 8), (1024, 24), (1152, 28)):
        spec = ModelSpec(family="dit", width=width, context_dim=1024, num_heads=width // 64)
        assert [type(block).__name__ for block in blocks(build(spec, "meta"))] == ["BasicTransformerBlock"] * depth
    assert len(list(blocks(build(dit(64), "meta")))) == 4
    unet = build(ModelSpec(family="micro", width=8, context_dim=24, num_heads=2), "meta")
    assert {type(block).__name__ for block in blocks(unet)} == {"ResnetBlock2D", "Transformer2DModel"}
