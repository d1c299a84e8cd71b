"""The store of a study: immutable files named by digest, written to a temporary name, fsynced and renamed.

    STORE/study.yaml               the study that last ran here
    STORE/expansion.json           the runs and cells that it expands to, with their costs
    STORE/search.json              what adaptive search found, or has so far
    STORE/locator.json             content digest -> where that encoder lies (never part of a digest)
    STORE/data/ENCODERS/           encoded shards
    STORE/checkpoints/TRAINSPEC/   one training run
    STORE/references/KEY.safetensors
    STORE/chunks/ab/KEY/00003.safetensors    features of engine.batch images, with evaluations and seconds
    STORE/batches/KEY.json         the smaller batch that goes on for a sample key, as memory ran out
    STORE/cells/ab/KEY.json        one Score; KEY.npy beside it: its influence values, fp32, one an image
                                             (and one a reference image, where the reference is a small sample)
    STORE/influence/DIGEST.safetensors       influence values of many scores: where `compact` moves those .npy files
    STORE/index.parquet            derived from cells/: rebuilt when it does not match
    STORE/costs.json               derived from chunks/: what an image of each cost, since the last `compact`
    STORE/strips.json              cells of which images are kept to be looked at, and where they are in chunks/

Chunks, cells and influence values are the truth. A file that is there is whole; what is not there is not done.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isocost.errors import DataError, StoreError
from isocost.files import atomic_write
from isocost.processes import HeldByOthersError, hold
from isocost.runlog import images_seen
from isocost.specs import SampleKey, Score, ScoreSpec, StudySpec, load
from isocost.study.influence import Pack, encode


def write_atomically(path: Path, content: bytes) -> None:
    """Write, fsync and rename: a reader sees the old file, the new one, never a part.

    Raises:
        StoreError: the folder cannot be written, or the disk is full; nothing that was there is touched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(content)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot write: {error.strerror or error}. Nothing done so far is lost: mend it, run again."
        ) from None


@dataclass(frozen=True)
class StoredChunk:
    """One chunk as stored: features by extractor identity (fp16), and what an image cost."""

    features: dict[str, np.ndarray]
    evaluations: int
    seconds: float
    count: int
    images: np.ndarray | None


