"""What a run leaves on disk: checkpoints, each a folder that appears whole or not at all, and the log.

FOLDER/spec.yaml
FOLDER/metrics.jsonl                one line a step: images_seen, loss, lr, grad_norm, seconds (of training, so far)
FOLDER/checkpoints/000128000/       images seen
    ema.safetensors                 weights to sample from
    raw.safetensors                 weights being trained       \\ a checkpoint is full, and can be
    optimizer.safetensors           AdamW's moments             / resumed from, while it has these
    state.json                      spec digest, images seen, sha256 of each file, versions
    spec.yaml

A kill leaves no damaged checkpoint, so one that is damaged was changed from outside. What scores hang on is never
replaced behind the user's back: it is an error that names it. States that are only resumed from are passed over.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isocost import __version__, specs
from isocost.errors import DataError, SpecError, TrainingError
from isocost.files import file_digest, replace_folder
from isocost.models.build import build
from isocost.optim import load_moments, moments
from isocost.specs import CheckpointRef, TrainSpec
from isocost.training.ema import Average

SCHEMA = 1
EMA, RAW, OPTIMIZER = "ema.safetensors", "raw.safetensors", "optimizer.safetensors"
Weights = Literal["ema", "raw"]


@dataclass
class TrainState:
    """All that changes while training. Order, noise and rates are functions of `images_seen`, so they are not here."""

    module: nn.Module
    average: Average
    optimizer: torch.optim.Optimizer
    images_seen: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """One saved moment of a run. Opening it reads state.json and spec.yaml only."""

    folder: Path
    spec: TrainSpec
    images_seen: int
    digests: dict[str, str]

    @classmethod
    def load(cls, folder: str | Path) -> Checkpoint:
        """Raises `DataError` naming the file when it is not a checkpoint."""
        folder = Path(folder)
        path = folder / "state.json"
        try:
            state = json.loads(path.read_bytes())
            if state["schema"] != SCHEMA:
                raise DataError(f"{path}: schema {state['schema']}; this release reads {SCHEMA}")
            spec = specs.load(folder / "spec.yaml", TrainSpec)
            if state["spec"] != spec.digest:
                raise DataError(f"{folder}: spec.yaml is not the spec that state.json was written for")
            return cls(folder, spec, int(state["images_seen"]), dict(state["sha256"]))
        except OSError as error:
            raise DataError(f"{path}: not a checkpoint: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, repr(error)) from None
        except SpecError as error:
            raise DataError(str(error)) from None

    @property
    def full(self) -> bool:
        """Whether training can go on from here: raw weights and optimizer state were not removed."""
        return (self.folder / RAW).is_file() and (self.folder / OPTIMIZER).is_file()

    def verify(self, *names: str) -> None:
        """Compare files with their digests: those named, or the EMA weights and every other that is there.

        Raises `DataError` naming the one that is missing or damaged, and what to do.
        """
        for name in names or [name for name in self.digests if name == EMA or (self.folder / name).is_file()]:
            self._require(self.folder / name, self.digests[name])

    def weights(self, which: Weights = "ema") -> dict[str, Tensor]:
        """The state dict, fp32 on the CPU, after its digest was checked."""
        return self._tensors(f"{which}.safetensors")

    def ref(self, which: Weights = "ema") -> CheckpointRef:
        """The checkpoint by content: what a sampling plan names."""
        return CheckpointRef(
            content_digest=self.digests[f"{which}.safetensors"], weights=which, images_seen=self.images_seen
        )

    def network(self, weights: Weights = "ema", device: str | torch.device = "cpu") -> nn.Module:
        """The module with these weights, in eval mode, without gradients."""
        module = build(self.spec.model, "meta")
        _load_module(module, self.weights(weights), self.folder, assign=True)
        return module.to(device).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]

    def restore(self, state: TrainState) -> None:
        """Put a run back to where it was at this checkpoint."""
        _load_module(state.module, self._tensors(RAW), self.folder)
        state.average.load_state_dict(self._tensors(EMA))
        load_moments(state.module, state.optimizer, self._tensors(OPTIMIZER))
        state.images_seen = self.images_seen

    def _tensors(self, name: str) -> dict[str, Tensor]:
        self._require(self.folder / name, self.digests[name])
        try:
            return load_file(self.folder / name)
        except SafetensorError as error:
            raise _damaged(self.folder / name, error) from None

    def _require(self, path: Path, digest: str) -> None:
        if not path.is_file():
            raise DataError(f"{path}: missing: only the EMA weights of an earlier checkpoint are kept")
        if file_digest(path) != digest:
            raise _damaged(path, "its bytes are not those that were saved")


def _damaged(path: Path, how: object) -> DataError:
    return DataError(
        f"{path}: damaged: {how}. Copy it again from where it is whole, or delete {path.parent} and run the same "
        "command again: it is then trained anew, from the last good one."
    )


# ---------------------------------------------------------------------------------------------------------- saving


def save(state: TrainState, spec: TrainSpec, run: Path) -> Path:
    """Write a full checkpoint of `run` and return its folder. Never touches an earlier checkpoint.

    Raises `TrainingError` when it cannot be written (a full disk): nothing of it is left.
    """
    final = run / "checkpoints" / f"{state.images_seen:09d}"
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_files(state, spec, temporary)
        replace_folder(temporary, final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(
            f"{final}: the checkpoint could not be saved: {error}. Earlier checkpoints are untouched: make room, and "
            "run the same command again."
        ) from None
    return final


def _write_files(state: TrainState, spec: TrainSpec, folder: Path) -> None:
    raw = {name: tensor.detach().cpu().contiguous() for name, tensor in state.module.state_dict().items()}
    average = {name: tensor.cpu().contiguous() for name, tensor in state.average.state_dict().items()}
    digests = {}
    for name, tensors in ((EMA, raw | average), (RAW, raw), (OPTIMIZER, moments(state.module, state.optimizer))):
        save_file(tensors, folder / name)
        digests[name] = file_digest(folder / name)
    content = {
        "schema": SCHEMA,
        "spec": spec.digest,
        "images_seen": state.images_seen,
        "sha256": digests,
        "versions": {"isocost": __version__, "torch": torch.__version__},
    }
    (folder / "state.json").write_text(json.dumps(content, indent=1))
    (folder / "spec.yaml").write_text(spec.to_yaml())


def _load_module(module: nn.Module, weights: dict[str, Tensor], folder: Path, assign: bool = False) -> None:
    try:
        module.load_state_dict(weights, assign=assign)
    except RuntimeError as error:
        raise DataError(f"{folder}: the weights do not fit the model: {' '.join(str(error).split())[:300]}") from None


# ------------------------------------------------------------------------------------------------------ a run's folder


def checkpoints(run: Path) -> list[Path]:
    """Folders of a run's checkpoints, by images seen."""
    return sorted(path for path in (run / "checkpoints").glob("[0-9]*") if path.is_dir())


