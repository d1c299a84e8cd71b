"""What a run leaves on disk: checkpoints, each a folder that appears whole or not at all, and the log.

FOLDER/spec.yaml
FOLDER/metrics.jsonl                one line a step: images_seen, loss, lr, grad_norm, seconds (of training), ...
FOLDER/sessions.jsonl               one line each time that training began or went on: ranks, threads, layout, versions
FOLDER/checkpoints/000128000/       images seen
    ema.safetensors                 weights to sample from
    raw.safetensors                 weights being trained       \\ a checkpoint is full, and can be
    optimizer.safetensors           AdamW's moments             / resumed from, while it has these
    adapters.safetensors            of a run with LoRA, which are merged in ema.safetensors: averaged, by layer
    shards/                         instead of the last two, of a sharded run: a safetensors file a rank, as
                                    torch.distributed.checkpoint writes them; any number of ranks can resume
    state.json                      spec digest, images seen, sha256 of each file, versions, what it came from
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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isocost import __version__, specs
from isocost.diffusion.denoiser import Network
from isocost.dtensors import like, whole
from isocost.errors import DataError, SpecError, TrainingError
from isocost.files import file_digest, replace_folder
from isocost.models.build import build
from isocost.optim import PARTS, empty_moment, load_moments, moments
from isocost.specs import CheckpointRef, TrainSpec
from isocost.training import lora
from isocost.training.ema import Average
from isocost.training.objectives import Networks
from isocost.training.parallel import ALONE, Ranks, is_sharded

SCHEMA = 1
EMA, RAW, OPTIMIZER = "ema.safetensors", "raw.safetensors", "optimizer.safetensors"
ADAPTERS = "adapters.safetensors"
SHARDS = "shards"
Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Ancestor:
    """A checkpoint that another one started or learned from, and what its own run took up to then."""

    content_digest: str
    images_seen: int
    member: str
    objective: str
    train_gflops: float


@dataclass(frozen=True)
class Lineage:
    """Of a run that others came before: its own training of an image, and its ancestors, the oldest first."""

    gflops_per_image: float
    ancestors: tuple[Ancestor, ...]


@dataclass
class TrainState:
    """All that changes while training. Order, noise and rates are functions of `images_seen`, so they are not here.

    network: the forward pass of `module`, which has the weights. networks: of a distillation, `network` among them.
    """

    module: nn.Module
    network: Network
    average: Average
    optimizer: torch.optim.Optimizer
    images_seen: int = 0
    networks: Networks | None = None
    lineage: Lineage | None = None


@dataclass(frozen=True)
class Checkpoint:
    """One saved moment of a run. Opening it reads state.json and spec.yaml only.

    lineage: None of a run that began from nothing, or before this was kept.
    """

    folder: Path
    spec: TrainSpec
    images_seen: int
    digests: dict[str, str]
    lineage: Lineage | None = None

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
            return cls(folder, spec, int(state["images_seen"]), dict(state["sha256"]), _lineage(state.get("lineage")))
        except OSError as error:
            raise DataError(f"{path}: not a checkpoint: {error.strerror or error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, repr(error)) from None
        except SpecError as error:
            raise DataError(str(error)) from None

    @property
    def full(self) -> bool:
        """Whether training can go on from here: raw weights and optimizer state were not removed."""
        return all((self.folder / name).is_file() for name in self.digests)

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
        """Put a run back to where it was at this checkpoint, however many ranks saved it. All ranks have to ask.

        Shards are taken as they are: `verify` has read them.
        """
        state.average.load_state_dict(self._averages())
        if RAW in self.digests:
            own, raw = state.module.state_dict(), self._tensors(RAW)
            raw = {name: like(own[name], tensor) if name in own else tensor for name, tensor in raw.items()}
            _load_module(state.module, raw, self.folder)
            load_moments(state.module, state.optimizer, self._tensors(OPTIMIZER))
        else:
            _load_shards(state, self.folder / SHARDS)
        state.images_seen = self.images_seen

    def _averages(self) -> dict[str, Tensor]:
        """By parameter of the trained module. With LoRA, the weights beside the adapters are as they ever were."""
        if self.spec.lora is None:
            return self._tensors(EMA)
        adapters = {lora.inner_name(name): tensor for name, tensor in self.adapters().items()}
        return self._tensors(RAW) | adapters

    def adapters(self) -> dict[str, Tensor]:
        """Of a run with LoRA, averaged, by layer: `LAYER.lora_A.weight` [r, in], `LAYER.lora_B.weight` [out, r]."""
        return self._tensors(ADAPTERS)

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


def _lineage(fields: dict[str, Any] | None) -> Lineage | None:
    if fields is None:
        return None
    return Lineage(fields["gflops_per_image"], tuple(Ancestor(**ancestor) for ancestor in fields["ancestors"]))


def _damaged(path: Path, how: object) -> DataError:
    return DataError(
        f"{path}: damaged: {how}. Copy it again from where it is whole, or delete {path.parent} and run the same "
        "command again: it is then trained anew, from the last good one."
    )


# ---------------------------------------------------------------------------------------------------------- saving


def save(state: TrainState, spec: TrainSpec, run: Path, ranks: Ranks = ALONE) -> Path:
    """Write a full checkpoint of `run` and return its folder. As `Saving`, but at once."""
    return Saving(state, spec, run, ranks).finish()


class Saving:
    """A full checkpoint on its way to the disk: nothing shows before `finish`, and no earlier one is ever touched.

    Whole tensors are written by rank 0, shards by the ranks that have them. Every rank makes a `Saving`, and finishes
    it. `aside`: the state is copied first, so that it may change while its copy is written.
    """

    def __init__(self, state: TrainState, spec: TrainSpec, run: Path, ranks: Ranks = ALONE, aside: bool = False):
        self.final = run / "checkpoints" / f"{state.images_seen:09d}"
        self._temporary = self.final.with_name(f".{self.final.name}.tmp")
        self._spec, self._images_seen, self._ranks = spec, state.images_seen, ranks
        self._lineage = state.lineage
        ranks.first(self._make_folder)
        files, shards = self._files(state, aside), None
        if is_sharded(state.module):
            import torch.distributed.checkpoint as dcp
            from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

            # Copies of shards are made even when we wait for them: it is the same call, and they are small.
            shards = dcp.async_save(  # pyright: ignore[reportPrivateImportUsage]
                _resumable(state),
                storage_writer=HuggingFaceStorageWriter(str(self._temporary / SHARDS), save_distributed=True),
                process_group=ranks.background if aside else None,
            )
        writer = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._writing: Future = writer.submit(self._write, files, shards)
        writer.shutdown(wait=False)

    @property
    def written(self) -> bool:
        """Whether `finish` would not wait for this rank's disk."""
        return self._writing.done()

    def finish(self) -> Path:
        """Wait until all is written, and let the checkpoint appear.

        Raises `TrainingError`, on every rank, when a rank could not write (a full disk): nothing of it is left.
        """
        try:
            mine = self._ranks.together(self._wait)
            digests = {name: digest for part in self._ranks.gather(mine) for name, digest in part.items()}
            self._ranks.first(lambda: self._appear(digests))
        except TrainingError:
            if self._ranks.leads:
                shutil.rmtree(self._temporary, ignore_errors=True)
            raise
        return self.final

    def _files(self, state: TrainState, aside: bool) -> dict[str, dict[str, Tensor]]:
        """Whole tensors by file, on rank 0, on the CPU. Averages are gathered from all ranks."""
        own, average = state.module.state_dict(), state.average.state_dict()
        averaged = {name: tensor for name, tensor in own.items() if name not in average} | average
        files = {EMA: averaged}
        if self._spec.lora is not None:
            files = {EMA: lora.merged(averaged, self._spec.lora), ADAPTERS: lora.adapters_of(averaged)}
        if not is_sharded(state.module):
            files |= {RAW: own, OPTIMIZER: moments(state.module, state.optimizer)}
        kept: dict[str, dict[str, Tensor]] = {}
        for file, tensors in files.items():
            for name, tensor in tensors.items():
                full = whole(tensor)
                if self._ranks.leads:
                    kept.setdefault(file, {})[name] = full.detach().to("cpu", copy=aside).contiguous()
        return kept

    def _write(self, files: dict[str, dict[str, Tensor]], shards: Any) -> dict[str, str]:
        """Files that this rank wrote, with their digests."""
        for name, tensors in files.items():
            save_file(tensors, self._temporary / name)
        written = [self._temporary / name for name in files]
        if shards is not None:
            shards.result()
            written += (self._temporary / SHARDS).glob(f"shard-{self._ranks.rank + 1:05d}-*")
        return {path.relative_to(self._temporary).as_posix(): file_digest(path) for path in written}

    def _wait(self) -> dict[str, str]:
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            return self._writing.result()
        except (OSError, SafetensorError) as error:
            raise self._failed(error) from None
        except CheckpointException as error:
            if self._ranks.rank in error.failures:
                raise self._failed(error.failures[self._ranks.rank][0]) from None
            return {}  # the rank that failed says so

    def _make_folder(self) -> None:
        try:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.mkdir(parents=True)
        except OSError as error:
            raise self._failed(error) from None

    def _appear(self, digests: dict[str, str]) -> None:
        content = {
            "schema": SCHEMA,
            "spec": self._spec.digest,
            "images_seen": self._images_seen,
            "sha256": digests,
            "versions": {"isocost": __version__, "torch": torch.__version__},
        } | ({"lineage": asdict(self._lineage)} if self._lineage else {})
        try:
            (self._temporary / "state.json").write_text(json.dumps(content, indent=1))
            (self._temporary / "spec.yaml").write_text(self._spec.to_yaml())
            replace_folder(self._temporary, self.final)
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: BaseException) -> TrainingError:
        return TrainingError(
            f"{self.final}: the checkpoint could not be saved: {error}. Earlier checkpoints are untouched: make room, "
            "and run the same command again."
        )