class Store:
    """A folder of results. `Store(path)` opens or creates it."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._packs: dict[Path, Pack] = {}
        self._kept_costs: dict[str, list[tuple[int, float]]] | None = None
        self._expansion: tuple[tuple[int, int, int], dict[str, list[dict[str, Any]]]] | None = None

    @contextmanager
    def held(self, shared: bool = False) -> Iterator[None]:
        """Hold the store against a second sweep; with `shared`, as shards of one do.

        Raises:
            StoreError: another process holds it, or it cannot be written.
        """
        with ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                held.enter_context(hold(self.path, shared))
            except HeldByOthersError as others:
                raise StoreError(
                    f"{self.path}: another process works on this store ({others}): wait for it, or stop it. Sweeps "
                    "that share the work are shards: `isocost sweep --shard 0/2` and `1/2`."
                ) from None
            except OSError as error:
                raise StoreError(f"{self.path}: cannot write: {error.strerror or error}.") from None
            yield

    # --- the study and where things lie ------------------------------------------------------------------

    @property
    def study_file(self) -> Path:
        return self.path / "study.yaml"

    def study(self) -> StudySpec:
        """The study that last ran here. Raises `StoreError` when this is no store."""
        if not self.study_file.is_file():
            specs = (*self.path.glob("*/study.yaml"), *self.path.glob("*/spec.yaml"))  # of stores, of published results
            inside = sorted({spec.parent.name for spec in specs})
            if inside:
                raise StoreError(f"{self.path}: a folder of studies: name one of them: {', '.join(inside)}.")
            raise StoreError(
                f"{self.path}: not a store (no study.yaml). `isocost sweep RECIPE --store PATH` makes one."
            )
        return load(self.study_file, StudySpec)

    def write_study(self, study: StudySpec) -> None:
        write_atomically(self.study_file, study.to_yaml().encode())

    def locator(self) -> dict[str, str]:
        """Content digest -> reference of an encoder (a shipped name, a hub id, or a path)."""
        known = json.loads(self._locator_file.read_text()) if self._locator_file.is_file() else {}
        return {digest: self.resolve(where) for digest, where in known.items()}

    def locate(self, references: dict[str, str]) -> None:
        """Remember where encoders of given digests lie; those in the store by their place in it: a store can move."""
        references = self.inside(references)
        known = json.loads(self._locator_file.read_text()) if self._locator_file.is_file() else {}
        if any(known.get(digest) != where for digest, where in references.items()):
            text = json.dumps(known | references, indent=1, sort_keys=True)
            write_atomically(self._locator_file, text.encode())

    @property
    def _locator_file(self) -> Path:
        return self.path / "locator.json"

    def inside(self, references: dict[str, str]) -> dict[str, str]:
        """The same references, those in the store as paths from it."""
        return {name: where.removeprefix(str(self.path) + os.sep) for name, where in references.items()}

    def resolve(self, reference: str) -> str:
        """A reference as the locator keeps it, as one that can be loaded from here."""
        return str(self.path / reference) if (self.path / reference).is_dir() else reference

    def expansion(self) -> dict[str, list[dict[str, Any]]]:
        """What the study expands to: `runs` (member, seed, digest, images), `cells` (what each is and costs), `halves`
        (their sample keys on half the prompts, where adaptive search looks), `scores` (the ScoreSpecs that every cell
        is to have), `metrics` (each as asked for and as printed) and `places` (where data and encoders lie; one dict);
        of super-resolution `starts` (what runs start from) and `frames` (sample keys of floor and ceiling).
        """
        known = {"runs": [], "cells": [], "halves": [], "scores": [], "metrics": [], "places": []}
        known |= {"starts": [], "frames": [], "sets": []}
        return known | self._read_expansion()

    def write_expansion(self, **parts: list[dict[str, Any]]) -> None:
        """Keep these parts beside the others that are there."""
        known = self.expansion()
        if any(known.get(name) != part for name, part in parts.items()):
            text = json.dumps(known | parts)  # without indent: that takes Python's own encoder, ten times slower
            write_atomically(self.path / "expansion.json", text.encode())

    def _read_expansion(self) -> dict[str, list[dict[str, Any]]]:
        """Read once as long as it is the same file: of 10,000 cells that takes a while, and it is asked for often."""
        path = self.path / "expansion.json"
        if not path.is_file():
            return {}
        found = path.stat()
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if self._expansion is None or self._expansion[0] != stamp:
            self._expansion = (stamp, json.loads(path.read_text()))
        return self._expansion[1]

    def search(self) -> dict[str, Any] | None:
        """What adaptive search found, or has so far; None where the study was not searched, or in full since."""
        path = self.path / "search.json"
        record = json.loads(path.read_text()) if path.is_file() else None
        return record if record and record["study"] == self.study().digest else None

    def write_search(self, record: dict[str, Any]) -> None:
        text = json.dumps({"study": self.study().digest} | record, indent=1)
        write_atomically(self.path / "search.json", text.encode())

    def forget_search(self) -> None:
        (self.path / "search.json").unlink(missing_ok=True)

    def forget_expansion(self) -> None:
        (self.path / "expansion.json").unlink(missing_ok=True)

    def images_seen(self, train_digest: str) -> int:
        """How far a training run is, by its log; 0 where it has not begun."""
        return images_seen(self.path / "checkpoints" / train_digest)

    # --- chunks ------------------------------------------------------------------------------------------

    def chunk_path(self, sample_key: str, index: int) -> Path:
        return self.path / "chunks" / sample_key[:2] / sample_key / f"{index:05d}.safetensors"

    def write_sample_key(self, key: SampleKey) -> None:
        """Keep the key beside its chunks: what a folder of digests holds can be read from itself."""
        path = self.chunk_path(key.digest, 0).with_name("key.yaml")
        if not path.is_file():
            write_atomically(path, key.to_yaml().encode())

    def smaller_batch(self, sample_key: str) -> int | None:
        """The batch that goes on for a sample key at which memory ran out."""
        path = self._batch_path(sample_key)
        return json.loads(path.read_text())["batch"] if path.is_file() else None

    def smaller_batches(self) -> dict[str, int]:
        """`smaller_batch` by sample key, of all that there are."""
        return {path.stem: json.loads(path.read_text())["batch"] for path in self._batch_path("").parent.glob("*.json")}

    def write_smaller_batch(self, sample_key: str, batch: int) -> None:
        write_atomically(self._batch_path(sample_key), json.dumps({"batch": batch}).encode())

    def _batch_path(self, sample_key: str) -> Path:
        return self.path / "batches" / f"{sample_key}.json"

    def has_chunk(self, sample_key: str, index: int, tensors: Iterable[str] = ()) -> bool:
        """Whether a chunk is there, with these tensors (`images`, `features/NAME`) in it."""
        path = self.chunk_path(sample_key, index)
        return path.is_file() and set(tensors) <= set(_header(path))

    def holds_features(self, chunk: Path) -> bool:
        """Whether a chunk belongs to a scored cell (image strips keep images only)."""
        return any(name.startswith("features/") for name in _header(chunk))

    def chunks(self) -> dict[str, set[int]]:
        """Which chunks each sample key has, by file name."""
        chunks = f"{self.path}/chunks"
        return {
            key: {int(stem) for stem in _stems(f"{chunks}/{shelf}/{key}", ".safetensors")}
            for shelf in _names(chunks)
            for key in _names(f"{chunks}/{shelf}")
        }

    def count_chunks(self) -> Counter[str]:
        """How many chunks each sample key has."""
        return Counter({key: len(indices) for key, indices in self.chunks().items()})

    def write_chunk(self, sample_key: str, index: int, chunk: StoredChunk) -> None:
        """Store a chunk. Features and images that one of the same place already has are kept beside the new."""
        from safetensors.numpy import save

        if self.has_chunk(sample_key, index):
            before = self.read_chunk(sample_key, index)
            images = before.images if chunk.images is None else chunk.images
            chunk = replace(chunk, features=before.features | chunk.features, images=images)
        # One value an image is a score's own, and small: half precision is for features.
        dtypes = {name: np.float32 if values.ndim == 1 else np.float16 for name, values in chunk.features.items()}
        tensors = {f"features/{name}": values.astype(dtypes[name]) for name, values in chunk.features.items()}
        if chunk.images is not None:
            tensors["images"] = chunk.images
        meta = {"evaluations": str(chunk.evaluations), "seconds": repr(chunk.seconds), "count": str(chunk.count)}
        write_atomically(self.chunk_path(sample_key, index), save(tensors, metadata=meta))

    def read_chunk(self, sample_key: str, index: int) -> StoredChunk:
        """Raises `DataError` naming the file when it is corrupt."""
        from safetensors import SafetensorError, safe_open

        path = self.chunk_path(sample_key, index)
        try:
            with safe_open(path, framework="numpy") as file:
                meta = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            features = {n.removeprefix("features/"): v for n, v in tensors.items() if n.startswith("features/")}
            return StoredChunk(
                features, int(meta["evaluations"]), float(meta["seconds"]), int(meta["count"]), tensors.get("images")
            )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise DataError(f"{path}: corrupt chunk ({error}). Delete this file and run the sweep again.") from None

    def chunk_costs(self, sample_key: str) -> list[tuple[int, float]]:
        """(evaluations, seconds) an image of every chunk of a cell: as `write_costs` left them where there are as many
        chunks, else from the headers."""
        indices = sorted(map(int, _stems(self.chunk_path(sample_key, 0).parent, ".safetensors")))
        kept = self._costs().get(sample_key, [])
        if len(kept) != len(indices):
            metas = [_header(self.chunk_path(sample_key, index))["__metadata__"] for index in indices]
            kept = [(int(meta["evaluations"]), float(meta["seconds"])) for meta in metas]
        return [(evaluations, seconds) for evaluations, seconds in kept]

    def write_costs(self, rebuild: bool = False) -> None:
        """Keep every chunk's costs in one file: a large study has hundreds of thousands of headers.

        rebuild: read them all again, not only those of cells that have more chunks than were kept.
        """
        if rebuild:
            self._kept_costs = {}
        costs = self.costs()
        write_atomically(self.path / "costs.json", json.dumps(costs).encode())
        self._kept_costs = costs

    def costs(self) -> dict[str, list[tuple[int, float]]]:
        """`chunk_costs` of all sample keys."""
        kept = self._costs()
        return {
            key: kept[key] if len(kept.get(key, ())) == len(indices) else self.chunk_costs(key)
            for key, indices in sorted(self.chunks().items())
            if indices
        }

    def _costs(self) -> dict[str, list[tuple[int, float]]]:
        if self._kept_costs is None:
            path = self.path / "costs.json"
            self._kept_costs = json.loads(path.read_text()) if path.is_file() else {}
        return self._kept_costs or {}

    # --- strips ------------------------------------------------------------------------------------------

    def strips(self) -> dict[str, dict[str, Any]]:
        """Cells whose images are kept to be looked at, by sample key: the `key` of those images, their `captions`."""
        path = self.path / "strips.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def note_strip(self, sample_key: str, key: str, captions: Sequence[str]) -> None:
        """Remember where a cell's strip is, for those who read it without the study. Nothing where it is read-only."""
        known, strip = self.strips(), {"key": key, "captions": list(captions)}
        if known.get(sample_key) != strip and os.access(self.path, os.W_OK):
            write_atomically(self.path / "strips.json", json.dumps(known | {sample_key: strip}).encode())

    # --- scores ------------------------------------------------------------------------------------------

    @staticmethod
    def score_key(sample_key: str, score_spec: ScoreSpec) -> str:
        """`digest_of({"sample_key": ..., "score_spec": ...})`, for many cells of few specs. A sample key is hex."""
        text = f'{{"sample_key":"{sample_key}","score_spec":{score_spec.canonical_text}}}'
        return hashlib.sha256(text.encode()).hexdigest()

    def score_path(self, key: str) -> Path:
        return self.path / "cells" / key[:2] / f"{key}.json"

    def influence_path(self, score_key: str) -> Path:
        """Where a score's influence values lie until they are packed."""
        return self.score_path(score_key).with_suffix(".npy")

    def write_score(
        self, score: Score, influence: np.ndarray | None, reference_influence: np.ndarray | None = None
    ) -> str:
        """Store a score under its key, its influence values first: a score that is there is complete."""
        key = self.score_key(score.sample_key, score.score_spec)
        path = self.score_path(key)
        if influence is not None:
            parts = [part for part in (influence, reference_influence) if part is not None]
            write_atomically(self.influence_path(key), _npy(np.concatenate(parts).astype(np.float32)))
        write_atomically(path, (json.dumps(score.model_dump(mode="json"), indent=1) + "\n").encode())
        return key

    def read_score(self, path: Path) -> Score:
        """Raises `DataError` naming the file when it is corrupt."""
        try:
            return Score.model_validate_json(path.read_text())
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path}: corrupt score ({reason}). Delete it and run the sweep again.") from None

    def scores(self) -> Iterator[tuple[str, Score]]:
        """All scores, in order of key. Raises `DataError` naming a corrupt one."""
        for path in sorted((self.path / "cells").glob("*/*.json")):
            yield path.stem, self.read_score(path)

    def influence(self, score_key: str) -> np.ndarray | None:
        """Influence values of a score as float64: of its n images, in order of place, then of the reference's images
        where that is a small sample. None where the metric has none."""
        known = next((pack for pack in self._packs.values() if score_key in pack.rows), None)
        if known is not None and known.path.is_file():  # packs are immutable, but another process may prune them
            return known[score_key]
        path = self.influence_path(score_key)
        if path.is_file():
            return np.load(path, allow_pickle=False).astype(np.float64)
        return next((pack[score_key] for pack in self.packs() if score_key in pack.rows), None)

    def packs(self) -> list[Pack]:
        """Files with the influence values of many scores; what each holds is read once."""
        paths = sorted((self.path / "influence").glob("*.safetensors"))
        self._packs = {path: self._packs.get(path) or Pack(path) for path in paths}
        return list(self._packs.values())

    def write_pack(self, values: Mapping[str, np.ndarray]) -> None:
        """Store the influence values of many scores, key -> [n] with one n for all, as one file."""
        name, content = encode(values)
        write_atomically(self.path / "influence" / name, content)

    # --- derived -----------------------------------------------------------------------------------------

    def index(self) -> Any:
        """DataFrame of all scores (columns of `Score`, `ScoreSpec` flattened), from index.parquet where it is current.

        The index is derived: when the count of cells or the newest mtime of their folders differs, it is rebuilt.
        """
        import pandas as pd

        stamp = self._stamp()
        path = self.path / "index.parquet"
        stamp_path = self.path / "index.json"
        if path.is_file() and stamp_path.is_file() and json.loads(stamp_path.read_text()) == stamp:
            return pd.read_parquet(path)
        frame = pd.DataFrame([_row(key, score) for key, score in self.scores()])
        if len(frame) and os.access(self.path, os.W_OK):
            import io

            buffer = io.BytesIO()
            frame.to_parquet(buffer, index=False)
            write_atomically(path, buffer.getvalue())
            write_atomically(stamp_path, json.dumps(stamp).encode())
        return frame

    def score_keys(self) -> set[str]:
        """Keys of all scores that are there, by file name."""
        return {key for shelf in self._score_shelves() for key in _stems(shelf, ".json")}

    def _score_shelves(self) -> list[str]:
        cells = f"{self.path}/cells"
        return [f"{cells}/{shelf}" for shelf in _names(cells)]

    def _stamp(self) -> dict[str, float]:
        """Files appear by renaming: the folder that gets or loses one is as new as that, and there are far fewer."""
        shelves = self._score_shelves()
        newest = max((os.stat(shelf).st_mtime_ns for shelf in shelves), default=0)
        return {"cells": sum(len(_stems(shelf, ".json")) for shelf in shelves), "newest_folder": newest}


