from __future__ import annotations

import json
from pathlib import Path

import pytest

from isocost.analysis.claims import CLAIMS
from isocost.cli import main

RESULTS = Path(__file__).parents[1] / "results"
QUICKSTART, SUPERRES = str(RESULTS / "quickstart-cpu"), str(RESULTS / "sr-cpu")


def test_claims_as_json(capsys):
    main(["claims", QUICKSTART, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [verdict["id"] for verdict in found["verdicts"]] == list(CLAIMS)
    assert found["verdicts"][0]["verdict"] in ("supported", "refuted", "inconclusive")


def test_claims_for_people(capsys):
    main(["claims", QUICKSTART, "--only", "C13", "--only", "C21"])
    out = capsys.readouterr().out
    assert "refuted" in out and "Not testable here" in out and "consistency" in out


def test_several_stores(capsys):
    """Each claim says which it rests on; a folder of stores stands for them."""
    only = ["--only", "C3", "--only", "C20", "--only", "C21"]
    main(["claims", QUICKSTART, SUPERRES, *only, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["studies"] == ["quickstart-cpu", "sr-cpu"]
    assert [verdict["study"] for verdict in found["verdicts"]] == ["quickstart-cpu", "sr-cpu", ""]
    main(["claims", QUICKSTART, SUPERRES, *only])
    out = capsys.readouterr().out
    assert "study" in out and "sr-cpu: FID is KID[efficientnet-lite0]" in out


def test_a_folder_of_stores(tmp_path, capsys):
    (tmp_path / "sweep").symlink_to(QUICKSTART)
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "study.yaml").write_text((Path(QUICKSTART) / "spec.yaml").read_text())
    main(["claims", str(tmp_path), "--only", "C3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["verdicts"][0]["study"] == found["studies"][0] and len(found["studies"]) == 1
    assert any(note.startswith("later: not read: ") for note in found["notes"])


def test_the_printed_numbers_with_what_they_contradict(capsys):
    main(["claims", "--printed", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["contradictions"]) == 10 and "has 11" in " ".join(found["contradictions"])


@pytest.mark.parametrize(
    "arguments", [["claims"], ["claims", QUICKSTART, "--printed"], ["claims", QUICKSTART, "--only", "C31"]]
)
def test_wrong_requests(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("isocost: ")


def test_laws(capsys):
    main(["laws", QUICKSTART])
    assert "held out, c24" in capsys.readouterr().out
    main(["laws", QUICKSTART, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [law["x"] for law in found["laws"]] == ["images seen", "steps"] and len(found["crossovers"]) == 4
