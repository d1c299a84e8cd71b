"""Seconds from features to a Frechet distance, and from images, beside the libraries that the field uses.

    python benchmarks/scoring.py [--oracles PYTHON] [--dims 2048] [--images 10000] [--repeats 5] [--threads 1] ...

PYTHON has pytorch-fid, torch-fidelity, torchmetrics and clean-fid: that of `python scripts/oracles.py FOLDER`, which
`make oracles` uses, too; without it such an environment is made in a temporary folder. Each side runs in a process of
its own, with as many threads and the same malloc, and takes its turn; a time is the median of its repeats. First all
sides must find the same distance, to 1e-6. `ratio` is the best library's time over ours from features [N, D] to the
distance, both with the reference's statistics at hand; `ratios` holds

    distance / eigenvalues   from moments, over the libraries that take eigenvalues of the product of covariances
    distance / sqrtm         over those that take its root
    few images               as `ratio`, of 1,000 images, over the libraries that take eigenvalues: the quicker ones
    many cells               100 cells of 2,500 images against one reference, the reference's statistics included
    with error               as `ratio`, with our standard error, bias and influence value of each image
    images, network          from uint8 images by Inception, random weights in one file for both sides, to the
                             distance; and the features alone

`memory` is what a stream of N and of 4 N rows, and a reference of 2 D, add to a process at its peak, in MB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

SCRIPTS = Path(__file__).parents[1] / "scripts"
CHUNK = 512
FEW, CELL = 1000, 2500
REFERENCES = 20_000


# --- the sides, each in its own process ---


@dataclass(frozen=True)
class Side:
    """`moments` of features [N, D], what is kept of a `reference`, the `distance` of one to the other.

    `value`: features to distance; `with_error`: the same with all that comes beside it; `stream`: from chunks of
    features; `network`: a file of Inception weights -> (uint8 images [N, H, W, 3] -> features [N, 2048]).
    """

    moments: Callable[[np.ndarray], Any]
    distance: Callable[[Any, Any], float]
    reference: Callable[[np.ndarray], Any]
    value: Callable[[np.ndarray, Any], float]
    stream: Callable[[Iterator[np.ndarray], Any], float]
    with_error: Callable[[np.ndarray, Any], float] | None = None
    network: Callable[[Path], Callable[[np.ndarray], np.ndarray]] | None = None


def isocost() -> Side:
    from isocost.scoring.frechet import frechet, frechet_distance, frechet_value
    from isocost.scoring.statistics import Moments, Reference, moments

    def reference(features: np.ndarray) -> Reference:
        """With its factor, and so large that its own error counts for nothing, as everywhere else."""
        found, n = moments(features), 10**9
        kept = Reference(Moments(n, found.mean, found.covariance * (n - 1)))
        _ = kept.factor
        return kept

    def network(weights: Path) -> Callable[[np.ndarray], np.ndarray]:
        from isocost.scoring.inception import load_inception

        return load_inception("fid-tf", weights)

    return Side(
        moments=moments,
        distance=frechet_distance,
        reference=reference,
        value=frechet_value,
        stream=lambda chunks, kept: frechet_distance(moments(chunks), kept),
        with_error=lambda features, kept: frechet(features, kept).value,
        network=network,
    )


def library(moments: Callable[[np.ndarray], Any], distance: Callable[[Any, Any], float], **more: Any) -> Side:
    """What libraries share: they hold all features at once, and keep of a reference what they keep of any set."""

    def value(features: np.ndarray, kept: Any) -> float:
        return distance(moments(features), kept)

    own: dict[str, Any] = {
        "reference": moments,
        "value": value,
        "stream": lambda chunks, kept: value(np.concatenate(list(chunks)), kept),
    }
    return Side(moments=moments, distance=distance, **(own | more))


def mean_and_covariance(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As pytorch-fid and clean-fid compute them."""
    return features.mean(axis=0), np.cov(features, rowvar=False)


