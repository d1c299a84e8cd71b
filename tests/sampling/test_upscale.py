from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from isocost.data.pairs import enlarged
from isocost.encoders.autoencoder import Autoencoder
from isocost.errors import DataError, SpecError
from isocost.models.build import build
from isocost.sampling.engine import prepare
from isocost.sampling.generate import Pipeline, generate
from isocost.sampling.upscale import LowRes, upscale, upscale_whole
from isocost.specs import CheckpointRef, EngineSpec, Guidance, ModelSpec, NoiseSchedule, SamplingPlan, Stage

ENGINE = EngineSpec(batch=4)


class Empty:
    def encode(self, captions):
        assert set(captions) == {""}
        return np.ones((len(captions), 3, 8), np.float32)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    torch.manual_seed(0)
    unet = build(ModelSpec(family="micro", width=8, context_dim=8, num_heads=2).conditioned)
    module = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        latent_channels=4,
    )
    return Pipeline(prepare(unet, ENGINE), Autoencoder(module), Empty(), (4, 16, 16), 0.0, takes_image=True)  # type: ignore


def plan(**changes) -> SamplingPlan:
    values = {
        "stages": (Stage(checkpoint=CheckpointRef(content_digest="a" * 64, images_seen=0)),),
        "schedule": NoiseSchedule(),
        "prediction": "v_prediction",
        "sampler": "ddim",
        "steps": 2,
    }
    return SamplingPlan(**(values | changes))


def low(number: int, height: int = 16, width: int = 16, replicate: int = 0) -> LowRes:
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return LowRes(f"image {number}", np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)), replicate)


def test_an_image_is_a_function_of_its_id_pixels_and_replicate(pipeline):
    images = [low(number) for number in range(4)]
    made = upscale(pipeline, plan(), ENGINE, images)
    assert made.images.shape == (4, 64, 64, 3) and made.evaluations == 2
    assert np.array_equal(upscale(pipeline, plan(), ENGINE, [images[2]]).images[0], made.images[2])
    assert np.array_equal(upscale(pipeline, plan(), ENGINE, images[::-1]).images[::-1], made.images)
    for other in (images[2]._replace(replicate=1), images[2]._replace(id="another"), low(9)._replace(id="image 2")):
        assert not np.array_equal(upscale(pipeline, plan(), ENGINE, [other]).images[0], made.images[2])


def test_one_tile_is_the_single_pass(pipeline):
    whole = upscale(pipeline, plan(), ENGINE, [low(1)]).images[0]
    tiled = upscale_whole(pipeline, plan(), ENGINE, low(1))
    assert np.abs(whole.astype(int) - tiled).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(24, 40), (33, 17), (5, 60), (16, 9)])
def test_any_size_comes_out_four_times_as_large(pipeline, height, width):
    told = []
    made = upscale_whole(pipeline, plan(), ENGINE, low(0, height, width), report=lambda *at: told.append(at))
    assert made.shape == (4 * height, 4 * width, 3) and made.dtype == np.uint8
    assert told == [(1, 2), (2, 2)]


def test_tiles_leave_no_seam(pipeline):
    """Along the borders of tiles neighbouring pixels differ no more than elsewhere."""
    made = upscale_whole(pipeline, plan(), ENGINE, low(3, 16, 64), overlap=4).astype(int)
    steps = np.abs(np.diff(made, axis=1)).mean(axis=(0, 2))
    borders = {4 * start + offset for start in (12, 24, 36, 48) for offset in (-1, 15)}
    at = [steps[place] for place in borders if place < len(steps)]
    assert np.mean(at) < 1.5 * np.mean(steps)


def test_plans_and_checkpoints_that_cannot(pipeline):
    with pytest.raises(SpecError, match="no prompt to be guided by"):
        upscale(pipeline, plan(guidance=Guidance(scale=2)), ENGINE, [low(0)])
    with pytest.raises(SpecError, match="`isocost sample`"):
        upscale_whole(replace(pipeline, takes_image=False), plan(), ENGINE, low(0))
    with pytest.raises(SpecError, match="`isocost upscale`"):
        generate(pipeline, plan(), ENGINE, [("id", "a prompt", 0)])
    with pytest.raises(DataError, match="image 0: 3 x 16 pixels: too small"):
        upscale_whole(pipeline, plan(), ENGINE, low(0, 16, 3))
    with pytest.raises(DataError, match="2 sizes"):
        upscale(pipeline, plan(), ENGINE, [low(0), low(1, 16, 24)])
    with pytest.raises(SpecError, match="take a multiple of 8 pixels"):
        upscale_whole(pipeline, plan(), ENGINE, low(0, 40, 40), tile=20)


def test_what_the_network_is_given_is_the_bicubic_enlargement(pipeline):
    """A network that predicts the image itself, and says what lies beside the noise, gives the enlargement back."""

    def network(x, timesteps, context):
        return x[:, 4:]

    given = replace(pipeline, network=network)
    image = low(5)
    rebuilt = pipeline.autoencoder.decode(pipeline.autoencoder.encode(enlarged(image.pixels)[None]))
    sample = plan(prediction="sample")
    assert np.array_equal(upscale(given, sample, ENGINE, [image]).images, rebuilt)
    larger = low(5, 24, 24)  # tiles of the network's, and one of the autoencoder's
    tiled = upscale_whole(given, sample, ENGINE, larger).astype(int)
    single = pipeline.autoencoder.decode(pipeline.autoencoder.encode(enlarged(larger.pixels)[None]))[0]
    assert np.abs(tiled - single).max() <= 1
