"""Re-analysis of a finished study from its store: every interval, paired differences, frontier, and the plan.

    python benchmarks/reanalysis.py [--cells 1000] [--images 30000] [--repeats 3] [--folder STORE]

Cells are synthetic: one Frechet distance each on all images and on both halves, with influence values that correlate as
cells of one study do. What is timed starts from files: a new `Store` each time. Paired differences: of every cell to
the best one on all images, and those that the frontier and its crossovers ask for. `ratio` is the disk space of the
store as a sweep leaves it, with influence values in single files, over that after `isocost store compact`; under
`ratios`, the same of the seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from isocost.analysis.cells import Z95
from isocost.environment import environment
from isocost.reporting.page import summary
from isocost.scoring.uncertainty import standard_error
from isocost.specs import Score, ScoreSpec
from isocost.study.store import Store
from isocost.study.upkeep import compact

METRIC = "fd[any-2048]"
SPLITS = ("selection", "report", "all")
MEMBERS, SAMPLERS, STEPS = (8, 16, 32, 64), ("ddim", "dpmpp_2m"), (1, 2, 4, 8, 16)


def cells(count: int) -> pd.DataFrame:
    """What a store's expansion says of each cell, guidance scales as many as it takes."""
    scales = np.geomspace(1, 8, -(-count // (len(MEMBERS) * len(SAMPLERS) * len(STEPS))))
    rows = [
        {
            "member": f"c{width}", "width": width, "params": 2500 * width**2, "seed": 0, "images_seen": 10**6,
            "train_gflops": 1.0 * width**2, "sampler": sampler, "eta": 0.0, "variance": "small", "spacing": "trailing",
            "steps": steps, "guidance_scale": float(scale), "curve": False, "sample_key": f"{place:064x}",
            "evaluations": steps * (1 + (scale != 1)), "paper_cost": width**2 * steps / 1024,
            "gflops_per_image": width**2 * steps * (1 + (scale != 1)) / 256, "seconds_per_image": float("nan"),
        }
        for place, (width, sampler, steps, scale) in enumerate(itertools.product(MEMBERS, SAMPLERS, STEPS, scales))
    ]  # fmt: skip
    return pd.DataFrame(rows[:count])


def fill(store: Store, frame: pd.DataFrame, images: int) -> None:
    """Scores and influence values of every cell, as `Store.write_score` leaves them (less its waits for the disk)."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(images)
    recorded = environment()
    for row in frame.to_dict("records"):
        distance = 200 / row["width"] + 20 / row["steps"] + 3 * np.log(row["guidance_scale"] / 2) ** 2
        influence = np.float32(4 * distance) * (0.95 * shared + 0.3 * rng.standard_normal(images))
        halves = {"selection": influence[::2], "report": influence[1::2], "all": influence}
        for split, values in halves.items():
            n = len(values)
            spec = ScoreSpec(metric="fd", extractor="any-2048@0", reference="0" * 64, n=n, split=split)
            value = distance + float(values.mean())
            numbers = {"value": value, "stderr": standard_error(values), "bias": 0.0, "n": n}
            score = Score(
                sample_key=row["sample_key"],
                score_spec=spec,
                higher_is_better=False,
                unit="Frechet distance",
                environment=recorded,
                **numbers,
            )
            key = store.score_key(score.sample_key, spec)
            store.score_path(key).parent.mkdir(parents=True, exist_ok=True)
            store.score_path(key).write_text(json.dumps(score.model_dump(mode="json")))
            np.save(store.influence_path(key), (values - values.mean()).astype(np.float32))


def analyse(path: Path, frame: pd.DataFrame) -> dict[str, Any]:
    """All that is asked of a study once its cells are scored."""
    store = Store(path)
    table = frame.merge(store.index(), on="sample_key").assign(metric=METRIC)
    table["low"], table["high"] = (table["value"] + sign * Z95 * table["stderr"] for sign in (-1, 1))
    scored = table[table["split"] == "all"].sort_values("value")
    influence = {key: store.influence(key) for key in scored["score_key"]}
    best = influence[scored["score_key"].iloc[0]]
    errors = np.array([standard_error(values - best) for values in influence.values()])
    decided = scored["value"] - scored["value"].iloc[0] > Z95 * errors
    found = summary(table, METRIC, "gflops", store.influence)
    return {"intervals": len(table), "differences": len(errors), "decided": int(decided.sum()), **found}


def bytes_on_disk(folder: Path) -> int:
    """What the files of a folder take, in whole blocks."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def median_seconds(path: Path, frame: pd.DataFrame, repeats: int) -> tuple[float, dict[str, Any]]:
    spent = []
    for _ in range(repeats):
        begun = time.perf_counter()
        found = analyse(path, frame)
        spent.append(time.perf_counter() - begun)
    print(f"{statistics.median(spent):.2f} s; {bytes_on_disk(path) / 1e6:.0f} MB", flush=True)
    return statistics.median(spent), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("cells", 1000), ("images", 30_000), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="where to make the store; default: a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(args.folder or Path(temporary) / "store", args.cells, args.images, args.repeats)
    print(json.dumps(result))


def measure(path: Path, count: int, images: int, repeats: int) -> dict[str, Any]:
    """The benchmark's result. SystemExit where packs would change an answer."""
    frame = cells(count)
    fill(Store(path), frame, images)
    begun = time.perf_counter()
    Store(path).index()
    indexing = time.perf_counter() - begun
    loose, answer = median_seconds(path, frame, repeats)
    loose_bytes = bytes_on_disk(path)
    begun = time.perf_counter()
    compact(Store(path))
    compacting = time.perf_counter() - begun
    packed, same = median_seconds(path, frame, repeats)
    if answer != same:
        raise SystemExit(f"packs change what is said of the study: {answer} became {same}")
    return {
        "name": f"re-analysis: {count} cells of {images} images, {len(SPLITS)} scores each",
        "ratio": round(loose_bytes / bytes_on_disk(path), 3),
        "ratios": {"seconds": round(loose / packed, 3)},
        "seconds": {"packed": round(packed, 2), "single files": round(loose, 2)},
        "megabytes": {"packed": round(bytes_on_disk(path) / 1e6, 1), "single files": round(loose_bytes / 1e6, 1)},
        "once": {"index": round(indexing, 2), "compact": round(compacting, 2)},
        "asked": {name: answer[name] for name in ("intervals", "differences", "decided", "sentence")},
        "baseline": "influence values in single float32 files",
        "device": environment(),
    }


if __name__ == "__main__":
    main()
