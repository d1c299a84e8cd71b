"""Which metrics and extractors order real pictures by how far they were spoiled?

    python benchmarks/real_pictures.py OUT --emoji TAR... --photographs TAR... [--images 800]

Each set of pictures is cut into references and test pictures, no photograph giving to both. The test pictures are then
blurred, re-compressed, shuffled (patches of an 8 x 8 grid change places) or mixed with pictures of the other set, in
four degrees each. A metric orders a spoiling rightly where every degree scores worse than the one before; a step is
decided where the paired 95% interval says so. OUT gets scores.json, environment.json, table.md and figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import cyclopts
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import kendalltau

from isocost.allocator import keep_freed_memory
from isocost.data.images import open_images, square_images
from isocost.environment import environment
from isocost.scoring.extractors import load_extractor, project
from isocost.scoring.metrics import METRICS, compute
from isocost.scoring.paired import PAIRED
from isocost.scoring.statistics import Reference
from isocost.scoring.uncertainty import Estimate, mean_estimate, paired_difference

RESOLUTION = 128
CROPS = 4  # of a photograph: its quarters
GRID = 8
EXTRACTORS = ("scenes-clip-score", "efficientnet-lite0")
OF_SETS = ("fd", "kid", "cmmd", "precision", "recall", "density", "coverage")
FEW_DIMS = 32
Pictures = np.ndarray  # uint8 [N, RESOLUTION, RESOLUTION, 3]


# --- pictures ---


def emoji(tars: Sequence[Path]) -> Pictures:
    """All emoji, on white."""
    images = open_images(tars, captions_required=False)
    return square_images(images, range(len(images)), RESOLUTION)


def quarters(tars: Sequence[Path]) -> Pictures:
    """Four squares of each photograph; `CROPS` neighbours are one photograph."""
    pictures = []
    for item in open_images(tars, captions_required=False):
        half = min(item.image.shape[:2]) // 2
        for top, left in ((0, 0), (0, half), (half, 0), (half, half)):
            cut = Image.fromarray(item.image[top : top + half, left : left + half])
            pictures.append(np.asarray(cut.resize((RESOLUTION, RESOLUTION), Image.Resampling.LANCZOS)))
    return np.stack(pictures)


def halves(pictures: Pictures, group: int, images: int) -> tuple[Pictures, Pictures]:
    """References and at most `images` test pictures, by a seeded draw that keeps `group` neighbours together."""
    order = np.random.default_rng(0).permutation(len(pictures) // group)
    places = (order[:, None] * group + np.arange(group)).ravel()
    tested = min(images, len(places) // 2) // group * group
    return pictures[places[tested:]], pictures[places[:tested]]


# --- ways to spoil them: (pictures, degree, pictures of the other set) -> pictures ---


def blur(pictures: Pictures, sigma: float, other: Pictures) -> Pictures:
    blurred = gaussian_filter(pictures.astype(np.float32), (0, sigma, sigma, 0))
    return np.floor(np.clip(blurred, 0, 255) + 0.5).astype(np.uint8)


def recompress(pictures: Pictures, quality: float, other: Pictures) -> Pictures:
    def jpeg(picture: np.ndarray) -> np.ndarray:
        data = BytesIO()
        Image.fromarray(picture).save(data, "JPEG", quality=int(quality))
        return np.asarray(Image.open(data))

    return np.stack([jpeg(picture) for picture in pictures])


def shuffle(pictures: Pictures, share: float, other: Pictures) -> Pictures:
    """`share` of the patches of each picture go round among themselves, other patches in each picture."""
    side = RESOLUTION // GRID
    rng = np.random.default_rng(1)
    spoiled = pictures.copy()
    patches = spoiled.reshape(len(pictures), GRID, side, GRID, side, 3).swapaxes(2, 3)
    for picture in patches:
        chosen = rng.permutation(GRID * GRID)[: round(share * GRID * GRID)]
        rows, columns = chosen // GRID, chosen % GRID
        picture[rows, columns] = picture[np.roll(rows, 1), np.roll(columns, 1)]
    return patches.swapaxes(2, 3).reshape(pictures.shape)


def mix(pictures: Pictures, share: float, other: Pictures) -> Pictures:
    """`share` of the pictures are of the other set; a higher degree replaces those of a lower one and more."""
    replaced = np.random.default_rng(2).permutation(len(pictures))[: round(share * len(pictures))]
    spoiled = pictures.copy()
    spoiled[replaced] = other[np.arange(len(replaced)) % len(other)]
    return spoiled


@dataclass(frozen=True)
class Spoiling:
    apply: Callable[[Pictures, float, Pictures], Pictures]
    degrees: tuple[float, ...]
    unit: str
    has_target: bool  # whether each picture still has its own original to be compared with


SPOILINGS = {
    "blur": Spoiling(blur, (0.5, 1, 2, 4), "sigma in pixels of 128", True),
    "re-compress": Spoiling(recompress, (75, 40, 15, 5), "JPEG quality", True),
    "shuffle": Spoiling(shuffle, (0.05, 0.15, 0.4, 1.0), "share of 64 patches", True),
    "mix": Spoiling(mix, (0.02, 0.05, 0.15, 0.4), "share of other pictures", False),
}


# --- scores ---


class Judge:
    """Every metric of pictures against one set of references."""

    def __init__(self, references: Pictures):
        self.extractors = {name: load_extractor(name) for name in EXTRACTORS}
        self.references = {name: Reference.of(x) for name, x in self._features(references).items()}

    def _features(self, pictures: Pictures) -> dict[str, np.ndarray]:
        features = {name: extractor(pictures) for name, extractor in self.extractors.items()}
        return features | {f"{name}-{FEW_DIMS}": project(x, FEW_DIMS) for name, x in features.items()}

    def scores(self, pictures: Pictures, originals: Pictures | None) -> dict[str, Estimate]:
        """By name, as in `fd[scenes-clip-score-32]`; psnr and ssim where the originals are given."""
        found = {}
        for name, features in self._features(pictures).items():
            for metric in OF_SETS if name in EXTRACTORS else ("fd",):
                estimate = compute(metric, features=features, reference=self.references[name])[metric]
                found[f"{metric}[{name}]"] = estimate
        if originals is not None:
            for metric, values in PAIRED.items():
                if metric in METRICS:
                    found[metric] = mean_estimate(values(pictures, originals), unit=metric)
        return found


def judged(degrees: Sequence[Estimate]) -> dict[str, float | int | bool]:
    """How one metric orders one spoiling: `degrees` from the pictures as they are to the most spoiled."""
    sign = 1 if degrees[0].higher_is_better else -1
    gains = [paired_difference(a, b) for a, b in pairwise(degrees)]
    seen = [paired_difference(degrees[0], estimate).probability > 0.975 for estimate in degrees[1:]]
    tau = kendalltau(range(len(degrees)), [-sign * estimate.value for estimate in degrees]).statistic
    return {
        "ordered": all(gain.probability > 0.5 for gain in gains),
        "steps_decided": sum(gain.probability > 0.975 for gain in gains),
        "steps_decided_wrongly": sum(gain.probability < 0.025 for gain in gains),
        "kendall_tau": 0.0 if np.isnan(tau) else float(tau),
        "seen_from_degree": seen.index(True) + 1 if any(seen) else 0,
    }


def measure(sets: dict[str, tuple[Pictures, Pictures]]) -> list[dict]:
    """A row for every set, spoiling and metric."""
    rows = []
    for name, (references, tested) in sets.items():
        other = next(pictures for key, (_, pictures) in sets.items() if key != name)
        judge = Judge(references)
        clean = judge.scores(tested, None)
        for kind, spoiling in SPOILINGS.items():
            found = []
            for degree in spoiling.degrees:
                spoiled = spoiling.apply(tested, degree, other)
                found.append(judge.scores(spoiled, tested if spoiling.has_target else None))
                print(f"{name}: {kind} {degree:g}", flush=True)
            for metric in found[0]:
                # Where pictures are compared with their own originals, the least degree stands for the clean ones.
                degrees = [*([clean[metric]] if metric in clean else []), *(scores[metric] for scores in found)]
                rows.append(
                    {
                        "set": name,
                        "spoiling": kind,
                        "degrees": [*([0] if metric in clean else []), *spoiling.degrees],
                        "unit": spoiling.unit,
                        "metric": metric,
                        "values": [estimate.value for estimate in degrees],
                        "stderrs": [estimate.stderr for estimate in degrees],
                        "n": degrees[0].n,
                        "references": len(references),
                        "higher_is_better": degrees[0].higher_is_better,
                        **judged(degrees),
                    }
                )
    return rows


# --- what is written ---


def table(rows: Sequence[dict]) -> str:
    """Steps decided rightly of those there are, by metric, set and spoiling; a `!` marks a step decided wrongly."""
    columns = list(dict.fromkeys((row["set"], row["spoiling"]) for row in rows))
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    found = {(row["metric"], row["set"], row["spoiling"]): row for row in rows}
    lines = ["| metric | " + " | ".join(f"{kind}, {name}" for name, kind in columns) + " | in all |"]
    lines.append("|---|" + "---|" * (len(columns) + 1))
    shares = {}
    for metric in metrics:
        cells, right, there = [], 0, 0
        for column in columns:
            row = found.get((metric, *column))
            if row is None:
                cells.append("")
                continue
            steps = len(row["values"]) - 1
            right, there = right + row["steps_decided"], there + steps
            cells.append(f"{row['steps_decided']}/{steps}" + "!" * row["steps_decided_wrongly"])
        shares[metric] = (right / there, f"| {metric} | {' | '.join(cells)} | {right}/{there} |")
    return "\n".join([*lines, *(line for _, line in sorted(shares.values(), reverse=True))])


def sheet(tested: Pictures, shown: int = 4) -> Image.Image:
    """A row a spoiling that changes pictures: the first ones as they are, then at each degree."""
    rows, first = [], tested[:shown]
    for spoiling in SPOILINGS.values():
        if spoiling.has_target:
            degrees = [first] + [spoiling.apply(first, degree, first) for degree in spoiling.degrees]
            rows.append(np.concatenate([picture for pictures in degrees for picture in pictures], axis=1))
    whole = Image.fromarray(np.concatenate(rows))
    return whole.resize((whole.width // 2, whole.height // 2), Image.Resampling.LANCZOS)


def draw(rows: Sequence[dict], path: Path) -> None:
    """Every metric's change with the degree, in its standard errors at the pictures as they are; a panel a metric."""
    import matplotlib.pyplot as plt

    metrics = [metric for metric in dict.fromkeys(row["metric"] for row in rows) if "[" in metric]
    figure, axes = plt.subplots(4, -(-len(metrics) // 4), figsize=(14, 11), sharey=True, layout="constrained")
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for row in rows:
            if row["metric"] == metric:
                worse = 1 if row["higher_is_better"] is False else -1
                change = worse * (np.array(row["values"]) - row["values"][0]) / row["stderrs"][0]
                style = "o-" if row["set"] == "emoji" else "s--"
                axis.plot(change, style, ms=3, color=f"C{list(SPOILINGS).index(row['spoiling'])}")
        axis.axhspan(-1.96, 1.96, color="0.9")
        axis.set(title=metric, yscale="symlog", xticks=range(5))
    for axis in axes[:, 0]:
        axis.set_ylabel("worse by, standard errors")
    handles = [plt.Line2D([], [], color=f"C{k}", label=name) for k, name in enumerate(SPOILINGS)]
    handles += [
        plt.Line2D([], [], color="0.3", ls=ls, label=name) for name, ls in (("emoji", "-"), ("photographs", "--"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
    figure.savefig(path, dpi=70)


def main(
    out: Path,
    *,
    emoji_tars: Annotated[list[Path], cyclopts.Parameter(name="--emoji", consume_multiple=True)],
    photographs: Annotated[list[Path], cyclopts.Parameter(consume_multiple=True)],
    images: int = 800,
) -> None:
    keep_freed_memory()
    photos = halves(quarters(photographs), CROPS, images)
    sets = {"emoji": halves(emoji(emoji_tars), 1, images), "photographs": photos}
    for name, (references, tested) in sets.items():
        print(f"{name}: {len(references)} references, {len(tested)} test pictures", flush=True)
    rows = measure(sets)
    out.mkdir(parents=True, exist_ok=True)
    (out / "scores.json").write_text(json.dumps(rows, indent=1) + "\n")
    (out / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")
    figures = out / "figures"
    figures.mkdir(exist_ok=True)
    draw(rows, figures / "sensitivity.png")
    for name, (_, tested) in sets.items():
        sheet(tested).save(figures / f"pictures-{name}.png")
    (out / "table.md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    cyclopts.run(main)
