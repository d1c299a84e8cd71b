"""Floor and ceiling of a study of super-resolution: bicubic enlargement, and the autoencoder's own reconstruction.

They are scored as cells are, on the same crops, so that a cell can be held against them image by image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from isocost.data.pairs import enlarged
from isocost.data.prompts import PromptList
from isocost.encoders.autoencoder import Autoencoder
from isocost.scoring.lowres import LowResolution
from isocost.scoring.measures import Measure, columns_of
from isocost.scoring.streaming import arguments_of
from isocost.specs import ScoreSpec, Split, digest_of
from isocost.study.scores import SPLITS, Judge, write
from isocost.study.store import Store, StoredChunk

FRAMES = ("bicubic", "autoencoder")
BATCH = 64


def write_frames(
    store: Store, judge: Judge, prompts: PromptList, pairs: LowResolution, autoencoder: Autoencoder
) -> None:
    """Score both, where that is not done. `prompts`: the keys of the images, in the order of cells' places."""
    identity = prompts.promptset.canonical(), autoencoder.digest
    rows = [{"sample_key": digest_of(["frame", name, *identity]), "frame": name} for name in FRAMES]
    store.write_expansion(frames=rows)
    scored = store.score_keys()
    count = judge.evaluation.images
    for row in rows:
        key = row["sample_key"]
        wanted: list[tuple[Split, Measure, ScoreSpec]] = [
            (split, measure, judge.spec(measure, split)) for split in SPLITS for measure in judge.measures
        ]
        missing = [item for item in wanted if store.score_key(key, item[2]) not in scored]
        if missing:
            keys = [prompts.at(place)[0].text for place in range(count)]
            features = _features(judge, _images(row["frame"], keys, pairs, autoencoder))
            # Through the store, so that they are of the precision that a cell's are.
            store.write_chunk(key, 0, StoredChunk(features, 0, 0.0, count, None))
            features = store.read_chunk(key, 0).features
            for split, measure, spec in missing:
                write(store, key, spec, judge.estimates(measure, features, split))


def _features(judge: Judge, batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """What the metrics need of every image."""
    columns = columns_of(judge.measures)
    parts = [
        [column.function(*arguments_of(column, images, targets)) for column in columns] for images, targets in batches
    ]
    return {column.name: np.concatenate(found) for column, found in zip(columns, zip(*parts, strict=True), strict=True)}


def _images(
    name: str, keys: list[str], pairs: LowResolution, autoencoder: Autoencoder
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images of a frame and their targets, a batch at a time."""
    for start in range(0, len(keys), BATCH):
        part = keys[start : start + BATCH]
        targets = pairs.high(part)
        if name == "bicubic":
            yield np.stack([enlarged(low) for low in pairs.low(part)]), targets
        else:
            yield autoencoder.decode(autoencoder.encode(targets)), targets