def _resumable(state: TrainState) -> dict[str, Any]:
    """What shards hold, each the very tensor: trained weights and the optimizer's state."""
    found: dict[str, Any] = {f"raw.{name}": tensor for name, tensor in state.module.state_dict().items()}
    for name, parameter in state.module.named_parameters():
        of_this = state.optimizer.state[parameter]
        found |= {f"optimizer.{name}.{part}": tensor for part, tensor in of_this.items()}
    return found


def _load_shards(state: TrainState, folder: Path) -> None:
    """Each rank reads what it needs of the shards, whatever ranks wrote them."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    reader = HuggingFaceStorageReader(str(folder))
    saved = reader.read_metadata().state_dict_metadata
    for name, parameter in state.module.named_parameters():
        parts = [part for part in PARTS if f"optimizer.{name}.{part}" in saved]
        state.optimizer.state[parameter] = {part: empty_moment(parameter, part, state.optimizer) for part in parts}
    alone = not is_sharded(state.module)
    try:
        with warnings.catch_warnings(action="ignore"):  # of a process that reads alone
            reads = {"storage_reader": reader, "no_dist": alone}
            dcp.load(_resumable(state), **reads)  # pyright: ignore[reportPrivateImportUsage]
    except CheckpointException as error:
        raise _damaged(folder, next(iter(error.failures.values()))[0]) from None


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
    full = [folder for folder in checkpoints(run) if (folder / OPTIMIZER).exists() or (folder / SHARDS).exists()]
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
    shutil.rmtree(folder / SHARDS, ignore_errors=True)


def adopt(run: Path, images: int, from_run: Path) -> None:
    """Take over the EMA weights of another run's checkpoint at `images` seen."""
    folder = from_run / "checkpoints" / f"{images:09d}"
    _strip(folder)
    replace_folder(folder, run / "checkpoints" / folder.name)


def clean(run: Path) -> None:
    """Remove what a killed run left half done."""
    for path in (run / "checkpoints").glob(".*.tmp"):
        shutil.rmtree(path)
