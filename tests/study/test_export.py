from __future__ import annotations

import numpy as np
import pytest
import torch

from isocost.api import export, sample
from isocost.diffusion.noise import batch_noise
from isocost.errors import SpecError


@pytest.mark.parametrize("steps", [4, 20])
def test_the_export_draws_the_same_image_in_diffusers(swept, tmp_path, steps):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    folder = export(swept, tmp_path / "exported")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a large red circle on a blue background", "two small green stars"]
    ours = sample(swept, prompts, steps=steps, guidance_scale=3.0, spacing="leading")
    latents = torch.from_numpy(batch_noise([(text, 0) for text in prompts], "x_T", (4, 8, 8)))
    made = pipeline(
        prompts,
        negative_prompt=["", ""],
        num_inference_steps=steps,
        guidance_scale=3.0,
        latents=latents,
        output_type="np",
    )
    # `sample` gives uint8: half a level is the most that rounding alone can move.
    assert np.abs(made.images - ours / 255.0).max() < 0.5 / 255 + 1e-3


def test_the_card_holds_compute_scores_and_spec(swept, tmp_path):
    card = (export(swept, tmp_path / "exported") / "README.md").read_text()
    for expected in ("parameters", "TFLOPs", "fd[scenes-clip-score-4", "sha256", "caption_dropout: 0.1", "licence"):
        assert expected in card


def test_an_export_overwrites_nothing(swept, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SpecError, match="not empty"):
        export(swept, tmp_path)
