"""What a study of super-resolution has beside one of prompts: pairs of images, and checkpoints to start from.

STORE/pairs/KEY/           crops of the protocol and what is left of them (`isocost.scoring.lowres`)
STORE/starts/DIGEST/       the text-to-image checkpoints that members start from: state.json, spec.yaml, EMA weights
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from isocost.data.degradation import DEGRADATIONS
from isocost.data.prompts import PromptList, listed
from isocost.errors import SpecError, StoreError, lookup
from isocost.scoring.lowres import LowResolution, write_lowres
from isocost.scoring.protocols import protocol_crops
from isocost.specs import DISTILLED, CheckpointRef, StudySpec, digest_of
from isocost.study.store import Store
from isocost.training import state
from isocost.training.state import EMA, Checkpoint

Starts = Mapping[tuple[str, int], CheckpointRef]
"""(member, training seed) -> the checkpoint that it starts from."""


def crops_as_prompts(protocol: str, degradation: str) -> PromptList:
    """The crops of `NAME:FOLDER` in the protocol's order: a prompt's text is the key of the image to upscale.

    Raises `SpecError` for a protocol without crops or an unknown degradation, `DataError` for its photographs.
    """
    crops = protocol_crops(protocol)
    prompts = listed(crops.name, [crops.keys[place] for place in crops.in_order])
    identity = digest_of([crops.protocol, lookup(DEGRADATIONS, degradation, "degradation").digest])
    return replace(prompts, promptset=prompts.promptset.model_copy(update={"digest_of_prompts": identity}))


def check_crops(study: StudySpec) -> None:
    """Raise `SpecError` unless the crops to upscale are of the size that members are trained at."""
    size = protocol_crops(study.evaluation.prompts).crops[0].size
    if size != study.data.resolution:
        raise SpecError(
            f"evaluation.prompts: crops of {size} pixels, and members are trained at data.resolution "
            f"{study.data.resolution}: take crops of that size."
        )


def low_resolution(study: StudySpec, store: Store) -> LowResolution | None:
    """The pairs that a study is scored on, made once; None for a study of prompts."""
    if study.data.degradation is None:
        return None
    protocol, degradation = study.evaluation.prompts, study.data.degradation
    key = crops_as_prompts(protocol, degradation).promptset.digest_of_prompts
    return write_lowres(protocol_crops(protocol), degradation, store.path / "pairs" / key[:16])


# --- where members start ---


def kept_starts(study: StudySpec, store: Store) -> Starts:
    """The checkpoint that each member starts from at each seed, copied into the store; none without `start_from`.

    It is the final one of the member of that name and seed in the store that `start_from` names.

    Raises `SpecError` where there is no such member, `StoreError` where its training has not ended.
    """
    if study.start_from is None:
        return {}
    wanted = [(model.name, seed) for model in study.members for seed in study.seeds]
    known = starts_in(store)
    if all(key in known for key in wanted):
        return {key: known[key] for key in wanted}
    base, found = Store(study.start_from), {}
    runs = {(run["member"], run["seed"]): run for run in base.expansion()["runs"]}
    for member, seed in wanted:
        if (member, seed) not in runs:
            raise SpecError(f"start_from: {base.path} has no member {member} of seed {seed} to start from.")
        run = runs[member, seed]
        saved = state.checkpoints(base.path / "checkpoints" / run["digest"])
        if not saved or int(saved[-1].name) < run["images"]:
            raise StoreError(f"{base.path}: training of {member} is not finished. `isocost train` goes on.")
        found[member, seed] = _copied(Checkpoint.load(saved[-1]), store)
        _copy_undistilled(found[member, seed], base, store)
    rows = [{"member": member, "seed": seed, **ref.model_dump()} for (member, seed), ref in found.items()]
    store.write_expansion(starts=rows)
    return found


def _copy_undistilled(start: CheckpointRef, base: Store, store: Store) -> None:
    """Of a start that was distilled itself: what it was before, from among the starts that its own study kept."""
    root = undistilled_ref(Checkpoint.load(start_folder(store.path, start)))
    if root != start:
        _copied(Checkpoint.load(start_folder(base.path, root)), store)


def undistilled_ref(checkpoint: Checkpoint) -> CheckpointRef:
    """What a line of students began from: the last that no objective of distillation had trained."""
    if checkpoint.spec.objective not in DISTILLED or checkpoint.lineage is None:
        return checkpoint.ref("ema")
    root = [ancestor for ancestor in checkpoint.lineage.ancestors if ancestor.objective not in DISTILLED][-1]
    return CheckpointRef(content_digest=root.content_digest, images_seen=root.images_seen)


def starts_in(store: Store) -> Starts:
    """Those that a store has."""
    rows = store.expansion()["starts"]
    return {
        (row["member"], row["seed"]): CheckpointRef(
            content_digest=row["content_digest"], weights=row["weights"], images_seen=row["images_seen"]
        )
        for row in rows
    }


def start_folder(store: Path, ref: CheckpointRef) -> Path:
    """Where a store keeps a checkpoint that members start from."""
    return store / "starts" / ref.content_digest


def _copied(checkpoint: Checkpoint, store: Store) -> CheckpointRef:
    """A checkpoint's EMA weights and what they are, kept in the store."""
    checkpoint.verify(EMA)
    ref = checkpoint.ref("ema")
    folder = start_folder(store.path, ref)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name in ("state.json", "spec.yaml", EMA):
            shutil.copy(checkpoint.folder / name, temporary / name)
        temporary.rename(folder)
    return ref