def pytorch_fid() -> Side:
    from pytorch_fid.fid_score import calculate_frechet_distance

    return library(mean_and_covariance, lambda a, b: calculate_frechet_distance(*a, *b))


def clean_fid() -> Side:
    from cleanfid.fid import frechet_distance

    return library(mean_and_covariance, lambda a, b: frechet_distance(*a, *b))


def torch_fidelity() -> Side:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.utils import get_featuresdict_from_dataset

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, images: np.ndarray):
            self.images = torch.from_numpy(images).permute(0, 3, 1, 2)

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, place: int) -> torch.Tensor:
            return self.images[place]

    def network(weights: Path) -> Callable[[np.ndarray], np.ndarray]:
        inception = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(weights))

        def features(images: np.ndarray) -> np.ndarray:
            """At its own batch size; images in memory need no processes that load them."""
            options = {"batch_size": 64, "cuda": False, "save_cpu_ram": True, "verbose": False}
            return get_featuresdict_from_dataset(Pictures(images), inception, **options)["2048"].numpy()

        return features

    return library(
        lambda features: fid_features_to_statistics(torch.from_numpy(features)),
        lambda a, b: fid_statistics_to_metric(a, b, False)[KEY_METRIC_FID],
        network=network,
    )


def torchmetrics() -> Side:
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance, _compute_fid

    class Features(torch.nn.Identity):
        num_features: int

    metrics: list[FrechetInceptionDistance] = []

    def moments(features: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.from_numpy(features).double()
        return rows.mean(dim=0), torch.cov(rows.T)

    def reference(features: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        identity = Features()
        identity.num_features = features.shape[1]
        metrics[:] = [FrechetInceptionDistance(identity, reset_real_features=False)]
        metrics[0].update(torch.from_numpy(features), real=True)
        return moments(features)

    def stream(chunks: Iterator[np.ndarray], kept: Any) -> float:
        metrics[0].reset()
        for chunk in chunks:
            metrics[0].update(torch.from_numpy(chunk), real=False)
        return float(metrics[0].compute())

    return library(
        moments,
        lambda a, b: float(_compute_fid(*a, *b)),
        reference=reference,
        value=lambda features, kept: stream(iter([features]), kept),
        stream=stream,
    )


EIGENVALUES = {"torch-fidelity": torch_fidelity, "torchmetrics": torchmetrics}
SQRTM = {"pytorch-fid": pytorch_fid, "clean-fid": clean_fid}
SIDES: dict[str, Callable[[], Side]] = {"isocost": isocost, **EIGENVALUES, **SQRTM}
LIBRARIES = [name for name in SIDES if name != "isocost"]


class Tasks:
    """What a side's process can be asked for; each returns seconds and a value."""

    def __init__(self, side: Side, folder: Path):
        self.side, self.folder = side, folder

    @cached_property
    def generated(self) -> np.ndarray:
        return np.load(self.folder / "generated.npy")

    @cached_property
    def references(self) -> np.ndarray:
        return np.load(self.folder / "references.npy")

    @cached_property
    def reference(self) -> Any:
        return self.side.reference(self.references)

    @cached_property
    def moments(self) -> Any:
        return self.side.moments(self.generated)

    @cached_property
    def network(self) -> Callable[[np.ndarray], np.ndarray]:
        assert self.side.network
        return self.side.network(self.folder / "inception.pth")

    def value(self) -> tuple[float, float]:
        return timed(self.side.value, self.generated, self.reference)

    def few(self) -> tuple[float, float]:
        return timed(self.side.value, self.generated[:FEW], self.reference)

    def with_error(self) -> tuple[float, float]:
        assert self.side.with_error
        return timed(self.side.with_error, self.generated, self.reference)

    def distance(self) -> tuple[float, float]:
        return timed(self.side.distance, self.moments, self.reference)

    def many(self, cells: int, images: int) -> tuple[float, float]:
        starts = np.linspace(0, len(self.generated) - images, cells).astype(int)
        parts = [self.generated[start : start + images] for start in starts]

        def all_cells() -> float:
            reference = self.side.reference(self.references)
            return sum(self.side.value(part, reference) for part in parts)

        return timed(all_cells)

    def features(self) -> tuple[float, float]:
        images = np.load(self.folder / "images.npy")
        seconds, features = timed(self.network, images)
        return seconds, float(np.abs(features).mean())

    def images(self) -> tuple[float, float]:
        images = np.load(self.folder / "images.npy")
        _ = self.network, self.reference
        return timed(lambda: self.side.value(self.network(images), self.reference))

    def memory(self, rows: int, dims: int) -> tuple[float, float]:
        """MB in place of seconds: what the process grows by at its peak, reference and all."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        reference = self.side.reference(next(chunks(2 * dims, dims, seed=1, size=2 * dims)))
        value = self.side.stream(chunks(rows, dims, seed=2), reference)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, value


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    begun = time.perf_counter()
    value = function(*arguments)
    return time.perf_counter() - begun, value


def chunks(rows: int, dims: int, seed: int, size: int = CHUNK) -> Iterator[np.ndarray]:
    """Features like a network's: not negative, with a spectrum that falls over four decades; float32 [size, dims]."""
    rng, mixing = np.random.default_rng(seed), np.random.default_rng(0)
    axes = (
        mixing.standard_normal((dims, dims), dtype=np.float32) * np.geomspace(1, 0.01, dims, dtype=np.float32)[:, None]
    )
    axes /= np.sqrt(np.float32(dims))
    for start in range(0, rows, size):
        normal = rng.standard_normal((min(size, rows - start), dims), dtype=np.float32)
        yield np.maximum(normal @ axes + np.float32(0.1 * seed), 0)


def serve(name: str, folder: Path) -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    if name in LIBRARIES:
        sys.path.insert(0, str(SCRIPTS))
        from oracles import import_torchvision

        import_torchvision()
    tasks = Tasks(SIDES[name](), folder)
    for line in sys.stdin:
        request = json.loads(line)
        seconds, value = getattr(tasks, request.pop("task"))(**request)
        print(json.dumps([seconds, float(value)]), file=answers, flush=True)


# --- the driver ---


class Process:
    """A side's process."""

    def __init__(self, name: str, python: str, folder: Path, threads: int):
        limits = {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "OPENBLAS", "MKL")}
        keep = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
        command = [python, __file__, "--serve", name, "--folder", str(folder)]
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **limits, **keep}
        )

    def ask(self, task: str, **arguments: Any) -> tuple[float, float]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({"task": task, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name}: its process ended at '{task}'; what it said is above.")
        seconds, value = json.loads(answer)
        return seconds, value

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@dataclass
class Contest:
    """Sides by name, taking turns."""

    sides: dict[str, Process]
    repeats: int

    def seconds(
        self, task: str, names: list[str], repeats: int | None = None, tolerance: float = 1e-6, **arguments: Any
    ) -> dict[str, float]:
        """Median seconds of a task by side, after a turn for warming up; SystemExit where values differ."""
        values = {name: self.sides[name].ask(task, **arguments)[1] for name in names} if repeats is None else {}
        spent: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(repeats or self.repeats):
            for name in names:
                seconds, values[name] = self.sides[name].ask(task, **arguments)
                spent[name].append(seconds)
        same = next(iter(values.values()))
        if any(abs(value - same) > tolerance * abs(same) for value in values.values()):
            raise SystemExit(f"{task}: the sides do not agree, nothing to compare: {values}")
        medians = {name: statistics.median(times) for name, times in spent.items()}
        shown = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in medians.items())
        print(f"{task}: {shown} (all {same:.6g})", flush=True)
        return medians


