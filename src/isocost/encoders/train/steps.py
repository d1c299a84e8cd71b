"""The loop that trains every encoder, and the states from which it goes on after a stop.

WORK/metrics.jsonl                  a line a step: images_seen, loss, lr, seconds (see `isocost.runlog`)
WORK/state-000003200.safetensors    at so many images seen: weights, buffers, moments of the optimizer, generators
WORK/state.json                     which of these counts, its sha256, and what it is a state of
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from isocost.encoders.inputs import resize
from isocost.encoders.weights import quiet_random
from isocost.errors import DataError, TrainingError
from isocost.files import atomic_write, file_digest
from isocost.optim import MuonAdamW, load_moments, moments
from isocost.processes import stop_signals
from isocost.runlog import Log
from isocost.specs import digest_of

Images = Callable[[range], np.ndarray]
"""Training images number start..stop-1 as uint8 [N, H, W, 3]; numbers run on without end, the caller wraps or draws."""
Captions = Callable[[range], list[str]]
"""The captions of the images of the same numbers."""
Attributes = Callable[[range], list[dict]]
"""The attributes of the images of the same numbers: name -> value, those it has."""
Tell = Callable[[str], None]
"""Is told a line now and then."""

SCHEMA = 1
STATE = "state.json"
STATES_A_RUN = 20
STEPS_A_LINE = 100


def silent(line: str) -> None:
    """The `Tell` that says nothing."""


def to_stderr(line: str) -> None:
    """The `Tell` of a terminal: never stdout, which may be read as JSON."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Settings:
    """What the settings of every encoder hold. images: seen in training. lr: AdamW's peak rate; muon_lr: Muon's."""

    images: int
    batch: int
    lr: float
    muon_lr: float

    @property
    def steps(self) -> int:
        return self.images // self.batch

    def numbers(self, step: int) -> range:
        """The images of a step."""
        return range(step * self.batch, (step + 1) * self.batch)


def pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 [N, H, W, 3] -> fp32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def resized(images: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 [N, H, W, 3] at `resolution`, as `ClipScorer` resizes."""
    if images.shape[1:3] == (resolution, resolution):
        return images
    smaller = resize(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255, resolution)
    return (smaller * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generator, which initialisers and dropout draw from, seeded inside and restored after."""
    with quiet_random():
        torch.manual_seed(seed)
        yield


def optimise(
    module: torch.nn.Module,
    loss: Callable[[int], torch.Tensor],
    settings: Settings,
    seed: int,
    *,
    work: Path | None = None,
    tell: Tell = silent,
    generators: tuple[torch.Generator, ...] = (),
) -> None:
    """AdamW, and Muon for hidden matrices; linear warm-up over 5% of the steps, cosine to 0; gradients clipped to 1.

    loss: of a step's number; it may draw from torch's global generator, and from `generators`.
    work: a folder that this process holds. A state is saved there 20 times, and when SIGTERM or SIGINT stops the
    training with `SystemExit`; to call again goes on from it, to the same bits. None: nothing outlives this call.

    Raises `TrainingError` where the loss stops being finite, or the state cannot be saved.
    """
    module.train()
    optimizer = _optimizer(module, settings)
    plan = digest_of([type(settings).__name__, asdict(settings), seed])
    with _folder(work) as place, stop_signals() as stop:
        states = _States(Path(place), plan, module, optimizer, (torch.default_generator, *generators))
        done = states.restore()
        log = Log(states.work, done * settings.batch)
        try:
            clock = time.monotonic() - log.seconds
            for step in range(done, settings.steps):
                line = _step(step, module, optimizer, loss, settings)
                line["seconds"] = round(time.monotonic() - clock, 3)
                log.write(line)
                last = step + 1 == settings.steps
                if last or (step + 1) % STEPS_A_LINE == 0:
                    tell(f"step {step + 1}/{settings.steps} loss {line['loss']:.4f} {line['seconds']:.0f} s")
                if stop or last or (step + 1) % max(1, settings.steps // STATES_A_RUN) == 0:
                    log.sync()
                    states.save(step + 1, settings.batch)
                if stop and not last:
                    raise SystemExit(128 + stop[0])
        finally:
            log.close()
    module.eval()


def _folder(work: Path | None) -> AbstractContextManager[Path | str]:
    return tempfile.TemporaryDirectory() if work is None else nullcontext(work)


def _step(
    step: int,
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], torch.Tensor],
    settings: Settings,
) -> dict[str, float]:
    """One step of the optimizer; its line of the log."""
    warmup = max(1, settings.steps // 20)
    share = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / settings.steps)))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * share
    value = loss(step)
    if not torch.isfinite(value):
        raise TrainingError(f"training an encoder: loss is {value.item()} at step {step}; lower lr={settings.lr}.")
    module.zero_grad(set_to_none=True)
    value.backward()
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return {"images_seen": (step + 1) * settings.batch, "loss": value.item(), "lr": share * settings.lr}