def _names(folder: str | os.PathLike[str]) -> list[str]:
    """What a folder holds, in no order; nothing where there is none. A glob would make a Path of each, and be slow."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _stems(folder: str | os.PathLike[str], suffix: str) -> list[str]:
    """Files of a suffix in a folder, in no order, without it; temporary ones are left out."""
    return [name.removesuffix(suffix) for name in _names(folder) if name.endswith(suffix) and name[0] != "."]


def _header(path: Path) -> dict[str, Any]:
    """A safetensors header (8 bytes of length, then JSON): tensor names, and `__metadata__`."""
    try:
        with path.open("rb") as file:
            return json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: corrupt chunk ({error}). Delete this file and run the sweep again.") from None


def _row(key: str, score: Score) -> dict[str, Any]:
    spec = score.score_spec
    return {
        "score_key": key,
        "sample_key": score.sample_key,
        "metric": spec.metric,
        "extractor": spec.extractor,
        "reference": spec.reference,
        "split": spec.split,
        "protocol": spec.protocol,
        "images": spec.n,
        "value": score.value,
        "stderr": score.stderr,
        "bias": score.bias,
        "n": score.n,
        "higher_is_better": score.higher_is_better,
        "unit": score.unit,
        "valid": score.valid,
    }


def _npy(values: np.ndarray) -> bytes:
    import io

    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()
