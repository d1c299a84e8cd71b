from __future__ import annotations

import json

import pytest

from isocost import utilisation
from isocost.utilisation import matmul_peak


@pytest.fixture
def peaks(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "peaks.json"
    monkeypatch.setattr(utilisation, "PEAKS", path)
    monkeypatch.setattr(utilisation, "_in_process", {})
    monkeypatch.setitem(utilisation.SIDE, "cpu", 64)
    return path


def test_a_peak_is_measured_once_and_kept_by_what_it_was_measured_on(peaks, monkeypatch):
    first = matmul_peak()
    assert first > 1e6
    (key,) = json.loads(peaks.read_text())
    assert "threads" in key and "fp32" in key and "torch" in key
    monkeypatch.setattr(utilisation, "_measured", lambda *_: 1.0)
    assert matmul_peak() == first and matmul_peak(precision="bf16") == 1.0
    assert len(json.loads(peaks.read_text())) == 2


def test_a_damaged_cache_is_made_anew_and_one_that_cannot_be_written_is_done_without(peaks, monkeypatch):
    peaks.parent.mkdir()
    peaks.write_text("{")
    monkeypatch.setattr(utilisation, "_measured", lambda *_: 7.0)
    assert matmul_peak() == 7.0 and list(json.loads(peaks.read_text()).values()) == [7.0]
    monkeypatch.setattr(utilisation, "PEAKS", peaks / "below a file.json")
    assert matmul_peak() == 7.0
