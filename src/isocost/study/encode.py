"""Encoding a study's training data by itself: a share of it in each of many processes, on as many machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isocost.encoders import own
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.precompute import encode_share
from isocost.encoders.text import load_text_encoder
from isocost.errors import SpecError
from isocost.specs import StudySpec
from isocost.study.artifacts import Progress, data_folder, encoder_refs, silent
from isocost.study.executors import Processes, Task, one_thread
from isocost.study.store import Store


@dataclass(frozen=True)
class Encoded:
    """Where encoded data lie, how many of their shards are there by now, and whether the set is finished."""

    folder: Path
    done: int
    shards: int
    finished: bool


def rank_of_environment() -> tuple[int, int]:
    """(RANK, WORLD_SIZE) as torchrun sets them; (0, 1) outside of it. Raises `SpecError` where they are no numbers."""
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        return int(rank), int(world)
    except ValueError:
        raise SpecError(f"RANK={rank} WORLD_SIZE={world}: expected numbers, as torchrun sets them.") from None


def encode(
    study: StudySpec,
    store: Store,
    share: tuple[int, int] = (0, 1),
    progress: Progress = silent,
    device: str = "cpu",
) -> Encoded:
    """Encode every n-th shard of a study's training data from number i on, for `share` (i, n); what is there stays.

    device: where the encoders run, with one thread each where that is the CPU. Another device gives the same latents
    but for their last bits, and so another digest of the data.
    Raises `SpecError` for a study that encodes nothing ahead, and, in one of many processes, where the study's own
    encoders are not trained yet; `DataError` as `isocost.encoders.precompute.precompute`.
    """
    if study.data.encode == "live":
        raise SpecError("data.encode is 'live': training encodes what it needs; there is nothing to encode ahead.")
    if not 0 <= share[0] < share[1]:
        raise SpecError(f"shard {share[0]}/{share[1]}: expected i/n with 0 <= i < n.")
    store.path.mkdir(parents=True, exist_ok=True)
    with one_thread():
        refs = encoder_refs(study, store, _Trained() if share[1] > 1 else Processes(1), progress)
        autoencoder = load_autoencoder(refs.autoencoder, device)
        text_encoder = load_text_encoder(refs.text_encoder, device)
        folder = data_folder(study.data, store, refs, autoencoder, text_encoder)
        found = encode_share(
            study.data,
            autoencoder,
            text_encoder,
            folder,
            *share,
            progress=lambda done, total: progress("encode images", done, total, f"shard {share[0]}/{share[1]}"),
        )
    return Encoded(folder, *found)


class _Trained:
    """An executor that trains no encoder: one process has to have done it, or every one would."""

    workers = 1

    def run(self, function: Callable[..., Any], tasks: Sequence[Task], **_: Any) -> None:
        missing = [kind for kind, _, folder in (task.arguments for task in tasks) if not own.is_trained(folder)]
        if missing:
            raise SpecError(
                f"the study's own encoders ({', '.join(missing)}) are not trained yet: run `isocost encode` without "
                "--shard first, in one process; it may be stopped once it encodes images."
            )
