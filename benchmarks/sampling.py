"""Images per second of our engine beside diffusers' StableDiffusionPipeline: same weights, plan, batch and cores.

    python benchmarks/sampling.py [--widths 8,16,24,32,48,64] [--steps 10] [--guidance 2] [--batch 64] [--repeats 5]
                                  [--dtype fp32|bf16] [--compiled] [--cores 2] [--changes]

The pipeline runs in one process with a thread a core, as a user would run it; our engine, as a sweep does, in a
process a core with one thread each. Both start from prompts and end with uint8 images; turns alternate. The images
are compared first: the benchmark fails where they differ by more than 1e-3 of full scale on average (bf16: 2e-2).
Weights are random: they cost what trained ones do. `--changes` adds what each part of the engine brings: CPU
seconds of one trajectory on one thread with that part taken out, over those with all of them."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from isocost.allocator import keep_freed_memory
from isocost.data import scenes
from isocost.diffusion.noise import batch_noise
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.environment import environment
from isocost.models.build import build
from isocost.models.ladder import ladder
from isocost.sampling.engine import LeanNetwork, prepare, sample_latents
from isocost.sampling.generate import Pipeline, generate
from isocost.sampling.unet import Convolution, LeanUNet
from isocost.specs import CheckpointRef, EngineSpec, Guidance, NoiseSchedule, SamplingPlan, SceneOptions, Stage
from isocost.study.export import scheduler_config

WIDTHS = (8, 16, 24, 32, 48, 64)
SHAPE = (4, 8, 8)
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=lambda text: tuple(map(int, text.split(","))), default=WIDTHS)
    for name, default in (("steps", 10), ("batch", 64), ("repeats", 5), ("cores", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--dtype", choices=TOLERANCE, default="fp32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--changes", action="store_true")
    print(json.dumps(measure(**vars(parser.parse_args()))))


def measure(
    widths: tuple[int, ...] = (16,),
    steps: int = 10,
    guidance: float = 2.0,
    batch: int = 64,
    repeats: int = 5,
    cores: int = 1,
    dtype: str = "fp32",
    compiled: bool = False,
    changes: bool = False,
) -> dict[str, Any]:
    """The benchmark's result; prints its turns on the way. SystemExit where the two sides draw other images."""
    keep_freed_memory()
    engine = EngineSpec.parse({"dtype": dtype, "network": "lean", "compiled": compiled, "batch": batch})
    plan = plan_of(steps, guidance)
    members = {f"c{width}": compare(width, plan, engine, repeats, cores) for width in widths}
    ratios = {name: member["ratio"] for name, member in members.items()}
    middle = members[sorted(ratios, key=lambda name: ratios[name])[len(ratios) // 2]]
    table = {f"c{width}": what_changes_bring(width, plan, engine, repeats) for width in widths} if changes else None
    return {
        "name": f"sampling: micro {', '.join(members)}, DDIM-{steps}, guidance {guidance:g}, batch {batch}, {dtype}"
        + (", compiled" if compiled else ""),
        "ratio": round(statistics.median(ratios.values()), 3),
        "ratios": ratios,
        "baseline": f"diffusers StableDiffusionPipeline in {dtype}, one process of {cores} threads",
        "images_per_core_second": middle["images_per_core_second"],
        "members": members,
        "changes": table,
        "device": environment(),
    }


def plan_of(steps: int, guidance: float) -> SamplingPlan:
    return SamplingPlan(
        stages=(Stage(checkpoint=CheckpointRef(content_digest="random", images_seen=0)),),
        schedule=NoiseSchedule(),
        prediction="v_prediction",
        sampler="ddim",
        steps=steps,
        spacing="leading",
        guidance=Guidance(scale=guidance),
    )


def random_unet(width: int) -> Any:
    torch.manual_seed(0)
    return build(next(member for member in ladder("micro").members if member.width == width)).eval()


# --- both sides, with all cores ---


def compare(width: int, plan: SamplingPlan, engine: EngineSpec, repeats: int, cores: int) -> dict[str, Any]:
    """One member: seconds of each side for `cores` batches, turns alternating."""
    captions = [text for text, _ in scenes.describe_all(0, range(engine.batch), SceneOptions())]
    dtype = torch.bfloat16 if engine.dtype == "bf16" else torch.float32
    theirs = diffusers_pipeline(random_unet(width), plan.schedule, dtype)
    torch.set_num_threads(cores)
    workers = [Worker(width, plan, engine, captions) for _ in range(cores)]
    images = [worker.finished() for worker in workers]  # the first batch compiles and warms up

    def run_theirs() -> np.ndarray:
        made = theirs(
            captions,
            num_inference_steps=plan.steps,
            guidance_scale=plan.guidance.scale,
            latents=torch.from_numpy(batch_noise([(text, 0) for text in captions], "x_T", SHAPE)).to(dtype),
            negative_prompt=[""] * len(captions),
            output_type="np",
        )
        return (made.images * 255).round().astype(np.uint8)

    difference = np.abs(images[0].astype(float) - run_theirs().astype(float)).mean() / 255
    if difference > TOLERANCE[engine.dtype]:
        raise SystemExit(f"c{width}: the images differ by {difference:.2g} of full scale: nothing to compare")
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repeat in range(repeats):
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.finished()
        middle = time.perf_counter()
        for _ in range(cores):
            run_theirs()
        seconds["ours"].append(middle - start)
        seconds["theirs"].append(time.perf_counter() - middle)
        ours, other = (seconds[side][-1] for side in ("ours", "theirs"))
        print(f"c{width} repeat {repeat + 1}: ours {ours:.2f} s, diffusers {other:.2f} s", flush=True)
    for worker in workers:
        worker.stop()
    ratios = [other / ours for ours, other in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "fastest repeat": round(max(ratios), 3),
        "slowest repeat": round(min(ratios), 3),
        "images_per_core_second": {
            side: round(engine.batch / statistics.median(values), 2) for side, values in seconds.items()
        },
        "mean_difference": difference,
    }


class Worker:
    """A process of one thread with our pipeline, which makes a batch when told to."""

    def __init__(self, width: int, plan: SamplingPlan, engine: EngineSpec, captions: list[str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, width, plan, engine, captions), daemon=True)
        self.process.start()

    def start(self) -> None:
        self.pipe.send(True)

    def finished(self) -> np.ndarray:
        return self.pipe.recv()

    def stop(self) -> None:
        self.pipe.send(False)
        self.process.join()


def serve(pipe: Connection, width: int, plan: SamplingPlan, engine: EngineSpec, captions: list[str]) -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    ours = our_pipeline(width, engine)
    go_on = True
    while go_on:
        ours.text_encoder._cache.clear()  # the pipeline has no cache of prompts: neither side keeps one
        pipe.send(generate(ours, plan, engine, [(text, text, 0) for text in captions]).images)
        go_on = pipe.recv()


def our_pipeline(width: int, engine: EngineSpec) -> Pipeline:
    network = prepare(random_unet(width), engine)
    return Pipeline(
        network, load_autoencoder("scenes-vae"), load_text_encoder("scenes-clip-condition"), SHAPE, caption_dropout=0.1
    )


def diffusers_pipeline(unet: Any, schedule: NoiseSchedule, dtype: torch.dtype) -> StableDiffusionPipeline:
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
    ).to(dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# --- what each part of the engine brings ---


def what_changes_bring(width: int, plan: SamplingPlan, engine: EngineSpec, repeats: int) -> dict[str, float]:
    """Of each part, CPU seconds of a trajectory without it over those with all parts; and of all parts together."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    context, null = (rng.standard_normal(shape, dtype=np.float32) for shape in ((engine.batch, 32, 64), (32, 64)))
    ids = [(str(i), 0) for i in range(engine.batch)]

    def trajectory(network: Any) -> Callable[[], object]:
        return lambda: sample_latents(network, plan, context, null, ids, SHAPE, engine)

    def lean(change: Callable[[LeanNetwork], None]) -> Callable[[], object]:
        network = LeanNetwork(random_unet(width), engine)
        change(network)
        return trajectory(network)

    runs = {
        "all": lean(lambda network: None),
        "none: diffusers' forward": trajectory(
            prepare(random_unet(width), engine.model_copy(update={"network": "diffusers"}))
        ),
        **{name: lean(change) for name, change in WITHOUT.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    gains = {name: round(value / medians["all"], 3) for name, value in medians.items()}
    print(f"c{width}: {gains}", flush=True)
    return gains


def keys_and_values_each_call(network: LeanNetwork) -> None:
    def bind(context: Tensor, rows_per_image: int) -> Callable[[Tensor, int], Tensor]:
        return lambda x, t: LeanNetwork.bind(network, context, rows_per_image)(x, t)

    network.bind = bind


def time_embedding_each_call(network: LeanNetwork) -> None:
    class Forgetful(dict):
        def __contains__(self, key: object) -> bool:
            return False

    network.shifts = Forgetful()


def channels_first(network: LeanNetwork) -> None:
    network.unet.lay_out(torch.contiguous_format)


def no_matrices(network: LeanNetwork) -> None:
    for module in network.unet.modules():
        if isinstance(module, Convolution):
            module.MATRIX_PIXELS = 0


class Apart(nn.Module):
    """Queries, keys and values as three products again."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.weights = [part.clone() for part in fused.weight.chunk(3)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.linear(x, weight) for weight in self.weights], dim=-1)


def separate_queries_keys_values(network: LeanNetwork) -> None:
    unet: LeanUNet = network.unet
    for module in unet.modules():
        if hasattr(module, "to_qkv"):
            module.to_qkv = Apart(module.to_qkv)  # pyright: ignore[reportArgumentType]


WITHOUT: dict[str, Callable[[LeanNetwork], None]] = {
    "text keys and values once a trajectory": keys_and_values_each_call,
    "time embeddings once a plan": time_embedding_each_call,
    "channels last": channels_first,
    "2x2 convolutions as matrices": no_matrices,
    "queries, keys, values as one product": separate_queries_keys_values,
}

if __name__ == "__main__":
    main()
