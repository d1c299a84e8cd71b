"""How far a store is: members trained, chunks made, scores written. Reads file names and logs; never imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from isocost.specs import ScoreSpec
from isocost.study.store import Store


@dataclass(frozen=True)
class Status:
    """Counts of a study's work. `members`: each run with the images it has seen; totals are None before training."""

    store: str
    study: str
    members: tuple[dict[str, Any], ...]
    cells: int | None
    chunks_done: int
    chunks_wanted: int | None
    scored: int

    @property
    def finished(self) -> bool:
        return self.cells is not None and self.scored == self.cells and self.chunks_done == self.chunks_wanted

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"finished": self.finished}


def status(store: Store) -> Status:
    """Raises `StoreError` when there is no study in the store."""
    study = store.study()
    expansion = store.expansion()
    members = tuple({**run, "images_seen": store.images_seen(run["digest"])} for run in expansion["runs"])
    keys = {cell["sample_key"] for cell in expansion["cells"]}
    chunks = -(-study.evaluation.images // study.engine.batch)
    specs = [ScoreSpec.model_validate(spec) for spec in expansion["scores"]]
    there = store.score_keys()
    done = {key: store.count_chunks(key) for key in keys}
    return Status(
        store=str(store.path),
        study=study.name,
        members=members,
        cells=len(keys) or None,
        chunks_done=sum(min(count, chunks) for count in done.values()),
        chunks_wanted=chunks * len(keys) if keys else None,
        scored=sum(all(Store.score_key(key, spec) in there for spec in specs) for key in keys) if specs else 0,
    )
