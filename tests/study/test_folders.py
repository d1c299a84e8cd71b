from __future__ import annotations

import json
from pathlib import Path

import pytest

from isocost.errors import DataError
from isocost.study.folders import stores_in


def made(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "study.yaml").write_text("name: x\n")


def test_a_folder_of_stores_stands_for_them_in_the_papers_order(tmp_path):
    made(tmp_path / "b", tmp_path / "a", tmp_path / "sweep")
    (tmp_path / "figures").mkdir()
    assert list(stores_in([tmp_path])) == ["a", "b", "sweep"]
    stages = [{"name": "sweep"}, {"name": "not begun"}, {"name": "b", "members": 5}]
    (tmp_path / "paper.json").write_text(json.dumps({"stages": stages}))
    assert stores_in([tmp_path]) == {name: tmp_path / name for name in ("sweep", "b", "a")}


def test_stores_and_what_was_published_of_one(tmp_path):
    made(tmp_path / "one" / "sweep", tmp_path / "two" / "sweep", tmp_path / "sr")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "cells.json").write_text("[]")
    found = stores_in([tmp_path / "sr", tmp_path / "one" / "sweep", tmp_path / "two", tmp_path / "old"])
    alike = [str(tmp_path / one / "sweep") for one in ("one", "two")]
    assert list(found) == ["sr", *alike, "old"]


def test_a_folder_of_neither_is_left_to_who_reads_it(tmp_path):
    assert stores_in([tmp_path]) == {tmp_path.name: tmp_path}
    assert stores_in([tmp_path / "absent"]) == {"absent": tmp_path / "absent"}


@pytest.mark.parametrize("text", ["{", "{}", '{"stages": ["sweep"]}'])
def test_a_paper_that_lists_no_stages(tmp_path, text):
    made(tmp_path / "sweep")
    (tmp_path / "paper.json").write_text(text)
    with pytest.raises(DataError, match=r"paper\.json: lists no stages by name"):
        stores_in([tmp_path])
