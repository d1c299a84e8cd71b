"""`isocost score` and `isocost reference`, as a user runs them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tests.scoring.pictures import pictures, write_folder

from isocost.cli import main

EXTRACTOR = "scenes-clip-score-8"


def out(capsys, *arguments: object) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def fails(capsys, *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert isinstance(stopped.value.code, int)
    shown = capsys.readouterr().err.splitlines()
    errors = [line for line in shown if line.startswith("isocost: ")]
    assert len(errors) == 1 and shown[-1] == errors[0], "an error is one line, and the last"
    return stopped.value.code, errors[0]


@pytest.fixture
def folders(tmp_path):
    captions = [f"a picture of colour {index}" for index in range(80)]
    write_folder(tmp_path / "real", pictures(90, 1, size=32))
    write_folder(tmp_path / "mine", pictures(80, size=32), captions)
    write_folder(tmp_path / "worse", pictures(80, size=32, shift=25), captions)
    return tmp_path


def test_a_table_with_errors_and_what_they_are_of(folders, capsys):
    shown = out(capsys, "score", folders / "mine", folders / "real", "--metrics", f"fd[{EXTRACTOR}],kid,clip")
    for text in (
        f"fd[{EXTRACTOR}]",
        "kid[scenes-clip-score]",
        "±",
        "95% interval",
        "Frechet distance",
        "lower",
        "higher",
    ):
        assert text in shown
    assert f"extractor {EXTRACTOR}@" in shown and "protocol: none" in shown and "†" not in shown


def test_few_images_are_flagged(folders, capsys):
    shown = out(
        capsys, "score", folders / "mine", folders / "real", "--metrics", "fd", "--extractor", "scenes-clip-score"
    )
    assert "†" in shown and "too few images" in shown


def test_json_holds_scores_ranking_and_environment(folders, capsys):
    places = [folders / name for name in ("worse", "mine", "real")]
    found = json.loads(out(capsys, "score", *places, "--metrics", "kid,clip", "--json"))
    assert {row["generated"] for row in found["scores"]} == {"mine", "worse"}
    row = found["scores"][0]
    assert {"value", "stderr", "low", "high", "n", "reference_n", "better", "unit", "protocol", "extractor"} <= set(row)
    kid = [place for place in found["ranking"] if place["metric"].startswith("kid")]
    assert [place["generated"] for place in kid] == ["mine", "worse"] and kid[1]["paired"]
    assert found["environment"]["torch"]


def test_the_ranking_is_told_in_sentences(folders, capsys):
    shown = out(capsys, "score", folders / "mine", folders / "worse", folders / "real", "--metrics", "kid")
    assert "mine beats worse with probability 1.00 (paired)." in shown
    shown = out(
        capsys, "score", folders / "mine", folders / "worse", folders / "real", "--metrics", "kid", "--no-paired"
    )
    assert "(independent)" in shown


def test_the_reference_may_be_named_or_not_needed(folders, capsys):
    by_flag = out(capsys, "score", folders / "mine", "--reference", folders / "real", "--metrics", "kid", "--json")
    by_place = out(capsys, "score", folders / "mine", folders / "real", "--metrics", "kid", "--json")
    assert json.loads(by_flag)["scores"] == json.loads(by_place)["scores"]
    alone = json.loads(out(capsys, "score", folders / "mine", folders / "worse", "--metrics", "clip", "--json"))
    assert {row["generated"] for row in alone["scores"]} == {"mine", "worse"}


def test_captions_may_be_given(folders, capsys, tmp_path):
    listed = tmp_path / "captions.txt"
    listed.write_text("a red circle\n" * 90)
    found = json.loads(out(capsys, "score", folders / "real", "--metrics", "clip", "--captions", listed, "--json"))
    assert found["scores"][0]["n"] == 90


def test_a_reference_is_built_shown_and_scored_against(folders, capsys):
    path = folders / "real.safetensors"
    shown = out(capsys, "reference", "build", folders / "real", "--extractor", EXTRACTOR, "--out", path)
    assert "protocol: none" in shown and "n: 90" in shown and "extractor: scenes-clip-score@" in shown
    found = json.loads(out(capsys, "reference", "show", path, "--json"))
    assert (found["n"], found["holds"]) == (90, "features")
    one = out(capsys, "score", folders / "mine", path, "--metrics", f"fd[{EXTRACTOR}]", "--json")
    two = out(capsys, "score", folders / "mine", folders / "real", "--metrics", f"fd[{EXTRACTOR}]", "--json")
    assert json.loads(one)["scores"] == json.loads(two)["scores"]
    assert json.loads(one)["scores"][0]["reference"] == found["digest"]


def test_features_of_other_programs_can_be_scored(folders, capsys):
    rng = np.random.default_rng(0)
    np.savez(folders / "a.npz", rng.standard_normal((200, 6)))
    np.savez(folders / "b.npz", rng.standard_normal((300, 6)))
    shown = out(capsys, "score", folders / "a.npz", folders / "b.npz", "--metrics", "fd,kid")
    assert "fd[features]" in shown and "kid[features]" in shown


def test_conversions_and_what_was_left_out_are_said(folders, capsys):
    Image.fromarray(pictures(1, size=32)[0]).convert("L").save(folders / "mine" / "000.png")
    (folders / "mine" / "001.png").write_bytes(b"junk")
    code, shown = fails(capsys, "score", folders / "mine", folders / "real", "--metrics", "kid")
    assert code == 1 and "001.png: not an image" in shown
    shown = out(capsys, "score", folders / "mine", folders / "real", "--metrics", "kid", "--skip-unreadable")
    assert "- mine: of 79 images, brought to 8-bit RGB: grey (1)." in shown
    assert "- mine: 1 images cannot be read and are left out" in shown and "001.png" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("score",), 2, "nothing to score"),
        (("score", "mine"), 2, "mine is to be scored against what?"),
        (("score", "mine", "real", "--metrics", "fid"), 2, "unknown metric 'fid'. Did you mean 'fd'"),
        (("score", "mine", "real", "--metrics", "fd[nothing]"), 2, "unknown extractor 'nothing'"),
        (("score", "mine", "real", "--metrics", "fd[fid-tf"), 2, "expected NAME, or NAME[EXTRACTOR]"),
        (("score", "mine", "nowhere", "--metrics", "kid"), 1, "nowhere: neither a .tar nor a folder"),
        (("score", "mine", "real", "--cell", "ab"), 2, "--cell is of a store"),
        (("score", "real", "--metrics", "clip"), 1, "000.png has no caption"),
        (("score", "mine", "real", "--metric", "kid"), 2, "--metrics"),
        (
            ("reference", "build", "real", "--extractor", "x", "--out", "real.npz"),
            2,
            "a reference is a .safetensors file",
        ),
        (("reference", "show", "none.safetensors"), 1, "none.safetensors: no such file"),
        (("reference", "manifest", "coco:x"), 2, "unknown protocol 'coco'"),
        (("reference", "manifest", "div2k-sr-3k:real"), 1, "takes the 100 of DIV2K_valid_HR"),
        (("score", "mine", "coco2014-30k:real", "--metrics", "kid"), 1, "captions_val2014.json: not there"),
    ],
)
def test_what_is_wrong_is_one_line(folders, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(folders)
    found, shown = fails(capsys, *arguments)
    assert found == code and message in shown


def test_a_manifest_lists_what_a_protocol_chose(folders, capsys, monkeypatch):
    from isocost.scoring import protocols

    chosen = lambda folder: protocols.div2k_sr_3k(folder, images=90, crops=180, size=16)  # noqa: E731
    monkeypatch.setitem(protocols.PROTOCOLS, "div2k-sr-3k", chosen)
    found = json.loads(out(capsys, "reference", "manifest", f"div2k-sr-3k:{folders / 'real'}", "--json"))
    assert len(found["chosen"]) == 180 and found["protocol"].startswith("div2k-sr-3k@")
    assert {"key", "image", "x", "y", "size", "degradation_seed"} == set(found["chosen"][0])
    assert "180 images" in out(capsys, "reference", "manifest", f"div2k-sr-3k:{folders / 'real'}")
