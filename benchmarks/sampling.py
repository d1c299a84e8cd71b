"""Images per second of our engine beside diffusers' StableDiffusionPipeline: same weights, plan, batch and cores.

    python benchmarks/sampling.py [--widths 8,16,24,32,48,64] [--steps 10] [--guidance 2] [--batch 64] [--repeats 5]
                                  [--dtype fp32|bf16] [--compiled] [--cores 2] [--device cpu|cuda] [--changes]
                                  [--tuned]

The pipeline runs in one process with a thread a core, as a user would run it; our engine, as a sweep does, in a
process a core with one thread each that keeps freed memory (`isocost.allocator`). `--tuned` lets the pipeline's process
keep it, too, which its users do not know of: what is left is what the engine itself brings. Both start from prompts and
end with uint8 images; turns alternate, and so does who begins. The images are compared first: the benchmark fails where
they differ by more than 1e-3 of full scale on average (bf16: 2e-2). Weights are random: they cost what trained ones do.

bf16: by default 4 steps at batch 16, as processors without bf16 arithmetic take diffusers' forward pass at a twentieth
of fp32's speed. On a GPU all of either side runs on it, ours in one process, and the pipeline's UNet is compiled.

`--changes` adds a table of what each part of the engine brings: seconds an image with that part taken out, over those
with all of them. Processes are timed against one process with a thread a core, kept memory against processes that give
it back; the other parts by CPU seconds of one trajectory on one thread."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Self

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
from isocost.sampling.engine import DTYPES, LeanNetwork, computes_in, prepare, sample_latents
from isocost.sampling.generate import Pipeline, generate
from isocost.sampling.unet import Convolution, LeanUNet
from isocost.specs import CheckpointRef, EngineSpec, Guidance, NoiseSchedule, SamplingPlan, SceneOptions, Stage
from isocost.study.export import scheduler_config

WIDTHS = (8, 16, 24, 32, 48, 64)
SHAPE = (4, 8, 8)
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
USUAL = {"fp32": (10, 64), "bf16": (4, 16)}  # steps and batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=lambda text: tuple(map(int, text.split(","))), default=WIDTHS)
    for name, default in (("steps", None), ("batch", None), ("repeats", 5), ("cores", os.cpu_count() or 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--dtype", choices=TOLERANCE, default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--changes", action="store_true")
    parser.add_argument("--tuned", action="store_true")
    print(json.dumps(measure(**vars(parser.parse_args()))))


def measure(
    widths: tuple[int, ...] = (16,),
    steps: int | None = None,
    guidance: float = 2.0,
    batch: int | None = None,
    repeats: int = 5,
    cores: int = 1,
    dtype: str = "fp32",
    device: str = "cpu",
    compiled: bool = False,
    changes: bool = False,
    tuned: bool = False,
) -> dict[str, Any]:
    """The benchmark's result; prints its turns on the way. SystemExit where the two sides draw other images."""
    if tuned:
        keep_freed_memory()
    usual_steps, usual_batch = USUAL[dtype]
    plan = plan_of(steps or usual_steps, guidance)
    engine = EngineSpec.parse(
        {"dtype": dtype, "device": device, "network": "lean", "compiled": compiled, "batch": batch or usual_batch}
    )
    members = {f"c{width}": compare(width, plan, engine, repeats, cores, changes) for width in widths}
    if changes:
        keep_freed_memory()
        for width, member in zip(widths, members.values(), strict=True):
            member["changes"] |= what_parts_bring(width, plan, engine, repeats)
    ratios = {name: member["ratio"] for name, member in members.items()}
    middle = members[sorted(ratios, key=lambda name: ratios[name])[len(ratios) // 2]]
    return {
        "name": f"sampling: micro {', '.join(members)}, DDIM-{plan.steps}, guidance {guidance:g}, "
        f"batch {engine.batch}, {dtype}, {device}" + (", compiled" if compiled else ""),
        "ratio": round(statistics.median(ratios.values()), 3),
        "ratios": ratios,
        "baseline": f"diffusers StableDiffusionPipeline in {dtype}, "
        + ("its UNet compiled" if device == "cuda" else f"one process of {cores} threads")
        + (" that keeps freed memory" if tuned else ""),
        "images_per_core_second": middle["images_per_core_second"],
        "members": members,
        "changes": by_part({name: member.pop("changes") for name, member in members.items()}) if changes else None,
        "bf16_arithmetic": computes_in(engine.model_copy(update={"dtype": "bf16"})),
        "device": environment(),
    }


def by_part(changes: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Part -> what it brings to each member, and the median over them."""
    parts = {part: {name: found[part] for name, found in changes.items()} for part in next(iter(changes.values()))}
    return {part: {**found, "median": round(statistics.median(found.values()), 3)} for part, found in parts.items()}


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


def compare(
    width: int, plan: SamplingPlan, engine: EngineSpec, repeats: int, cores: int, changes: bool
) -> dict[str, Any]:
    """One member: seconds an image of each side, turns alternating."""
    captions = [text for text, _ in scenes.describe_all(0, range(engine.batch), SceneOptions())]
    processes = cores if engine.device == "cpu" else 1
    theirs = Diffusers(width, plan, engine, captions)
    with Workers(processes, 1, width, plan, engine, captions) as ours, contextlib.ExitStack() as stack:
        sides: dict[str, tuple[Callable[[], np.ndarray], int]] = {
            "ours": (ours, processes * engine.batch),
            "diffusers": (theirs, engine.batch),
        }
        if changes:
            one = stack.enter_context(Workers(1, cores, width, plan, engine, captions))
            giving = stack.enter_context(Workers(processes, 1, width, plan, engine, captions, keep_memory=False))
            sides["one process"] = one, engine.batch
            sides["memory given back"] = giving, processes * engine.batch
        torch.set_num_threads(cores)
        images = {side: run() for side, (run, _) in sides.items()}  # compiles and warms up
        difference = np.abs(images["ours"].astype(float) - images["diffusers"].astype(float)).mean() / 255
        if difference > TOLERANCE[engine.dtype]:
            raise SystemExit(f"c{width}: the images differ by {difference:.2g} of full scale: nothing to compare")
        seconds = alternate(sides, repeats, f"c{width}")
    ratios = [other / own for own, other in zip(seconds["ours"], seconds["diffusers"], strict=True)]
    found = {
        "ratio": round(statistics.median(ratios), 3),
        "fastest repeat": round(max(ratios), 3),
        "slowest repeat": round(min(ratios), 3),
        "images_per_core_second": {
            side: round(1 / statistics.median(values) / cores, 2) for side, values in seconds.items()
        },
        "mean_difference": difference,
    }
    if changes:
        parts = {"a process a core": "one process", "memory kept": "memory given back"}
        found["changes"] = {part: _median_ratio(seconds["ours"], seconds[side]) for part, side in parts.items()}
    return found


def _median_ratio(ours: list[float], others: list[float]) -> float:
    return round(statistics.median(other / own for own, other in zip(ours, others, strict=True)), 3)


def alternate(
    sides: dict[str, tuple[Callable[[], np.ndarray], int]], repeats: int, what: str
) -> dict[str, list[float]]:
    """Seconds an image of each side's turns; each repeat another side begins."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        order = list(sides)
        for side in order[repeat % len(order) :] + order[: repeat % len(order)]:
            run, count = sides[side]
            start = time.perf_counter()
            run()
            seconds[side].append((time.perf_counter() - start) / count)
        shown = ", ".join(f"{side} {1000 * values[-1]:.2f} ms" for side, values in seconds.items())
        print(f"{what} repeat {repeat + 1}: {shown} an image", flush=True)
    return seconds


class Diffusers:
    """The pipeline that a user would load, with our encoders' modules, in this process: a batch a call."""

    def __init__(self, width: int, plan: SamplingPlan, engine: EngineSpec, captions: list[str]) -> None:
        self.plan, self.captions, self.dtype = plan, captions, DTYPES[engine.dtype]
        autoencoder, text = load_autoencoder("scenes-vae"), load_text_encoder("scenes-clip-condition")
        self.pipeline = StableDiffusionPipeline(
            vae=autoencoder.module,
            text_encoder=text.module,
            tokenizer=text.tokenizer,
            unet=random_unet(width),
            scheduler=DDIMScheduler(**scheduler_config(plan.schedule, "v_prediction")),  # pyright: ignore[reportArgumentType]
            safety_checker=None,  # pyright: ignore[reportArgumentType]
            feature_extractor=None,  # pyright: ignore[reportArgumentType]
            requires_safety_checker=False,
        ).to(engine.device, self.dtype)
        self.pipeline.set_progress_bar_config(disable=True)
        if engine.device == "cuda":
            self.pipeline.unet = torch.compile(self.pipeline.unet)

    def __call__(self) -> np.ndarray:
        noise = batch_noise([(text, 0) for text in self.captions], "x_T", SHAPE)
        made: Any = self.pipeline(
            self.captions,
            num_inference_steps=self.plan.steps,
            guidance_scale=self.plan.guidance.scale,
            latents=torch.from_numpy(noise).to(self.pipeline.device, self.dtype),
            negative_prompt=[""] * len(self.captions),
            output_type="np",
        )
        return (made.images * 255).round().astype(np.uint8)


class Workers:
    """Processes with our pipeline; a call has each of them make a batch, and gives the first one's images."""

    def __init__(
        self,
        count: int,
        threads: int,
        width: int,
        plan: SamplingPlan,
        engine: EngineSpec,
        captions: list[str],
        keep_memory: bool = True,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        engine = engine.model_copy(update={"threads": threads})
        pairs = [context.Pipe() for _ in range(count)]
        self.pipes = [ours for ours, _ in pairs]
        self.processes = [
            context.Process(target=serve, args=(pipe, width, plan, engine, captions, keep_memory), daemon=True)
            for _, pipe in pairs
        ]
        for process in self.processes:
            process.start()

    def __call__(self) -> np.ndarray:
        for pipe in self.pipes:
            pipe.send(True)
        images = [pipe.recv() for pipe in self.pipes]
        return images[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes:
            pipe.send(False)
        for process in self.processes:
            process.join()


def serve(
    pipe: Connection, width: int, plan: SamplingPlan, engine: EngineSpec, captions: list[str], keep_memory: bool
) -> None:
    if keep_memory:
        keep_freed_memory()
    torch.set_num_threads(engine.threads)
    ours = our_pipeline(width, engine)
    while pipe.recv():
        ours.text_encoder._cache.clear()  # the pipeline has no cache of prompts: neither side keeps one
        pipe.send(generate(ours, plan, engine, [(text, text, 0) for text in captions]).images)


def our_pipeline(width: int, engine: EngineSpec) -> Pipeline:
    return Pipeline(
        network=prepare(random_unet(width), engine),
        autoencoder=load_autoencoder("scenes-vae", engine.device),
        text_encoder=load_text_encoder("scenes-clip-condition", engine.device),
        latent_shape=SHAPE,
        caption_dropout=0.1,
    )


# --- what each part of the engine brings ---


def what_parts_bring(width: int, plan: SamplingPlan, engine: EngineSpec, repeats: int) -> dict[str, float]:
    """Of each part of the forward pass, CPU seconds of a trajectory without it over those with all; and of all parts
    together."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    context, null = (rng.standard_normal(shape, dtype=np.float32) for shape in ((engine.batch, 32, 64), (32, 64)))
    ids = [(str(i), 0) for i in range(engine.batch)]

    def trajectory(network: Any) -> Callable[[], object]:
        return lambda: sample_latents(network, plan, context, null, ids, SHAPE, engine)

    def lean(change: Callable[[LeanNetwork], None], compiled: bool = False) -> Callable[[], object]:
        network = LeanNetwork(random_unet(width), engine.model_copy(update={"compiled": compiled}))
        change(network)
        return trajectory(network)

    runs = {
        "all": lean(lambda network: None),
        "all of these: diffusers' forward pass": trajectory(
            prepare(random_unet(width), engine.model_copy(update={"network": "diffusers", "compiled": False}))
        ),
        **{name: lean(change) for name, change in WITHOUT.items()},
    }
    if not computes_in(engine):
        runs["fp32 arithmetic instead of imitated bf16"] = lean(imitated)
    if engine.compiled:
        runs["compiled"] = lean(lambda network: None, compiled=True)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    gains = {name: round(value / medians["all"], 3) for name, value in medians.items() if name != "all"}
    if engine.compiled:
        gains["compiled"] = round(1 / gains["compiled"], 3)
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


def imitated(network: LeanNetwork) -> None:
    network.dtype = torch.bfloat16
    network.unet.to(network.dtype)


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
