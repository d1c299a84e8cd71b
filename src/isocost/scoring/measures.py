"""Metrics as they are asked for: a name, or a name with its extractor in brackets, and the networks behind them."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isocost.data.prompts import OnTheWay
from isocost.errors import SpecError, lookup
from isocost.scoring import metrics
from isocost.scoring.extractors import Extractor, Projected, load_extractor, project
from isocost.scoring.metrics import METRICS, compute
from isocost.scoring.paired import PAIRED
from isocost.scoring.sets import Wanted, identity
from isocost.scoring.statistics import Reference
from isocost.scoring.streaming import Column
from isocost.scoring.uncertainty import Estimate
from isocost.specs import Evaluation, split_metric

ALIASES = {"lpips": "lpips-alex"}
ON_FEW_DIMS = ("fd", "fd-infinity")  # what `fd_dims` is for: a Frechet distance needs 8 images a dimension
CLASSES = "fid-tf"  # the network of the Inception Score

# What an input asks of its network, and how to say so.
ABILITIES = {
    "text_features": ("text", "features of captions: take a CLIP, whole"),
    "end_features": ("text", "features of captions: take a CLIP, whole"),
    "class_logits": ("classify", f"class logits: take an Inception network, {CLASSES}"),
    "logits": ("split", "attributes: take an attribute classifier, scenes-attributes"),
}


@dataclass(frozen=True)
class Defaults:
    """The extractor of a metric that names none; `fd_dims`: Frechet distances on so many of its dimensions."""

    extractor: str = Evaluation().extractor
    fd_dims: int | None = Evaluation().fd_dims
    classifier: str = Evaluation().classifier


def names_in(text: str | Sequence[str]) -> list[str]:
    """`fd,kid[fid-tf]` -> ["fd", "kid[fid-tf]"]: split at commas outside brackets. Raises `SpecError` for none."""
    listed = re.split(r",(?![^\[\]]*\])", text) if isinstance(text, str) else list(text)
    names = [name.strip() for name in listed if name.strip()]
    if not names:
        raise SpecError(f"no metric: name one or more of {', '.join(sorted(METRICS))}.")
    return names


def full_name(name: str, defaults: Defaults) -> str:
    """A metric with the extractor that computes it: `fd` -> `fd[scenes-clip-score-32]`; pixels' metrics have none.

    Raises `SpecError` for an unknown metric, or an extractor where none is used.
    """
    metric, ref = split_metric(name)
    metric = ALIASES.get(metric, metric)
    needs = lookup(METRICS, metric, "metric").needs
    if "paired" in needs:
        if ref is not None:
            raise SpecError(f"metric '{name}': '{metric}' compares pixels with a target's and takes no extractor.")
        return metric
    return f"{metric}[{ref or _default(metric, defaults)}]"


def _default(metric: str, defaults: Defaults) -> str:
    needs = METRICS[metric].needs
    if "logits" in needs:
        return defaults.classifier
    if "class_logits" in needs:
        return CLASSES
    if defaults.fd_dims is not None and metric in ON_FEW_DIMS:
        return f"{defaults.extractor}-{defaults.fd_dims}"
    return defaults.extractor


def are_against_others(names: Iterable[str]) -> bool:
    """Whether one of these metrics compares with other images: a reference, or a target of each."""
    others = {"reference", "paired", "target_features"}
    heads = [split_metric(name)[0] for name in names]
    return any(others & set(lookup(METRICS, ALIASES.get(head, head), "metric").needs) for head in heads)


# --- features whose extractor is not here ---


@dataclass(frozen=True)
class Maker:
    """The extractor that made features in files, known by name: its network is neither here nor needed."""

    name: str = "features"
    digest: str = ""
    dims: int = sys.maxsize

    def __call__(self, images: np.ndarray) -> np.ndarray:
        raise SpecError(f"'{self.name}' is known by its features alone and cannot see images.")


def maker_of(makers: Iterable[tuple[str, str] | None]) -> Maker:
    """The one extractor (name, digest) that all files name, where they name one. Raises `SpecError` naming two."""
    told = list(dict.fromkeys(maker for maker in makers if maker is not None))
    if len(told) > 1:
        first, second = (identity(*maker) for maker in told[:2])
        raise SpecError(f"features by {first} and by {second} cannot be compared: use one extractor for both.")
    return Maker(*told[0]) if told else Maker()


def given(maker: Maker, ref: str) -> Extractor:
    """What `ref` means where all features are a maker's: itself, or its projection (`NAME-32`).

    A maker that no file names is whatever the caller says. Raises `SpecError` where files name another.
    """
    match = re.fullmatch(re.escape(maker.name) + r"(?:-(\d+))?", ref)
    if match:
        return Projected(maker, int(match[1])) if match[1] else maker
    if not maker.digest:
        return Maker(ref)
    raise SpecError(f"'{ref}' is asked for, but these features are by {identity(maker.name, maker.digest)}.")


# --- a metric with its network ---


def base_of(network: Any) -> Any:
    """The network that sees images: of a projection, the one that is projected."""
    return network.base if isinstance(network, Projected) else network


@dataclass(frozen=True, eq=False)
class Sample:
    """What is kept of a set of images, row by row: columns by name, features of captions, what images are to show.

    places, ends: of images between two captions, where they are and what either end must show; `texts` gives [N, 2, D].
    """

    columns: Mapping[str, np.ndarray]
    texts: Callable[[Any], np.ndarray]
    wanted: Callable[[], Sequence[Wanted]]
    places: Sequence[OnTheWay] = ()
    ends: tuple[Sequence[Wanted], Sequence[Wanted]] = ((), ())


def informative(wanted: Sequence[Wanted]) -> tuple[dict[str, str | int], ...]:
    """What each image must show, without attributes that have one value in all prompts: those anyone gets right."""
    values: dict[str, set[str | int]] = {}
    for attributes in wanted:
        for name, value in attributes.items():
            values.setdefault(name, set()).add(value)
    return tuple({n: v for n, v in attributes.items() if len(values[n]) > 1} for attributes in wanted)


@dataclass(frozen=True, eq=False)
class Measure:
    """A metric and the network that computes it: what `fd[fid-tf]` stands for. `network`: None for PSNR and SSIM."""

    metric: str
    network: Any

    @property
    def needs(self) -> tuple[str, ...]:
        return METRICS[self.metric].needs

    @property
    def reads_captions(self) -> bool:
        return bool({"text_features", "end_features"} & set(self.needs))

    @property
    def is_against_images(self) -> bool:
        """Whether it needs a reference."""
        return "reference" in self.needs

    @property
    def identity(self) -> str:
        """name@digest of the network, "" where there is none."""
        return identity(self.network.name, self.network.digest) if self.network else ""

    @property
    def base(self) -> Any:
        """The network that sees images: a projection's own base."""
        return base_of(self.network)

    @property
    def column(self) -> str:
        """Under which what is computed of images is kept: one name for all metrics of one network."""
        return identity(self.base.name, self.base.digest) if "paired" not in self.needs else self.metric

    def label(self, name: str) -> str:
        """How an estimate of that name is printed: `fd[fid-tf]`, `accuracy/colour`."""
        return metrics.label(name, self.network.name) if self.network else name

    def columns(self) -> list[Column]:
        """What has to be computed of every image."""
        found = []
        for need in self.needs:
            if need in ("features", "class_logits", "logits"):
                found.append(Column(self.column, self.base))
            elif need == "target_features":
                found.append(Column(f"{self.column}/targets", self.base, of="targets"))
            elif need == "paired":
                found.append(Column(self.column, pair_function(self.metric, self.network), of="pairs"))
        return found

    def estimates(self, sample: Sample, reference: Callable[[Extractor], Reference]) -> dict[str, Estimate]:
        """The metric on what is kept of a set of images: an Estimate, or several by name (accuracy, by attribute)."""
        inputs = {
            "features": lambda: self._features(sample.columns[self.column]),
            "target_features": lambda: self._features(sample.columns[f"{self.column}/targets"]),
            "reference": lambda: reference(self.network),
            "text_features": lambda: sample.texts(self.network),
            "end_features": lambda: sample.texts(self.network),
            "places": lambda: sample.places,
            "ends_wanted": lambda: sample.ends,
            "class_logits": lambda: self.network.classify(sample.columns[self.column].astype(np.float32)),
            "logits": lambda: self.network.split(sample.columns[self.column].astype(np.float32)),
            "attributes": lambda: self.network.attributes,
            "wanted": sample.wanted,
            "paired": lambda: sample.columns[self.column],
        }
        return compute(self.metric, **{need: inputs[need]() for need in self.needs})

    def _features(self, kept: np.ndarray) -> np.ndarray:
        rows = kept.astype(np.promote_types(kept.dtype, np.float32))
        return project(rows, self.network.dims) if isinstance(self.network, Projected) else rows


