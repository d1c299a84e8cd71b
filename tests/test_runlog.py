from __future__ import annotations

import json

import pytest

from isocost.errors import DataError
from isocost.runlog import Log, images_per_second, images_seen, read_log


def test_it_is_cut_to_where_the_run_goes_on(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f'{{"images_seen": {n}, "seconds": {n / 8}}}\n' for n in (8, 16, 24)) + '{"images_se'
    )
    log = Log(tmp_path, 16)
    log.write({"images_seen": 24, "seconds": 9.0})
    log.close()
    assert log.seconds == 2.0
    assert [line["seconds"] for line in read_log(tmp_path)] == [1.0, 2.0, 9.0]


def test_damage_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("{\n{}\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl: damaged"):
        read_log(tmp_path)


def test_images_seen_is_the_last_whole_line_s(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert images_seen(tmp_path) == images_seen(tmp_path / "nowhere") == 0
    path.write_text('{"images_se')
    assert images_seen(tmp_path) == 0
    lines = "".join(f'{{"images_seen": {n}, "loss": {n / 7}}}\n' for n in range(500))
    path.write_text(lines)
    assert images_seen(tmp_path) == 499
    path.write_text(lines + '{"images_seen": 50')
    assert images_seen(tmp_path) == 499


def test_speed_is_that_of_the_last_lines(tmp_path):
    assert images_per_second(tmp_path) == 0
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"images_seen": 8, "seconds": 1.0}\n')
    assert images_per_second(tmp_path) == 0
    slow = [{"images_seen": 8 * n, "seconds": 2.0 * n} for n in range(1, 500)]
    fast = [{"images_seen": 8 * n, "seconds": 500.0 + n} for n in range(500, 900)]
    path.write_text("".join(json.dumps(line) + "\n" for line in slow + fast))
    assert images_per_second(tmp_path) == 8
