"""What a run leaves on disk: checkpoints, each a folder that appears whole or not at all, and the log.

FOLDER/spec.yaml
FOLDER/metrics.jsonl                one line a step: images_seen, loss, lr, grad_norm, seconds (of training, so far)
FOLDER/checkpoints/000128000/       images seen
    ema.safetensors                 weights to sample from
    raw.safetensors                 weights being trained       \\ a checkpoint is full, and can be
    optimizer.safetensors           AdamW's moments             / resumed from, while it has these
    state.json                      spec digest, images seen, sha256 of each file, versions
    spec.yaml
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isocost import __version__, specs
from isocost.errors import DataError, SpecError, TrainingError
from isocost.files import atomic_write, file_digest, sync_folder
from isocost.models.build import build
from isocost.specs import CheckpointRef, TrainSpec
from isocost.training.ema import Average

SCHEMA = 1
EMA, RAW, OPTIMIZER = "ema.safetensors", "raw.safetensors", "optimizer.safetensors"
PARTS = ("step", "exp_avg", "exp_avg_sq", "momentum")  # what AdamW, or Muon, keeps of a parameter
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
            raise DataError(f"{path}: damaged: {error!r}") from None
        except SpecError as error:
            raise DataError(str(error)) from None

    @property
    def full(self) -> bool:
        """Whether training can go on from here: raw weights and optimizer state were not removed."""
        return (self.folder / RAW).is_file() and (self.folder / OPTIMIZER).is_file()

    def verify(self) -> None:
        """Compare every file that is there, and the EMA weights in any case, with its digest. Raises `DataError`."""
        for name, digest in self.digests.items():
            path = self.folder / name
            if name == EMA or path.is_file():
                self._require(path, digest)

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
        _load_moments(state, self._tensors(OPTIMIZER))
        state.images_seen = self.images_seen

    def _tensors(self, name: str) -> dict[str, Tensor]:
        self._require(self.folder / name, self.digests[name])
        try:
            return load_file(self.folder / name)
        except SafetensorError as error:
            raise DataError(f"{self.folder / name}: damaged: {error}") from None

    def _require(self, path: Path, digest: str) -> None:
        if not path.is_file():
            raise DataError(f"{path}: missing: only the EMA weights of an earlier checkpoint are kept")
        if file_digest(path) != digest:
            raise DataError(f"{path}: damaged: its bytes are not those that were saved")


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
        _replace_folder(temporary, final)
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
    for name, tensors in ((EMA, raw | average), (RAW, raw), (OPTIMIZER, _moments(state))):
        save_file(tensors, folder / name)
        _sync_file(folder / name)
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
    _sync_file(folder / "state.json")
    _sync_file(folder / "spec.yaml")
    sync_folder(folder)


def _replace_folder(temporary: Path, final: Path) -> None:
    """Rename; what lay there (a damaged checkpoint, or one stripped to EMA weights) goes when its successor stands."""
    old = final.with_name(f".{final.name}.old.tmp")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(temporary, final)
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _moments(state: TrainState) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, so that it does not depend on the order of parameters."""
    return {
        f"{name}.{part}": tensor.detach().cpu().contiguous()
        for name, parameter in state.module.named_parameters()
        for part, tensor in state.optimizer.state[parameter].items()
    }


def _load_moments(state: TrainState, tensors: dict[str, Tensor]) -> None:
    for name, parameter in state.module.named_parameters():
        of_this = {part: tensors[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in tensors}
        step_device = parameter.device if state.optimizer.defaults.get("fused") else torch.device("cpu")
        state.optimizer.state[parameter] = {
            # Averages in the parameter's own memory layout, as the optimizer would have made them.
            part: tensor.to(step_device) if part == "step" else torch.empty_like(parameter).copy_(tensor).detach()
            for part, tensor in of_this.items()
        }


def _load_module(module: nn.Module, weights: dict[str, Tensor], folder: Path, assign: bool = False) -> None:
    try:
        module.load_state_dict(weights, assign=assign)
    except RuntimeError as error:
        raise DataError(f"{folder}: the weights do not fit the model: {' '.join(str(error).split())[:300]}") from None


# ------------------------------------------------------------------------------------------------------ a run's folder


def checkpoints(run: Path) -> list[Path]:
    """Folders of a run's checkpoints, by images seen."""
    return sorted(path for path in (run / "checkpoints").glob("[0-9]*") if path.is_dir())


def intact(run: Path, full: bool = True) -> Iterator[Checkpoint]:
    """A run's checkpoints that can be resumed from, newest first; a damaged one is passed over with a warning."""
    for folder in reversed(checkpoints(run)):
        try:
            checkpoint = Checkpoint.load(folder)
            if checkpoint.full or not full:
                checkpoint.verify()
                yield checkpoint
        except DataError as error:
            warnings.warn(f"passing over a damaged checkpoint: {error}", stacklevel=2)


def retain(run: Path, keep_last: int, kept: tuple[int, ...]) -> None:
    """Keep the newest `keep_last` full states; of older ones those in `kept` lose all but EMA weights, the rest go."""
    full = [folder for folder in checkpoints(run) if (folder / OPTIMIZER).exists()]
    for folder in full[: -max(keep_last, 1)]:
        if int(folder.name) in kept:
            (folder / OPTIMIZER).unlink(missing_ok=True)
            (folder / RAW).unlink(missing_ok=True)
        else:
            doomed = folder.with_name(f".{folder.name}.old.tmp")
            os.rename(folder, doomed)  # so that a half-deleted folder is never taken for a damaged checkpoint
            shutil.rmtree(doomed)


def clean(run: Path) -> None:
    """Remove what a killed run left half done."""
    for path in (run / "checkpoints").glob(".*.tmp"):
        shutil.rmtree(path)


class Log:
    """metrics.jsonl, open for appending."""

    def __init__(self, run: Path, images_seen: int):
        """Lines past `images_seen` are cut off: the run that resumes there writes them again."""
        self._path = run / "metrics.jsonl"
        lines = [line for line in read_log(run) if line["images_seen"] <= images_seen]
        with atomic_write(self._path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self.seconds: float = lines[-1]["seconds"] if lines else 0.0
        self._file = self._path.open("ab", buffering=0)

    def write(self, line: dict[str, Any]) -> None:
        """Raises `TrainingError` when the disk is full."""
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise TrainingError(f"{self._path}: cannot be written: {error}; make room and run again") from None

    def sync(self) -> None:
        """Before a checkpoint is saved, so that no checkpoint is ahead of the log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that was cut short by a kill does not count."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise DataError(f"{path}: damaged: {error}; delete it to go on without the log so far") from None