def best(seconds: dict[str, float], names: Any) -> float:
    return min(seconds[name] for name in names)


def write_inputs(folder: Path, args: argparse.Namespace) -> None:
    for name, rows, seed in (("generated", args.images, 2), ("references", args.references, 1)):
        np.save(folder / f"{name}.npy", np.concatenate(list(chunks(rows, args.dims, seed))))
    if args.pictures:
        import torch

        from isocost.scoring.inception import InceptionV3

        torch.manual_seed(0)
        network = InceptionV3()
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight)
        torch.save(network.state_dict(), folder / "inception.pth")
        shape = (args.pictures, args.side, args.side, 3)
        np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def oracles(given: str | None, temporary: Path) -> str:
    if given:
        return given
    command = [sys.executable, str(SCRIPTS / "oracles.py"), str(temporary / "oracles")]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The benchmark's result; prints each comparison on the way."""
    from isocost.environment import environment

    python = oracles(args.oracles, folder)

    def start(name: str) -> Process:
        return Process(name, python if name in LIBRARIES else sys.executable, folder, args.threads)

    memory: dict[str, dict[str, float]] = {}
    for name in ("isocost", "torchmetrics", "torch-fidelity"):
        for rows in (args.images, 4 * args.images):
            process = start(name)
            memory.setdefault(name, {})[str(rows)] = round(process.ask("memory", rows=rows, dims=args.dims)[0], 1)
            process.close()
    print(f"memory, MB: {memory}", flush=True)

    write_inputs(folder, args)
    contest = Contest({name: start(name) for name in SIDES}, args.repeats)
    everyone = list(SIDES)
    value = contest.seconds("value", everyone)
    ours = value["isocost"]
    quickest = min(LIBRARIES, key=lambda name: value[name])
    distance = contest.seconds("distance", everyone)
    few = contest.seconds("few", ["isocost", *EIGENVALUES])
    error = contest.seconds("with_error", ["isocost"])
    ratios = {
        "distance / eigenvalues": best(distance, EIGENVALUES) / distance["isocost"],
        "distance / sqrtm": best(distance, SQRTM) / distance["isocost"],
        "few images": best(few, EIGENVALUES) / few["isocost"],
        "with error": best(value, LIBRARIES) / error["isocost"],
    }
    if args.cells:
        many = contest.seconds("many", ["isocost", quickest], 1, cells=args.cells, images=min(CELL, args.images))
        ratios["many cells"] = many[quickest] / many["isocost"]
    if args.pictures:
        pair = ["isocost", "torch-fidelity"]
        network = contest.seconds("features", pair, tolerance=1e-4)
        images = contest.seconds("images", pair, tolerance=1e-4)
        ratios["images"] = images["torch-fidelity"] / images["isocost"]
        ratios["network"] = network["torch-fidelity"] / network["isocost"]
    for process in contest.sides.values():
        process.close()
    return {
        "name": f"scoring: features [{args.images}, {args.dims}] to Frechet distance",
        "ratio": round(value[quickest] / ours, 3),
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "baseline": f"{quickest}, the best of {', '.join(LIBRARIES)}; {args.threads} thread(s)",
        "seconds": {name: round(seconds, 3) for name, seconds in value.items()},
        "memory": memory,
        "device": environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracles", metavar="PYTHON", help="interpreter of the libraries' environment")
    for name, default, help_ in (
        ("dims", 2048, "of features; Inception's are 2048"),
        ("images", 10_000, "rows of features"),
        ("references", REFERENCES, "rows of the reference's features"),
        ("repeats", 5, "turns of each side"),
        ("threads", 1, "of each side"),
        ("cells", 100, "against one reference; 0: none"),
        ("pictures", 64, "uint8 images for Inception; 0: none, and for dims other than 2048"),
        ("side", 64, "pixels of those images"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{help_} ({default})")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.folder)
        return
    args.pictures *= args.dims == 2048
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
