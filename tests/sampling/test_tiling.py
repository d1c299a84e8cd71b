from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from isocost.diffusion.denoiser import Conditioned
from isocost.errors import SpecError
from isocost.models.build import build
from isocost.sampling.engine import prepare
from isocost.sampling.tiling import Tiled, Tiles, cut, woven
from isocost.specs import EngineSpec, ModelSpec

CANVASES = [(16, 16, 16, 4), (17, 40, 16, 4), (61, 33, 16, 8), (100, 16, 16, 0)]


@pytest.mark.parametrize(("height", "width", "side", "overlap"), CANVASES)
def test_squares_cover_the_canvas_and_share_what_they_should(height, width, side, overlap):
    tiles = Tiles(height, width, side, overlap)
    for starts, length in ((tiles.rows, height), (tiles.columns, width)):
        assert starts[0] == 0 and starts[-1] == length - side
        assert all(0 < after - before <= side - overlap for before, after in pairwise(starts))


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(("height", "width", "side", "overlap"), CANVASES)
def test_squares_of_a_canvas_are_woven_into_that_canvas(height, width, side, overlap, scale):
    tiles = Tiles(height, width, side, overlap)
    canvas = torch.randn(3, scale * height, scale * width)
    bands = list(
        woven(tiles, lambda corners: cut(canvas, [(scale * y, scale * x) for y, x in corners], scale * side), scale)
    )
    torch.testing.assert_close(torch.cat(bands, dim=1), canvas, rtol=0, atol=1e-5)
    assert max(band.shape[1] for band in bands) <= scale * side


def test_between_squares_that_disagree_there_is_a_ramp_and_no_seam():
    tiles = Tiles(16, 28, 16, 4)
    assert tiles.columns == [0, 12]
    (band,) = woven(tiles, lambda corners: torch.stack([torch.full((1, 16, 16), float(x > 0)) for _, x in corners]))
    expected = np.concatenate([np.zeros(12), (np.arange(4) + 0.5) / 4, np.ones(12)])
    np.testing.assert_allclose(band[0], np.tile(expected, (16, 1)), atol=1e-6)


@pytest.mark.parametrize(("fields", "message"), [((8, 40, 16, 4), "do not fit"), ((32, 32, 16, 9), "half a tile")])
def test_tiles_that_cannot_be(fields, message):
    with pytest.raises(SpecError, match=message):
        Tiles(*fields)


@pytest.mark.parametrize("network", ["diffusers", "lean"])
def test_one_tile_is_the_single_pass(network):
    torch.manual_seed(0)
    spec = ModelSpec(family="micro", width=8, context_dim=8, num_heads=2).conditioned
    prepared = prepare(build(spec), EngineSpec(network=network))
    x, condition, context = torch.randn(1, 4, 16, 16), torch.randn(4, 16, 16), torch.randn(1, 3, 8)
    whole = Conditioned(prepared, condition[None]).bind(context, 1)(x, 500)
    tiled = Tiled(prepared, condition, Tiles(16, 16, 16, 4), batch=2).bind(context, 1)(x, 500)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-5)


def test_every_square_is_seen_with_its_own_condition_whatever_the_batch():
    seen = []

    def network(x, timesteps, context):
        seen.append(x.shape[0])
        return x[:, :2] + 10 * x[:, 2:]

    x, condition = torch.randn(1, 2, 20, 50), torch.randn(2, 20, 50)
    done = []
    for batch in (1, 3):
        tiled = Tiled(network, condition, Tiles(20, 50, 16, 4), batch, lambda: done.append(1))
        output = tiled.bind(torch.zeros(1, 3, 8), 1)(x, 7)
        torch.testing.assert_close(output[0], x[0] + 10 * condition, rtol=0, atol=1e-4)
    assert set(seen) == {1, 3} and len(done) == 2
    with pytest.raises(SpecError, match="not guided"):
        tiled.bind(torch.zeros(2, 3, 8), 2)