def _optimizer(module: torch.nn.Module, settings: Settings) -> MuonAdamW:
    hidden = {name for name, weight in module.named_parameters() if _is_hidden_matrix(name, weight)}
    return MuonAdamW(
        [weight for name, weight in module.named_parameters() if name in hidden],
        [weight for name, weight in module.named_parameters() if name not in hidden],
        muon_lr=settings.muon_lr,
        lr=settings.lr,
        betas=(0.9, 0.99),
        weight_decay=0.01,
    )


def _is_hidden_matrix(name: str, weight: torch.nn.Parameter) -> bool:
    """A convolution between features or a matrix of a transformer's layer, but nothing next to pixels or tokens."""
    return (weight.ndim == 4 and min(weight.shape[:2]) > 3) or (weight.ndim == 2 and ".layers." in name)


@dataclass(frozen=True)
class _States:
    """The states of one training. plan: digest of what, by the same code, makes it this training and no other."""

    work: Path
    plan: str
    module: torch.nn.Module
    optimizer: torch.optim.Optimizer
    generators: tuple[torch.Generator, ...]

    def save(self, step: int, batch: int) -> None:
        """Keep the state after `step` steps instead of the one before, which stays where this one cannot be written."""
        path = self.work / f"state-{step * batch:09d}.safetensors"
        try:
            with atomic_write(path) as file:
                file.write(save(self._tensors()))
            kept = {"schema": SCHEMA, "plan": self.plan, "step": step, "file": path.name, "sha256": file_digest(path)}
            with atomic_write(self.work / STATE) as file:
                file.write(json.dumps(kept, indent=1).encode())
        except OSError as error:
            raise TrainingError(
                f"{path}: the state could not be saved: {error}. The one before is untouched: make room, and run the "
                "same command again."
            ) from None
        for other in self.work.glob("state-*.safetensors"):
            if other != path:
                other.unlink()

    def restore(self) -> int:
        """Put the kept state back: after how many steps it was; 0 where there is none.

        One that is damaged, or of another plan, is passed over with a warning.
        """
        if not (self.work / STATE).is_file():
            return 0
        try:
            step, tensors = self._read()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError, DataError) as error:
            warnings.warn(f"{self.work}: training begins again: the state there is unusable: {error}", stacklevel=2)
            return 0
        of_module = {name: tensors[f"module.{name}"] for name in self.module.state_dict()}
        self.module.load_state_dict(of_module)
        load_moments(self.module, self.optimizer, tensors)
        for number, generator in enumerate(self.generators):
            generator.set_state(tensors[f"generator.{number}"])
        return step

    def _read(self) -> tuple[int, dict[str, torch.Tensor]]:
        kept = json.loads((self.work / STATE).read_bytes())
        path = self.work / kept["file"]
        if (kept["schema"], kept["plan"]) != (SCHEMA, self.plan):
            raise DataError("it is of other settings")
        if file_digest(path) != kept["sha256"]:
            raise DataError(f"{path.name} is damaged")
        return int(kept["step"]), load_file(path)

    def _tensors(self) -> dict[str, torch.Tensor]:
        of_module = {f"module.{name}": value.detach().contiguous() for name, value in self.module.state_dict().items()}
        random = {f"generator.{number}": generator.get_state() for number, generator in enumerate(self.generators)}
        return of_module | moments(self.module, self.optimizer) | random
