"""What docs/scores.md shows can be run as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tests.scoring.pictures import pictures, write_folder

from isocost.cli import main
from isocost.scoring.extractors import EXTRACTORS
from isocost.scoring.measures import ALIASES
from isocost.scoring.metrics import METRICS
from isocost.scoring.protocols import PROTOCOLS

PAGE = (Path(__file__).parents[1] / "docs" / "scores.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    captions = [f"a picture of colour {index}" for index in range(30)]
    for seed, name in enumerate(("mine", "other", "real")):
        write_folder(tmp_path / name, pictures(30, seed, size=32), captions)
    monkeypatch.chdir(tmp_path)


def test_the_commands_run(folders, capsys):
    for block in blocks("console"):
        for line in block.splitlines():
            prompt, _, command = line.partition(" ")
            assert prompt == "$"
            program, *arguments = shlex.split(command, comments=True)
            assert program == "isocost"
            main(arguments)
            assert capsys.readouterr().out


def test_the_python_runs(folders):
    (block,) = blocks("python")
    exec(block, {})


def test_every_metric_extractor_and_protocol_is_described():
    for name in (*METRICS, *ALIASES, *EXTRACTORS, *PROTOCOLS):
        assert f"`{name}`" in PAGE or name in ("psnr-y", "ssim-y", "scenes-attributes"), name
