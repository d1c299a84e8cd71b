"""Images of new prompts, exactly as a cell of a study draws its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isocost.errors import SpecError
from isocost.sampling.generate import generate
from isocost.study import run
from isocost.study.best_of import generate_best
from isocost.study.grid import Cell
from isocost.study.images import folders_of
from isocost.study.pipelines import load_pipeline, load_scorer
from isocost.study.run import Trained
from isocost.study.store import Store


def draw(store: Store, cell: str, texts: Sequence[str], replicate: int = 0) -> np.ndarray:
    """Images [n, H, W, 3] uint8 of texts under a cell's plan and engine: checkpoints, guidance, best-of-n and all.

    `cell`: its sample key, or how that begins. The noise of a text is keyed by it and `replicate`.

    Raises:
        SpecError: no cell, or several, begin so; a cell that upscales images.
        StoreError: no study in the store, or members that are not trained.
    """
    trained = run.opened(store)
    found = _cell(trained, cell)
    engine = found.key.engine.model_copy(update={"batch": min(len(texts), found.key.engine.batch)})
    key = found.key.model_copy(update={"engine": engine})
    pipeline = load_pipeline(key, folders_of(key.plan, trained.folders), trained.refs)
    asked = [(text, text, replicate) for text in texts]
    batches = [asked[start : start + engine.batch] for start in range(0, len(asked), engine.batch)]
    if found.scorer is None:
        made = [generate(pipeline, key.plan, engine, batch) for batch in batches]
    else:
        scorer = load_scorer(found.scorer)
        made = [generate_best(pipeline, key.plan, engine, batch, scorer) for batch in batches]
    return np.concatenate([chunk.images for chunk in made])


def _cell(trained: Trained, beginning: str) -> Cell:
    matches = {cell.sample_key: cell for cell in trained.cells if cell.sample_key.startswith(beginning)}
    if len(matches) != 1:
        wrong = "no cell's sample key begins" if not matches else f"{len(matches)} cells' sample keys begin"
        raise SpecError(f"{trained.store.path}: {wrong} with '{beginning}': `isocost store ls` lists them.")
    return next(iter(matches.values()))
