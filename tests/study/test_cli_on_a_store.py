"""Commands that read a swept store, as a user runs them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isocost.cli import main
from isocost.study import upkeep


def out(capsys, *arguments: str) -> str:
    main(list(arguments))
    return capsys.readouterr().out


def test_plan_answers_in_a_sentence_and_as_json(swept, capsys):
    assert "c8" in out(capsys, "plan", str(swept), "--budget", "3")
    found = json.loads(out(capsys, "plan", str(swept), "--budget", "3", "--json"))
    assert found["cell"]["member"] == "c8" and found["cell"]["split"] == "report"
    assert found["cost"]["paper"] <= 3


def test_plan_below_the_cheapest_cell_says_what_that_costs(swept, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["plan", str(swept), "--budget", "0.0001"])
    assert "cheapest" in capsys.readouterr().err


@pytest.mark.parametrize("unit", ["paper", "gflops", "seconds"])
def test_the_frontier_is_printed_without_a_budget(swept, capsys, unit):
    shown = out(capsys, "plan", str(swept), "--unit", unit)
    assert "frontier" in shown and "c8" in shown


def test_status(swept, capsys):
    shown = out(capsys, "status", str(swept))
    assert "cells scored: 5 of 5" in shown and shown.splitlines()[-1] == "finished"


def test_sample_is_a_function_of_prompt_and_replicate(swept, capsys, tmp_path):
    for name, replicate in (("a", 0), ("b", 0), ("c", 1)):
        path = tmp_path / f"{name}.png"
        arguments = ["--prompt", "two red stars", "--steps", "2", "--replicate", str(replicate), "--out", str(path)]
        out(capsys, "sample", str(swept), *arguments)
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert a.shape == (32, 32, 3)
    assert (a == b).all() and (a != c).any()


def test_sample_of_a_member_that_is_not_there(swept, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["sample", str(swept), "--member", "c9", "--prompt", "x"])
    assert "no trained member 'c9'. Known: c8" in capsys.readouterr().err


def test_store_commands(own_copy, capsys, tmp_path):
    assert len(json.loads(out(capsys, "store", "ls", str(own_copy), "--json"))) == 5
    assert json.loads(out(capsys, "store", "verify", str(own_copy), "--json"))["corrupt"] == []
    leftover = own_copy / "cells" / ".x.json.tmp-999999999"
    leftover.write_text("half")
    mine = own_copy / ".gitignore"
    mine.write_text("*")
    stale = own_copy / "chunks" / "ab" / "abc" / "00000.safetensors"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(next(own_copy.glob("chunks/*/*/*.safetensors")).read_bytes())
    out(capsys, "store", "prune", str(own_copy))
    assert not leftover.exists() and not stale.exists() and mine.exists()
    assert json.loads(out(capsys, "store", "verify", str(own_copy), "--json"))["corrupt"] == []
    packed = json.loads(out(capsys, "store", "pack", str(own_copy), str(tmp_path / "all.tar"), "--json"))
    assert packed["bytes"] > 1000
    assert json.loads(out(capsys, "store", "compact", str(own_copy), "--json"))["scores"] > 0


def test_verify_names_what_is_corrupt(own_copy, capsys):
    path = next(own_copy.glob("chunks/*/*/*.safetensors"))
    path.write_bytes(b"junk")
    with pytest.raises(SystemExit, match="1"):
        main(["store", "verify", str(own_copy)])
    assert path.name in capsys.readouterr().out


def test_merge_brings_what_another_machine_did(own_copy, tmp_path, capsys):
    part = tmp_path / "part"
    part.mkdir()
    for name in ("study.yaml", "expansion.json", "locator.json"):
        (part / name).write_bytes((own_copy / name).read_bytes())
    out(capsys, "store", "merge", str(part), str(own_copy))
    assert json.loads(out(capsys, "status", str(part), "--json"))["finished"]


def test_publish_keeps_scores_that_can_be_read_again(swept, tmp_path, capsys):
    from isocost.specs import Score

    out(capsys, "store", "publish", str(swept), str(tmp_path / "kept"))
    scores = [Score.model_validate(score) for score in json.loads((tmp_path / "kept" / "scores.json").read_text())]
    cells = json.loads((tmp_path / "kept" / "cells.json").read_text())
    assert {score.sample_key for score in scores} == {cell["sample_key"] for cell in cells}


def test_publish_compresses_what_nobody_would_read(swept, tmp_path, capsys, monkeypatch):
    out(capsys, "store", "publish", str(swept), str(tmp_path / "plain"))
    monkeypatch.setattr(upkeep, "READABLE", 1000)
    out(capsys, "store", "publish", str(swept), str(tmp_path / "packed"))
    packed = tmp_path / "packed" / "scores.json.gz"
    assert gzip.decompress(packed.read_bytes()) == (tmp_path / "plain" / "scores.json").read_bytes()
    assert not (tmp_path / "packed" / "scores.json").exists()


def test_a_store_that_moved_can_still_be_reported(swept, tmp_path, capsys):
    import shutil

    moved = Path(shutil.copytree(swept, tmp_path / "elsewhere"))
    shutil.rmtree(moved / "figures", ignore_errors=True)
    assert json.loads(out(capsys, "report", str(moved), "--json"))["report"] == str(moved / "report.html")


def test_report_and_its_figures(own_copy, capsys):
    page = json.loads(out(capsys, "report", str(own_copy), "--json"))["report"]
    text = Path(page).read_text(encoding="utf-8")
    assert "c8" in text and "<script src=" not in text
    assert list((own_copy / "figures").glob("*.png"))
