"""What docs/data.md shows can be run as it stands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from isocost.cli import main
from isocost.data.remote import is_url
from isocost.data.shards import write_shards
from isocost.recipes import recipe
from isocost.specs import FILTER_FIELDS, DataSource

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")


@pytest.fixture
def places(pictures, tmp_path, monkeypatch):
    """`shards`, and `my.yaml`, a study of them; the working directory is where they lie."""
    images = sorted(Path(pictures.train[0]).glob("*.png"))
    samples = [
        {
            "__key__": path.stem,
            "png": path.read_bytes(),
            "txt": path.with_suffix(".txt").read_text(),
            "json": json.dumps({"score": place / 2}),
        }
        for place, path in enumerate(images)
    ]
    write_shards(samples, tmp_path / "shards", "x", per_shard=10)
    study = recipe("quickstart").model_dump(mode="json")
    study["data"] |= {"kind": "images", "images": None, "train": ["shards"], "val": ["shards"], "resolution": 32}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run(places, capsys):
    commands = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 7
    for line in commands:
        prompt, program, *arguments = shlex.split(line)
        assert (prompt, program) == ("$", "isocost")
        main(arguments)
        assert capsys.readouterr().out
    assert json.loads(next((places / "runs").glob("mine/data/*/header.json")).read_text())["images"] == 24


def test_the_filters_of_the_page_are_a_studys():
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    source = DataSource.parse({"kind": "images", "train": ["shards"], **yaml.safe_load(block)["data"]})
    assert [rule.field for rule in source.filters] == ["caption_words", "shorter_side", "json.aesthetic"]
    assert all(f"`{field}`" in PAGE for field in FILTER_FIELDS)


def test_places_that_the_page_calls_urls_are():
    assert all(is_url(place) for place in re.findall(r"`(\w+://[^`]*)`", PAGE))
