"""Scores of sets of images: one pass over each, what is kept of every image, and estimates from that.

Every image is read once, goes through all the networks that the metrics share, and is gone: features and one value an
image stay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isocost.environment import environment
from isocost.errors import DataError, SpecError
from isocost.scoring import references
from isocost.scoring.extractors import Extractor
from isocost.scoring.measures import (
    Defaults,
    Maker,
    Measure,
    Sample,
    base_of,
    columns_of,
    full_name,
    given,
    informative,
    load_measures,
    maker_of,
)
from isocost.scoring.metrics import OF_STUDIES
from isocost.scoring.references import ReferenceSet
from isocost.scoring.results import Scored, Scores
from isocost.scoring.sets import Features, ImageSet, matched
from isocost.scoring.statistics import Reference
from isocost.scoring.streaming import Report, Tally, extract, silent
from isocost.specs import split_metric

Progress = Callable[[str, float, float, str], None]


def quiet(stage: str, done: float, total: float, note: str = "") -> None:
    """The default progress: says nothing."""


# --- what is kept of a set of images ---


def observe(
    images: ImageSet,
    measures: Sequence[Measure],
    targets: ImageSet | None = None,
    *,
    skip_unreadable: bool = False,
    report: Report = silent,
) -> tuple[dict[str, np.ndarray], Tally]:
    """Everything that the measures need of each image, computed in one pass where it is not at hand.

    Raises `DataError` for what `streaming.extract` refuses, and where images are needed of a set that has none.
    """
    columns = columns_of(measures)
    at_hand = [column.name for column in columns if column.of == "images" and images.holds(column.name)]
    missing = [column for column in columns if column.name not in at_hand]
    known = {name: images.features(name) for name in at_hand}
    if not missing:
        return known, Tally(rows=list(range(len(images))))
    if not images.has_images:
        raise DataError(f"{images.name}: neither images nor {missing[0].name} are at hand: {images.advice}.")
    found, tally = extract(images, missing, targets, skip_unreadable=skip_unreadable, report=report)
    return found | {name: rows[tally.rows] for name, rows in known.items()}, tally


# --- what is scored against ---


@dataclass(eq=False)
class Against:
    """What sets of images are scored against: references that are built, and images to build others of and to match.

    `make`: gives a reference by an extractor, where something else than `images` does so (a store).
    """

    built: list[ReferenceSet] = field(default_factory=list)
    images: ImageSet | None = None
    make: Callable[[Extractor], ReferenceSet] | None = None
    _statistics: dict[str, Reference] = field(default_factory=dict)

    def prepare(self, measures: Sequence[Measure], *, skip_unreadable: bool = False, report: Report = silent) -> None:
        """Build what the measures need and nothing at hand is, in one pass over the images.

        Raises `SpecError` where a reference is needed and there is nothing to build it of.
        """
        bases = {
            measure.column: measure.base
            for measure in measures
            if measure.is_against_images and self._find(measure.base) is None
        }
        missing = list(bases.values())
        if not missing:
            self._refuse_ambiguity(measures)
            return
        if self.make is not None:
            self.built += [self.make(base) for base in missing]
            return
        if self.images is not None:
            self.built += references.build(self.images, missing, skip_unreadable=skip_unreadable, report=report)
            return
        held = " and ".join(reference.identity for reference in self.built)
        wanted = ", ".join(base.name for base in missing)
        raise SpecError(
            f"no reference by {wanted}{f' (there is one by {held})' if held else ''}: give a folder of images, or a "
            f"file that `isocost reference build IMAGES --extractor {missing[0].name} --out FILE` writes."
        )

    def _refuse_ambiguity(self, measures: Sequence[Measure]) -> None:
        """A reference that does not say which extractor made it can serve one extractor only."""
        networks = {measure.base.name for measure in measures if measure.is_against_images}
        untold = [reference.source for reference in self.built if reference.made_by is None]
        if untold and len(networks) > 1:
            raise SpecError(f"{untold[0]} does not say which of {' and '.join(sorted(networks))} made it: ask for one.")

    def set_of(self, extractor: Extractor) -> ReferenceSet:
        """The reference that an extractor's features are compared with, after `prepare`."""
        found = self._find(extractor)
        assert found is not None
        return found

    def of(self, extractor: Extractor) -> Reference:
        """Its statistics in this extractor's features, computed once."""
        if extractor.digest not in self._statistics:
            self._statistics[extractor.digest] = self.set_of(extractor).of(extractor)
        return self._statistics[extractor.digest]

    def _find(self, extractor: Extractor) -> ReferenceSet | None:
        digests = (base_of(extractor).digest, "")
        return next((found for digest in digests for found in self.built if found.extractor_digest == digest), None)


# --- scoring ---


def score(
    sets: Sequence[ImageSet],
    against: Against,
    names: Sequence[str],
    *,
    defaults: Defaults | None = None,
    paired: bool | None = None,
    skip_unreadable: bool = False,
    device: str = "cpu",
    progress: Progress = quiet,
) -> Scores:
    """Scores of sets of images by metrics (`fd`, `kid[fid-tf]`), all against one reference.

    `defaults`: what a metric without an extractor uses; None: the shipped ones, or the one that made features in files.
    `paired`: whether sets are compared image by image; None: where their keys match. Raises `SpecError` for unknown
    metrics or extractors and for what they cannot do, `DataError` for images and features that cannot be used.
    """
    measures = _measures(sets, against, names, defaults, device)
    for measure in measures:
        for need, what in OF_STUDIES.items():
            if need in measure.needs:
                raise SpecError(f"metric '{measure.metric}' is of {what}: `isocost sweep` gives it.")
    against.prepare(measures, skip_unreadable=skip_unreadable, report=_reporter(progress, "read references"))
    notices = _notices_of_references(against, measures)
    texts = functools.lru_cache(maxsize=4)(lambda network, captions: network.text(captions))
    scored: list[Scored] = []
    for done, images in enumerate(sets):
        progress("score", done, len(sets), images.name)
        report = _reporter(progress, f"read {images.name}")
        found, remarks = _score_one(images, measures, against, texts, skip_unreadable, report)
        scored += found
        notices += remarks
    progress("score", len(sets), len(sets), "")
    return Scores(tuple(scored), tuple(dict.fromkeys(notices)), environment(), paired)