def intact(run: Path) -> Iterator[Checkpoint]:
    """A run's checkpoints that can be resumed from, newest first; a damaged one is passed over with a warning."""
    for folder in reversed(checkpoints(run)):
        try:
            checkpoint = Checkpoint.load(folder)
            if checkpoint.full:
                checkpoint.verify()
                yield checkpoint
        except DataError as error:
            warnings.warn(f"passing over a damaged checkpoint: {error}", stacklevel=2)


def retain(run: Path, keep_last: int, kept: tuple[int, ...]) -> None:
    """Keep the newest `keep_last` full states; of older ones those in `kept` lose all but EMA weights, the rest go."""
    full = [folder for folder in checkpoints(run) if (folder / OPTIMIZER).exists()]
    for folder in full[: -max(keep_last, 1)]:
        if int(folder.name) in kept:
            _strip(folder)
        else:
            doomed = folder.with_name(f".{folder.name}.old.tmp")
            os.rename(folder, doomed)  # so that a half-deleted folder is never taken for a damaged checkpoint
            shutil.rmtree(doomed)


def _strip(folder: Path) -> None:
    """Leave the EMA weights of a checkpoint only."""
    (folder / OPTIMIZER).unlink(missing_ok=True)
    (folder / RAW).unlink(missing_ok=True)


def adopt(run: Path, images: int, from_run: Path) -> None:
    """Take over the EMA weights of another run's checkpoint at `images` seen."""
    folder = from_run / "checkpoints" / f"{images:09d}"
    _strip(folder)
    replace_folder(folder, run / "checkpoints" / folder.name)


def clean(run: Path) -> None:
    """Remove what a killed run left half done."""
    for path in (run / "checkpoints").glob(".*.tmp"):
        shutil.rmtree(path)
