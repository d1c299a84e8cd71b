"""Looking after a store: verify, merge, prune, compact, pack. Chunks and scores are immutable; all of this only reads,
copies what is missing, removes what nothing refers to, or puts many small files into one."""

from __future__ import annotations

import gzip
import json
import platform
import shutil
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from isocost.encoders.latents import data_spec, read_header
from isocost.errors import DataError, StoreError
from isocost.processes import is_alive
from isocost.specs import Score, canonical_json
from isocost.study.influence import SCORES_A_PACK
from isocost.study.store import Store, write_atomically

# Parts of an expansion whose rows have scores.
WITH_SCORES = ("cells", "halves", "frames", "sets")

# What can be had again from the rest, or belongs to one machine: not carried by merge or pack.
DERIVED = {"index.parquet", "index.json", "costs.json", "report.html"}

READABLE = 2**21  # bytes: a larger file is not read in a diff, and is published compressed

# A file of another machine's that is older was left by a process that died.
SECONDS_TO_WRITE = 3600

# Columns of the index that tell ScoreSpecs apart.
ONE_SPEC = ["metric", "extractor", "reference", "split", "images"]


def verify(store: Store) -> dict[str, Any]:
    """Read every chunk, score and influence pack; `corrupt` names each that cannot be read, and why."""
    store.study()
    chunks = sorted((store.path / "chunks").glob("*/*/*.safetensors"))
    scores = sorted((store.path / "cells").glob("*/*.json"))
    checks = [
        *(partial(store.read_chunk, path.parent.name, int(path.stem)) for path in chunks),
        *(partial(store.read_score, path) for path in scores),
        *(pack.verify for pack in store.packs()),
    ]
    corrupt = []
    for check in checks:
        try:
            check()
        except DataError as error:
            corrupt.append(str(error))
    return {"chunks": len(chunks), "scores": len(scores), "corrupt": corrupt}


def merge(store: Store, others: Sequence[Store]) -> dict[str, Any]:
    """Copy files that `others` have and `store` lacks. Raises `StoreError` where one of them is of another study."""
    study = others[0].study() if others and not store.study_file.is_file() else store.study()
    copied = 0
    for other in others:
        if other.study().digest != study.digest:
            raise StoreError(f"{other.path}: holds another study than {store.path}; only stores of one study merge.")
        for path in _files(other):
            target = store.path / path.relative_to(other.path)
            if not target.exists():
                write_atomically(target, path.read_bytes())
                copied += 1
    return {"copied": copied}


def prune(store: Store, dry_run: bool = False) -> dict[str, Any]:
    """Remove temporary files of killed processes, and chunks and scores of cells that the study no longer has.

    Image strips have sample keys of their own and are kept while their checkpoint is; packed influence values are kept
    while any of their scores is.
    """
    expansion = store.expansion()
    wanted = {row["sample_key"] for part in WITH_SCORES for row in expansion[part]}
    if not expansion["cells"]:
        raise StoreError(f"{store.path}: the study's cells are not known yet; nothing can be pruned.")
    leftovers = [path for path in store.path.rglob(".*.tmp-*") if not _is_being_written(path)]
    doomed = leftovers + [path for path, key in _owned(store) if key not in wanted]
    kept = {key for key, score in store.scores() if score.sample_key in wanted}
    doomed += [pack.path for pack in store.packs() if kept.isdisjoint(pack.rows)]
    if not dry_run:
        for path in doomed:
            path.unlink(missing_ok=True)
    return {"would remove" if dry_run else "removed": [str(path) for path in doomed]}


def _owned(store: Store) -> Iterator[tuple[Path, str]]:
    """Scores with their sample keys, and chunks of cells (strips, which keep images only, left out)."""
    for key, score in store.scores():
        path = store.score_path(key)
        yield path, score.sample_key
        yield store.influence_path(key), score.sample_key
    for path in (store.path / "chunks").glob("*/*/*.safetensors"):
        if store.holds_features(path):
            yield path, path.parent.name


def _is_being_written(temporary: Path) -> bool:
    """Whether the process that a temporary file is named after (`.NAME.tmp-HOST-PID`) may still live."""
    host, _, pid = temporary.name.rpartition(".tmp-")[2].rpartition("-")
    if host not in ("", platform.node()):
        return time.time() - temporary.stat().st_mtime < SECONDS_TO_WRITE
    return pid.isdecimal() and is_alive(int(pid))