def _measures(
    sets: Sequence[ImageSet], against: Against, names: Sequence[str], defaults: Defaults | None, device: str
) -> list[Measure]:
    """The metrics with their networks; where all there is are features in files, no network is needed."""
    features = [images for images in sets if isinstance(images, Features)]
    if len(features) == len(sets) and against.images is None and against.make is None:
        maker = maker_of([images.made_by for images in features] + [built.made_by for built in against.built])
        defaults = defaults or Defaults(maker.name, None)
        load = functools.partial(given, maker)
        return load_measures([full_name(name, defaults) for name in names], device, load)
    untold = [images.name for images in features if images.made_by is None]
    if untold and defaults is None and any(split_metric(name)[1] is None for name in names):
        raise SpecError(f"{untold[0]} does not say which extractor made its features: say it with --extractor NAME.")
    return load_measures([full_name(name, defaults or Defaults()) for name in names], device)


def _score_one(
    images: ImageSet,
    measures: Sequence[Measure],
    against: Against,
    texts: Callable[[Any, tuple[str, ...]], np.ndarray],
    skip_unreadable: bool,
    report: Report,
) -> tuple[list[Scored], list[str]]:
    """Every measure of one set, and what there is to say of how it was read."""
    targets = _targets(images, against) if any(column.of != "images" for column in columns_of(measures)) else None
    columns, tally = observe(images, measures, targets, skip_unreadable=skip_unreadable, report=report)
    if len(tally.rows) < 2:
        raise DataError(f"{images.name}: {len(tally.rows)} image, and a score needs at least 2.")
    readers = [measure for measure in measures if measure.reads_captions]
    captions = _captions(images, tally.rows, against.images) if readers else ()
    wanted = functools.cache(lambda: informative([images.wanted(row) for row in tally.rows]))
    sample = Sample(columns, lambda network: texts(network, captions), wanted)
    keys = tuple(images.keys[row] for row in tally.rows) if images.keys else ()
    scored = [found for measure in measures for found in _estimates(images.name, measure, sample, against, keys)]
    notices = tally.notices(images.name)
    if tally.formats["JPEG"]:
        share = f"{tally.formats['JPEG']:,} of {len(tally.rows):,}"
        notices.append(f"{images.name}: {share} images are JPEG: its losses count as the model's.")
    protocols = dict.fromkeys((found.protocol, found.reference_n) for found in scored if found.protocol)
    for protocol, count in protocols:
        if count != len(tally.rows):
            notices.append(f"{images.name}: {len(tally.rows):,} images, and {protocol} is of {count:,}.")
    for measure in readers:
        if cut := measure.network.count_truncated(captions):
            share = f"{cut:,} of {len(captions):,}"
            notices.append(f"{images.name}: {measure.network.name} reads only the beginning of {share} captions.")
    return scored, notices


def _estimates(
    name: str, measure: Measure, sample: Sample, against: Against, keys: tuple[str, ...]
) -> Iterator[Scored]:
    """A measure's estimates of one set, with what they are of."""
    try:
        estimates = measure.estimates(sample, against.of)
    except DataError as error:
        raise DataError(f"{name}, {measure.label(measure.metric)}: {error}") from None
    reference = against.set_of(measure.network) if measure.is_against_images else None
    for part, estimate in estimates.items():
        yield Scored(
            generated=name,
            metric=measure.label(part),
            estimate=estimate,
            extractor=measure.identity,
            reference=reference.digest if reference else None,
            reference_n=reference.n if reference else None,
            protocol=reference.protocol if reference else "",
            keys=keys,
        )


def _targets(images: ImageSet, against: Against) -> ImageSet:
    """The images that a set's images are to match, in its order."""
    if against.images is None:
        raise SpecError("metrics of pairs compare each image with a target: give a folder of targets of these names.")
    return matched(against.images, images)


def _captions(images: ImageSet, rows: Sequence[int], references: ImageSet | None) -> tuple[str, ...]:
    """Captions of images; where one has none, that of the reference of the same key."""
    places = {key: place for place, key in enumerate(references.keys)} if references else {}

    def caption(row: int) -> str:
        try:
            return images.caption(row)
        except DataError:
            if references is None or not images.keys or images.keys[row] not in places:
                raise
            return references.caption(places[images.keys[row]])

    return tuple(caption(row) for row in rows)


def _notices_of_references(against: Against, measures: Sequence[Measure]) -> list[str]:
    """What was done when references were built, and what is taken on trust."""
    used = {id(found): found for found in (against.set_of(m.network) for m in measures if m.is_against_images)}
    notices = [notice for found in used.values() for notice in found.notices]
    names = ", ".join(dict.fromkeys(measure.base.name for measure in measures if measure.is_against_images))
    untold = [found.source for found in used.values() if found.made_by is None and names != Maker.name]
    return notices + [f"{source} does not say which extractor made it: taken as {names}." for source in untold]


def _reporter(progress: Progress, stage: str) -> Report:
    return lambda done, total: progress(stage, done, total, "")
