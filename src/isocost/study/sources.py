"""What a user names, opened as sets of images: cells of a store, protocols, folders, tars, features and arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isocost.data.images import Decoded
from isocost.data.prompts import PromptList
from isocost.errors import SpecError, StoreError
from isocost.scoring.evaluate import Against
from isocost.scoring.feature_files import values_digest
from isocost.scoring.measures import Defaults
from isocost.scoring.protocols import is_protocol, open_protocol
from isocost.scoring.references import ReferenceSet, load_reference
from isocost.scoring.sets import Features, ImageSet, Source, Wanted, open_set, shared
from isocost.specs import SampleKey, load
from isocost.study.artifacts import against, scored_prompts
from isocost.study.grid import cell_name
from isocost.study.images import chunks_needed
from isocost.study.store import Store, StoredChunk


@dataclass(frozen=True, eq=False)
class CellImages(ImageSet):
    """The first `count` images of a cell, in the order of its prompts; chunks are read when asked for."""

    name: str
    store: Store
    sample_key: str
    prompts: PromptList
    count: int

    advice = "name the metric in evaluation.metrics and run `isocost sweep` again"

    @functools.cached_property
    def _key(self) -> SampleKey:
        return load(self.store.chunk_path(self.sample_key, 0).with_name("key.yaml"), SampleKey)

    @functools.cached_property
    def keys(self) -> tuple[str, ...]:
        """Place by place the same for all cells of one prompt list: their scores are paired."""
        promptset = self._key.promptset.digest[:12]
        return tuple(f"{promptset}/{place}" for place in range(self.count))

    @property
    def _chunks(self) -> range:
        return range(chunks_needed(self.count, self._key.engine))

    @functools.cached_property
    def has_images(self) -> bool:
        return all(self.store.has_chunk(self.sample_key, index, ["images"]) for index in self._chunks)

    def where(self, index: int) -> str:
        return f"{self.name}: image {index}"

    def holds(self, extractor: str) -> bool:
        return all(self.store.has_chunk(self.sample_key, index, [f"features/{extractor}"]) for index in self._chunks)

    def features(self, extractor: str) -> np.ndarray:
        parts = [self.store.read_chunk(self.sample_key, index).features[extractor] for index in self._chunks]
        return np.concatenate(parts)[: self.count]

    def read(self, index: int) -> Decoded:
        chunk, place = divmod(index, self._key.engine.batch)
        images = self._read_chunk(chunk).images
        assert images is not None
        return Decoded(images[place])

    @functools.cached_property
    def _read_chunk(self) -> Callable[[int], StoredChunk]:
        return shared(lambda index: self.store.read_chunk(self.sample_key, index))

    def caption(self, index: int) -> str:
        return self.prompts.at(index)[0].text

    def wanted(self, index: int) -> Wanted:
        return self.prompts.at(index)[0].attributes or super().wanted(index)


def cells_of(store: Store, prefix: str | None = None) -> list[CellImages]:
    """The cell of a store whose sample key begins with `prefix`; None: all of them.

    Raises `SpecError` where a prefix means no cell or several; `StoreError` where there are none yet.
    """
    study = store.study()
    rows: dict[str, Mapping[str, Any]] = {row["sample_key"]: row for row in store.expansion()["cells"]}
    if not rows:
        raise StoreError(f"{store.path}: no cells yet. `isocost sweep` makes them.")
    chosen = [key for key in rows if key.startswith(prefix or "")]
    if prefix is not None and len(chosen) != 1:
        known = ", ".join(key[:8] for key in (chosen or list(rows))[:5])
        what = "several cells begin so" if chosen else "no cell begins so"
        raise SpecError(f"--cell {prefix}: {what} ({known}, ...); `isocost store ls {store.path}` lists them.")
    prompts = scored_prompts(study)
    count = study.evaluation.images
    return [CellImages(f"{cell_name(rows[key])} [{key[:8]}]", store, key, prompts, count) for key in chosen]


def defaults_of(store: Store) -> Defaults:
    """What a study's metrics without an extractor use."""
    evaluation, places = store.study().evaluation, store.expansion()["places"]
    extractor = store.resolve(places[0]["extractor"]) if places else evaluation.extractor
    return Defaults(extractor, evaluation.fd_dims, evaluation.classifier)