def columns_of(measures: Iterable[Measure]) -> list[Column]:
    """What has to be computed of every image for these metrics, each column once."""
    return list({column.name: column for measure in measures for column in measure.columns()}.values())


def pair_function(metric: str, network: Any) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """images, targets -> one value a pair: of pixels, or of a network that takes both."""
    return lookup(PAIRED, metric, "metric of pairs") if network is None else network


def load_measures(names: Sequence[str], device: str = "cpu", load: Callable[[str], Any] | None = None) -> list[Measure]:
    """The metrics of full names with their networks, each network once.

    Raises `SpecError` for a network that cannot do what the metric needs, or one metric asked for twice; `DataError`
    for weights that are missing or corrupt.
    """
    load = load or functools.partial(load_extractor, device=device)
    bases: dict[str, Any] = {}
    found: dict[str, Measure] = {}
    for name in names:
        metric, ref = split_metric(name)
        measure = Measure(metric, _network_of_pairs(metric, device) if ref is None else _shared(load(ref), bases))
        _refuse_inability(measure, name)
        label = measure.label(metric)
        if label in found:
            same = found[label].identity == measure.identity
            what = "is asked for twice" if same else "would be two metrics of one name, by two extractors"
            raise SpecError(f"metric '{name}': {label} {what}: leave one out.")
        found[label] = measure
    return list(found.values())


def _refuse_inability(measure: Measure, name: str) -> None:
    for need, (ability, wanted) in ABILITIES.items():
        if need in measure.needs and not hasattr(measure.network, ability):
            raise SpecError(f"metric '{name}' needs {wanted}.")


def _shared(network: Any, bases: dict[str, Any]) -> Any:
    """The network, on the very base that another has loaded already."""
    base = base_of(network)
    base = bases.setdefault(base.digest, base)
    return replace(network, base=base) if isinstance(network, Projected) else base


def _network_of_pairs(metric: str, device: str) -> Any:
    if metric == "lite0-distance":
        from isocost.scoring.pretrained import stage_distance

        return stage_distance(device)
    if not metric.startswith("lpips-"):
        return None
    from isocost.scoring.perceptual import load_lpips

    return load_lpips(metric.removeprefix("lpips-"), device=device)
