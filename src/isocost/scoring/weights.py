"""Single files of weights, as the authors of a metric published them: where they are looked for, which bytes they must
have, and how they are read. No pickled code is run, and no network is left with a weight that no file gave it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from isocost.encoders.weights import read_weights
from isocost.errors import DataError
from isocost.files import file_digest

FOLDER = Path("~/.cache/isocost/weights")
COUNTER = "num_batches_tracked"  # of batch norms: not a weight, and missing from some files


@dataclass(frozen=True)
class Published:
    """A file of weights. `names`: those it goes by; `sha256`: of its bytes; `url`: where its authors publish it."""

    names: tuple[str, ...]
    sha256: str
    url: str

    @property
    def command(self) -> str:
        """The shell's command that puts the file where it is looked for."""
        return f"curl -L --create-dirs -o {FOLDER / self.names[0]} {self.url}"

    def find(self) -> Path | None:
        """The file under one of its names (or as .safetensors) in the first of `folders()` that has it."""
        names = [*self.names, *(Path(name).with_suffix(".safetensors").name for name in self.names)]
        places = [folder / name for folder in folders() for name in names]
        return next((place for place in places if place.is_file()), None)

    def locate(self, path: str | Path | None = None) -> Path:
        """`path` where given, else what `find` finds. Raises `DataError` that says what to provide."""
        place = self.find() if path is None else Path(path).expanduser()
        if place is None:
            looked = ", ".join(map(str, folders()))
            raise DataError(f"{self.names[0]}: not found in {looked}. Give its path, or: {self.command}")
        if not place.is_file():
            raise DataError(f"{place}: no such file of weights. Give its path, or: {self.command}")
        return place

    def read(self, path: str | Path | None = None) -> tuple[Path, dict[str, torch.Tensor]]:
        """Where the file lies, and its tensors.

        A file of a published name must have the published bytes; under another name it may hold any weights that fit.
        """
        place = self.locate(path)
        if place.name in self.names and (found := file_digest(place)) != self.sha256:
            raise DataError(f"{place}: not what is published under this name ({found[:12]}, not {self.sha256[:12]}).")
        return place, read_state_dict(place)


def folders() -> list[Path]:
    """Where weights are looked for, in order: $ISOCOST_WEIGHTS, the user's cache, torch hub's checkpoints."""
    named = os.environ.get("ISOCOST_WEIGHTS")
    return [
        *([Path(named).expanduser()] if named else []),
        FOLDER.expanduser(),
        Path(torch.hub.get_dir()) / "checkpoints",
    ]


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, floats as fp32, of a .safetensors file or of one that `torch.save` wrote. Raises `DataError`."""
    if path.suffix == ".safetensors":
        return read_weights(path)
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes `torch.load` raise almost anything
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not a file of weights that is safe to read ({reason}); fetch it again.") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise DataError(f"{path}: holds something else than tensors by name.")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def fill(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], where: Path) -> None:
    """Give every weight of a module that was made on the `meta` device its tensor: by name, none missing, none left.

    Raises `DataError` naming the file and the first tensor that is missing, of another shape, or unknown.
    """
    expected = {name: value for name, value in module.state_dict().items() if not name.endswith(COUNTER)}
    given = {name: value for name, value in tensors.items() if not name.endswith(COUNTER)}
    for name, value in expected.items():
        if name not in given:
            raise DataError(f"{where}: lacks '{name}': these are not this network's weights.")
        if given[name].shape != value.shape:
            raise DataError(f"{where}: '{name}' is {list(given[name].shape)}, not {list(value.shape)}.")
    if unknown := sorted(given.keys() - expected.keys()):
        raise DataError(f"{where}: '{unknown[0]}' is no weight of this network.")
    module.load_state_dict(given, strict=False, assign=True)
    module.eval().requires_grad_(False)
