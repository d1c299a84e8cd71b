"""How far a store is: members trained, chunks made, scores written. Reads file names and logs; never imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from isocost.specs import ScoreSpec
from isocost.study.store import Store


@dataclass(frozen=True)
class Status:
    """Counts of a study's work. `members`: each run with the images it has seen; totals are None before training.

    `smaller_batches`: cells that go on below the study's batch, as memory ran out. `search`: of an adaptive search, how
    many images it has made and the `doubt` that its answer holds; cells and chunks are then those that it takes.
    """

    store: str
    study: str
    members: tuple[dict[str, Any], ...]
    cells: int | None
    chunks_done: int
    chunks_wanted: int | None
    scored: int
    smaller_batches: int
    search: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        sought = self.search is None or self.search["finished"]
        return sought and self.cells is not None and (self.scored, self.chunks_done) == (self.cells, self.chunks_wanted)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"finished": self.finished}


def status(store: Store) -> Status:
    """Raises `StoreError` when there is no study in the store."""
    study = store.study()
    expansion = store.expansion()
    members = tuple({**run, "images_seen": store.images_seen(run["digest"])} for run in expansion["runs"])
    cells, search = expansion["cells"], store.search()
    if search is not None:
        taken = {key for choice in search["frontier"] for key in choice["sample_keys"]}
        cells = [cell for cell in cells if cell["curve"] or cell["sample_key"] in taken]
    batches = {cell["sample_key"]: cell.get("batch", study.engine.batch) for cell in cells}
    chunks = {key: -(-study.evaluation.images // batch) for key, batch in batches.items()}
    if expansion["sets"]:
        chunks = {images["sample_key"]: images["chunks"] for images in expansion["sets"]}
    specs = [ScoreSpec.model_validate(spec) for spec in expansion["scores"]]
    there = store.score_keys()
    done = store.count_chunks()
    return Status(
        store=str(store.path),
        study=study.name,
        members=members,
        cells=len(batches) or None,
        chunks_done=sum(min(done[key], count) for key, count in chunks.items()),
        chunks_wanted=sum(chunks.values()) or None,
        scored=sum(all(Store.score_key(key, spec) in there for spec in specs) for key in batches) if specs else 0,
        smaller_batches=sum(batch < study.engine.batch for batch in batches.values()),
        search=search and {name: search[name] for name in ("finished", "images", "doubt")},
    )