def compact(store: Store) -> dict[str, Any]:
    """Rebuild what is derived from scores and chunks, and move influence values of single scores into packs of many.

    A pack is there, whole, before the files that it replaces go: whenever this is killed, every score has its values.
    Packs are in half precision; `isocost.study.influence` says what that moves.
    """
    for name in ("index.parquet", "index.json"):
        (store.path / name).unlink(missing_ok=True)
    store.write_costs(rebuild=True)
    scores = store.index()
    packed = 0
    for _, alike in scores.groupby(ONE_SPEC, dropna=False) if len(scores) else ():
        loose = [key for key in alike["score_key"] if store.influence_path(key).is_file()]
        held = {key for pack in store.packs() for key in pack.rows}
        new = [key for key in loose if key not in held]
        for start in range(0, len(new), SCORES_A_PACK):
            values = {key: store.influence(key) for key in new[start : start + SCORES_A_PACK]}
            found = {key: value for key, value in values.items() if value is not None}
            for length in sorted({len(value) for value in found.values()}):
                store.write_pack({key: value for key, value in found.items() if len(value) == length})
        for key in loose:
            store.influence_path(key).unlink()
        packed += len(loose)
    return {"scores": len(scores), "packed": packed}


def pack(store: Store, out: Path) -> dict[str, Any]:
    """Everything that is not derived, as one tar that unpacks to the same store."""
    store.study()
    temporary = out.with_name(f".{out.name}.part")
    try:
        with tarfile.open(temporary, "w") as archive:
            for path in _files(store):
                archive.add(path, arcname=str(path.relative_to(store.path)), recursive=False)
        shutil.move(temporary, out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"{out}: cannot write: {error.strerror or error}") from None
    return {"packed": str(out), "bytes": out.stat().st_size}


def publish(store: Store, out: Path) -> dict[str, Any]:
    """What a paper or a repository keeps of a store: spec, all scores, what their cells are, environment, figures.

    `scores.json` is the list of Score objects, of the study's own cells; `cells.json` says what each sample key is and
    costs, `frames.json` which are floor and ceiling of super-resolution; `digests.json` has what it was computed from:
    the study, its training data, prompts, references and extractors, by content. A file of more than `READABLE` bytes
    is compressed, with the suffix .gz.
    """
    own = {row["sample_key"] for part in WITH_SCORES for row in store.expansion()[part]}
    scores = [score for _, score in store.scores() if score.sample_key in own]
    if not scores:
        raise StoreError(f"{store.path}: no scores to publish yet.")
    plain = [score.model_dump(mode="json") for score in scores]
    environments = {canonical_json(score.environment): score.environment for score in scores}
    contents = {
        "spec.yaml": store.study().to_yaml(),
        "scores.json": _json_lines(plain),
        "cells.json": _json_lines(store.expansion()["cells"]),
        "environment.json": json.dumps(list(environments.values()), indent=1),
        "digests.json": json.dumps(_digests(store, scores), indent=1),
    }
    if (store.path / "baselines.json").is_file():
        contents["baselines.json"] = (store.path / "baselines.json").read_text()
    if frames := store.expansion()["frames"]:
        contents["frames.json"] = _json_lines(frames)
    for name, text in contents.items():
        content, large = text.encode(), len(text) > READABLE
        write_atomically(out / (f"{name}.gz" if large else name), gzip.compress(content, mtime=0) if large else content)
    figures = sorted((store.path / "figures").glob("*.png"))
    for path in figures:
        write_atomically(out / "figures" / path.name, path.read_bytes())
    return {"folder": str(out), "scores": len(scores), "figures": len(figures)}


def _digests(store: Store, scores: Sequence[Score]) -> dict[str, Any]:
    """What a study's results were computed from, by content."""
    specs = [score.score_spec for score in scores]
    headers = sorted((store.path / "data").glob("*/header.json"))
    keys = sorted({score.sample_key for score in scores})
    prompts = next((path for key in keys if (path := store.chunk_path(key, 0).with_name("key.yaml")).is_file()), None)
    return {
        "study": store.study().digest,
        "training data": [data_spec(read_header(path.parent)).canonical() for path in headers],
        "prompts": yaml.safe_load(prompts.read_text())["promptset"] if prompts else None,
        "references": sorted({spec.reference for spec in specs if spec.reference}),
        "extractors": sorted({spec.extractor for spec in specs if spec.extractor}),
    }


def _json_lines(values: Sequence[Any]) -> str:
    """A JSON list with an item a line: readable in a diff."""
    return "[\n" + ",\n".join(json.dumps(value) for value in values) + "\n]\n"


def _files(store: Store) -> Iterable[Path]:
    """All whole files of a store but the derived ones."""
    return (
        path
        for path in sorted(store.path.rglob("*"))
        if path.is_file()
        and path.name not in DERIVED
        and not any(part.startswith(".") for part in path.relative_to(store.path).parts)
    )
