"""`scripts/oracles.py` without the libraries: what it pins, and a torchvision whose compiled part does not load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {package.lower(): version for package, _, version in (line.partition("==") for line in lines)}


def test_all_versions_are_pinned_and_none_is_another_than_ours():
    ours, theirs = pins("constraints.txt"), pins("constraints-oracles.txt")
    assert all(theirs.values())
    assert {name: version for name, version in theirs.items() if ours.get(name, version) != version} == {}
    assert tuple(map(int, theirs["scipy"].split(".")[:2])) < (1, 18)  # the last that knows sqrtm(disp=)


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    paths = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT / 'scripts')!r}]; import oracles; "
    return subprocess.run([sys.executable, "-c", paths + code], capture_output=True, text=True, check=False)


def test_a_torchvision_without_its_operators_is_imported(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "import torch\n"
        "@torch.library.register_fake('torchvision::nms')\n"
        "def nms(dets, scores, iou_threshold): return dets\n"
        "version = 'whole'\n"
    )
    assert "torchvision::nms" in run(tmp_path, "import torchvision").stderr
    done = run(tmp_path, "oracles.import_torchvision(); import torchvision; print(torchvision.version)")
    assert (done.stdout.strip(), done.returncode) == ("whole", 0), done.stderr


def test_other_errors_of_torchvision_are_not_hidden(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('broken')")
    assert "RuntimeError: broken" in run(tmp_path, "oracles.import_torchvision()").stderr