# --- whatever a user names ---


def store_at(source: Any) -> Store | None:
    """The store that a source is, if it is one."""
    if isinstance(source, Store):
        return source
    is_path = isinstance(source, str | Path)
    return Store(source) if is_path and (Path(source) / "study.yaml").is_file() else None


Named = Source | Store
Generated = Named | Sequence[Named] | Mapping[str, Named]


def open_generated(generated: Generated, cell: str | None = None, captions: Any = None) -> list[ImageSet]:
    """The sets of images to score: one source, several, or several by name; a store gives its cells.

    Raises `SpecError` for no source, or captions where there is more than one; and as `open_set` and `cells_of` do.
    """
    one = isinstance(generated, str | Path | np.ndarray | ImageSet | Store)
    named = dict(generated) if isinstance(generated, Mapping) else _by_name([generated] if one else list(generated))  # pyright: ignore[reportArgumentType]
    if not named:
        raise SpecError("nothing to score: give a folder, tars, features, an array or a store.")
    if captions is not None and len(named) > 1:
        raise SpecError("captions can be given for one set of images: put them beside the images of several.")
    found: list[ImageSet] = []
    for name, source in named.items():
        store = store_at(source)
        if cell is not None and store is None:
            raise SpecError(f"--cell is of a store, and {name} is none.")
        found += cells_of(store, cell) if store else [open_set(source, name, captions)]  # pyright: ignore[reportArgumentType]
    return found


def _by_name(sources: Sequence[Named]) -> dict[str, Named]:
    """Sources by what they are called: the last part of a path, or all of it where two end alike."""
    short = [_name(source) for source in sources]
    named: dict[str, Named] = {}
    for place, (name, source) in enumerate(zip(short, sources, strict=True), 1):
        whole = str(source) if isinstance(source, str | Path) else f"{name} {place}"
        unique = name if short.count(name) == 1 else whole
        if unique in named:
            raise SpecError(f"{unique}: named twice.")
        named[unique] = source
    return named


def _name(source: Named) -> str:
    if isinstance(source, str | Path):
        return Path(source).name or str(source)
    return source.name if isinstance(source, ImageSet) else str(source.path) if isinstance(source, Store) else "array"


def open_images_named(source: Source) -> ImageSet:
    """The images of `PROTOCOL:FOLDER`, or of what `open_set` reads."""
    return open_protocol(source) if isinstance(source, str) and is_protocol(source) else open_set(source)


def open_against(reference: Named | ReferenceSet | Sequence[Any] | None, stores: Sequence[Store] = ()) -> Against:
    """What to score against: images, a protocol, built references, features, or a store's own references.

    None: the references of the store whose cells are scored. Raises `SpecError` for two sets of images.
    """
    if reference is None:
        paths = {store.path.resolve(): store for store in stores}
        (store,) = paths.values() if len(paths) == 1 else (None,)
        return against(store.study(), store) if store else Against()
    if (store := store_at(reference)) is not None:
        return against(store.study(), store)
    items: list[Any] = [reference]
    if isinstance(reference, Sequence) and not isinstance(reference, str):
        items = list(reference)
    found = Against()
    for item in items:
        opened = item if isinstance(item, ReferenceSet) else open_images_named(item)
        if isinstance(opened, Features):
            opened = _reference(item, opened)
        if isinstance(opened, ReferenceSet):
            found.built.append(opened)
        elif found.images is None:
            found.images = opened
        else:
            raise SpecError(f"two sets of reference images, {found.images.name} and {opened.name}: give one.")
    return found


def _reference(source: Any, features: Features) -> ReferenceSet:
    if isinstance(source, str | Path):
        return load_reference(source)
    values = features.file.values
    return ReferenceSet(values, "", "", values_digest(values), features.name)
