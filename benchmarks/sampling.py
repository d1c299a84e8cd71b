"""Images per core-second of our engine beside diffusers' StableDiffusionPipeline: same weights, plan and batch.

    python benchmarks/sampling.py [--width 16] [--steps 20] [--guidance 2] [--batch 64] [--repeats 5]

Both sides start from prompts and end with uint8 images, on one thread. The images are compared first: the benchmark
fails where they differ by more than 1e-3 of full scale on average. Weights are random: they cost what trained ones do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from isocost.allocator import keep_freed_memory
from isocost.data import scenes
from isocost.diffusion.noise import batch_noise
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.environment import environment
from isocost.models.build import build
from isocost.models.ladder import ladder
from isocost.sampling.engine import prepare
from isocost.sampling.generate import Pipeline, generate
from isocost.specs import CheckpointRef, EngineSpec, Guidance, NoiseSchedule, SamplingPlan, SceneOptions, Stage
from isocost.study.export import scheduler_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 16), ("steps", 20), ("batch", 64), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--guidance", type=float, default=2.0)
    args = parser.parse_args()
    print(json.dumps(measure(args.width, args.steps, args.guidance, args.batch, args.repeats)))


def measure(
    width: int = 16, steps: int = 20, guidance: float = 2.0, batch: int = 64, repeats: int = 5
) -> dict[str, Any]:
    """The benchmark's result; prints its repeats on the way. SystemExit where the two sides draw other images."""
    torch.set_num_threads(1)
    keep_freed_memory()

    schedule = NoiseSchedule()
    spec = next(member for member in ladder("micro").members if member.width == width)
    torch.manual_seed(0)
    unet = build(spec).eval()
    captions = [text for text, _ in scenes.describe_all(0, range(batch), SceneOptions())]
    ids = [(text, 0) for text in captions]
    shape = (4, 8, 8)
    engine = EngineSpec(batch=batch)
    plan = SamplingPlan(
        stages=(Stage(checkpoint=CheckpointRef(content_digest="random", images_seen=0)),),
        schedule=schedule,
        prediction="v_prediction",
        sampler="ddim",
        steps=steps,
        spacing="leading",
        guidance=Guidance(scale=guidance),
    )
    theirs = diffusers_pipeline(unet, schedule)
    ours = Pipeline(
        prepare(unet, engine), load_autoencoder("scenes-vae"), load_text_encoder("scenes-clip-condition"), shape, 0.1
    )

    def run_ours() -> np.ndarray:
        ours.text_encoder._cache.clear()  # the pipeline has no cache of prompts: neither side keeps one
        return generate(ours, plan, engine, [(text, text, 0) for text in captions]).images

    def run_theirs() -> np.ndarray:
        latents = torch.from_numpy(batch_noise(ids, "x_T", shape))
        made = theirs(
            captions,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=latents,
            negative_prompt=[""] * len(captions),
            output_type="np",
        )
        return (made.images * 255).round().astype(np.uint8)

    difference = np.abs(run_ours().astype(float) - run_theirs().astype(float)).mean() / 255
    if difference > 1e-3:
        raise SystemExit(f"the images differ by {difference:.2g} of full scale: nothing to compare")
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(repeats):
        for name, function in (("ours", run_ours), ("theirs", run_theirs)):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
        print(
            f"repeat {repeat + 1}: ours {seconds['ours'][-1]:.2f} s, diffusers {seconds['theirs'][-1]:.2f} s",
            flush=True,
        )
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "name": f"sampling: micro c{width}, DDIM-{steps}, guidance {guidance:g}, batch {batch}",
        "ratio": round(statistics.median(ratios), 3),
        "ratios": {"fastest repeat": round(max(ratios), 3), "slowest repeat": round(min(ratios), 3)},
        "baseline": "diffusers StableDiffusionPipeline, one thread",
        "images_per_core_second": {name: round(batch / value, 2) for name, value in medians.items()},
        "mean_difference": difference,
        "device": environment(),
    }


def diffusers_pipeline(unet: Any, schedule: NoiseSchedule) -> StableDiffusionPipeline:
    """The pipeline that a user would load, with our encoders' modules."""
    autoencoder, text = load_autoencoder("scenes-vae"), load_text_encoder("scenes-clip-condition")
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.module,
        text_encoder=text.module,
        tokenizer=text.tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**scheduler_config(schedule, "v_prediction")),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


if __name__ == "__main__":
    main()
