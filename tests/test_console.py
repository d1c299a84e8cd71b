from __future__ import annotations

import io

from rich.console import Console

from isocost.console import _bars, _moving, shown_progress


def test_bars_on_a_terminal_show_stage_and_note():
    screen = io.StringIO()
    with _bars(Console(force_terminal=True, file=screen, width=120)) as bars:
        show = _moving(bars)
        show("train members", 1, 4, "c8 25%")
        show("train members", 4, 4, "c8 100%")
    assert "train members" in screen.getvalue() and "c8 100%" in screen.getvalue()


def test_lines_in_a_log(capsys):
    with shown_progress() as show:
        show("score", 0, 2, "")
        show("score", 1, 2, "")
        show("score", 2, 2, "done")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("] ")[2] for line in lines] == ["score:   0%", "score: 100% done"]


def test_quiet(capsys):
    with shown_progress(quiet=True) as show:
        show("score", 0, 2, "")
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""
