"""The site builds from pages that are all in its menu, asks no other host, and what its guides show runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from isocost import api
from isocost.cli import main
from isocost.cli.parser import app

ROOT = Path(__file__).parents[2]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
SMALL = {
    "data.resolution": 64,
    "evaluation.images": 4,
    "evaluation.references": 6,
    "engine.batch": 4,
    "grid.steps": [2],
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[list[str]]:
    """What follows `$ isocost` in a page, without what only tells a shell where the output goes."""
    whole = "".join(blocks(page, "console")).replace("\\\n", " ")
    lines = [line for line in whole.splitlines() if line.startswith("$ isocost ")]
    return [shlex.split(line.partition(" > ")[0], comments=True)[2:] for line in lines]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(arguments)
    return capsys.readouterr().out


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_command_is_one(page, tmp_path, monkeypatch):
    """Words and flags; which of them run as well, the tests below and those of single pages say."""
    monkeypatch.chdir(tmp_path)
    inline = re.findall(r"`(isocost [a-z][^`\n]*)`", PAGES[page])
    whole = [shlex.split(text)[1:] for text in inline if not re.search(r"[{|…]|\.\.\.", text)]
    for arguments in commands(page):
        app.parse_args(arguments, exit_on_error=False, print_error=False)
    for arguments in whole:
        assert arguments[0] in {name for name in app if not name.startswith("-")}, arguments


def test_the_tour(swept, tmp_path, monkeypatch, capsys):
    """On a store of one member of 256 images, which is called c8."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(swept, "runs/quickstart")
    for arguments in commands("index.md"):
        assert run([word.replace("c24", "c8") for word in arguments], capsys), arguments
    assert {"circle.png", "exported", "runs"} <= {path.name for path in tmp_path.iterdir()}
    assert Path("runs/quickstart/report.html").is_file()


def test_a_family_s_commands(tmp_path, monkeypatch, capsys, pictures):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(pictures.train[0]).parent, "shards")
    for arguments in commands("family.md"):
        if arguments != ["ladder", "sd"]:  # billions of parameters, which tests of the ladder count
            assert run(arguments, capsys), arguments


def test_which_of_my_checkpoints(tmp_path, monkeypatch, capsys, pictures):
    from tests.study.test_given import ZERO_SNR, write_folder

    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures.val[0], "shards")
    write_folder(Path("models/sd15"))
    write_folder(Path("models/small"), **ZERO_SNR)
    (study,) = blocks("which.md", "yaml")
    Path("mine.yaml").write_text(study)
    api.sweep(api.load_study("mine.yaml", SMALL), "runs/mine", workers=1)
    seconds_as_swept = [arguments for arguments in commands("which.md") if arguments[0] in ("check", "plan")]
    assert len(seconds_as_swept) == 3
    for arguments in seconds_as_swept:
        assert run(arguments, capsys), arguments


def test_the_metric_of_the_page_is_one():
    (example,) = blocks("extending.md", "python")
    exec(example, {})


def test_every_page_is_in_the_menu():
    def leaves(entry):
        return [entry] if isinstance(entry, str) else [leaf for part in entry for leaf in leaves(_below(part))]

    def _below(part):
        return next(iter(part.values())) if isinstance(part, dict) else part

    assert set(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])) == set(PAGES)


def test_the_site_builds_and_asks_no_other_host(tmp_path):
    pytest.importorskip("mkdocs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        build, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        asked = re.findall(
            r'<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*stylesheet[^>]*href="(?:https?:)?//',
            page.read_text(),
        )
        assert not asked, page
