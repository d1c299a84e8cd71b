"""The libraries that our scores are compared with, in an environment of their own.

    python scripts/oracles.py FOLDER

makes a virtual environment in FOLDER that sees all that this interpreter sees, and has the libraries of
constraints-oracles.txt beside it, installed without their dependencies; where FOLDER is up to date, nothing is done.
Prints the path of its interpreter.
"""

from __future__ import annotations

import importlib
import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

PINNED = Path(__file__).parents[1] / "constraints-oracles.txt"
MISSING_OPERATORS = ("nms", "qnms")

_kept: list[Any] = []  # a torch.library.Library undefines its operators when it goes


def make(folder: Path) -> Path:
    """Make or update the environment; the path of its interpreter. Raises CalledProcessError where pip fails."""
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    wanted = PINNED.read_text() + "\n".join([sys.version, *site.getsitepackages()])
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    query = [str(python), "-c", "import site; print(site.getsitepackages()[0])"]
    own = Path(subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip())
    lines = [f"import site; site.addsitedir({json.dumps(path)})\n" for path in site.getsitepackages()]
    (own / "below.pth").write_text("".join(lines))
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(PINNED)]
    subprocess.run(install, check=True, stdout=sys.stderr, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    stamp.write_text(wanted)
    return python


def import_torchvision() -> None:
    """Import torchvision where its compiled part does not load, as beside a CPU torch: networks need none of it.

    Its import then fails over operators that only the compiled part defines; here they get a schema, and stay empty.
    Raises ImportError where torchvision is not installed.
    """
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in MISSING_OPERATORS:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
        importlib.import_module("torchvision")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print(make(Path(sys.argv[1]).absolute()))
