from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from isocost.errors import SpecError
from isocost.reporting.page import report, summary
from isocost.reporting.strips import Strip
from isocost.specs import Budget

EVIL = 'a red <script>alert("x")</script> & "square"'
STUDY = {"name": "small", "seeds": [0], "evaluation": {"select_by": "fd"}, "note": "</pre><script>alert(1)</script>"}


class Page(HTMLParser):
    """What a page loads (src, href of anything), its inline scripts and its visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.scripts, self.words, self.inside = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = [tag]
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag == "script":
            self.scripts.append(dict(attributes))

    def handle_data(self, data):
        if self.inside not in (["script"], ["style"]):
            self.words.append(data)

    def handle_endtag(self, tag):
        self.inside = []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def page_text(world, tmp_path_factory):
    strip = Strip(np.zeros((2, 2, 8, 8, 3), np.uint8), (EVIL, "a blue circle"), ("c8", "c16"), EVIL)
    path = report(
        world.table, study=STUDY, folder=tmp_path_factory.mktemp("report"), budget=Budget(unit="paper", limit=3),
        strips={EVIL: strip}, accuracy_baselines={"colour": {"chance": 0.125, "ceiling": 0.99}},
        environment={"device": EVIL}, influence=world.influence, digests={"scores": "ab12"},
    )  # fmt: skip
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(page_text):
    return Page(page_text)


def test_the_answer_comes_first(page):
    heading = page.text.index("For at most 3 units of paper cost per image use c")
    assert heading < page.text.index("What a budget buys") < page.text.index("How it was made")


def test_sections_and_doubts(page):
    for words in (
        "Where the larger model takes over", "Does the image show what the caption says?", "Training", "12.5%",
        "One training seed: differences between sizes may be seeds", "ab12", "select_by: fd",
    ):  # fmt: skip
        assert words in page.text, words


def test_nothing_is_loaded_from_the_network(page, page_text):
    assert page.loads and all(value.startswith("data:image/png;base64,") for value in page.loads)
    style = re.search(r"<style>(.*?)</style>", page_text, re.DOTALL).group(1)
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in page_text


def test_captions_and_names_are_escaped(page, page_text):
    assert page_text.count("alert(") == page_text.count("alert(&#34;x") + page_text.count("&lt;script&gt;alert(1)")
    assert len(page.scripts) == 3 and EVIL in page.text


def test_figures_cannot_close_their_script(page_text):
    figures = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page_text, re.DOTALL).group(1)
    assert "<" not in figures
    found = json.loads(figures)
    assert {"frontier-paper", "frontier-gflops", "frontier-seconds", "training", "accuracy", "map-ddim"} <= set(found)
    drawn = set(re.findall(r'data-plot="([^"]+)"', page_text))
    assert drawn == set(found)


def test_plotly_is_inlined_once(page_text):
    assert page_text.count("plotly.js v") == 1


def test_light_dark_and_narrow(page_text):
    assert "prefers-color-scheme: dark" in page_text and "width=device-width" in page_text


def test_one_member_one_seed(synthetic, tmp_path):
    world = synthetic.World(members=("c16",), curve=False, attributes=False)
    text = Page(report(world.table, study=STUDY, folder=tmp_path).read_text()).text
    assert "One size, c16: nothing is said about how quality scales with size." in text
    assert "Where the larger model takes over" not in text and "Training" not in text.split("How it was made")[0]


def test_empty_table(world, tmp_path):
    with pytest.raises(SpecError, match="no cell has a score yet"):
        report(world.table.iloc[:0], study=STUDY, folder=tmp_path)


def test_left_out_scores_are_counted_and_named(world, synthetic, tmp_path):
    table = world.table.copy()
    bad = table.index[(table["metric"] == synthetic.FD) & (table["split"] == "report")][0]
    table.loc[bad, "value"] = np.nan
    text = Page(report(table, study=STUDY, folder=tmp_path).read_text()).text
    assert "1 score was left out" in text and "on the report half is nan" in text


def test_summary_is_what_a_terminal_needs(world):
    found = summary(world.table, "fd", "gflops", world.influence, budget=Budget(unit="gflops", limit=20))
    assert found["sentence"].startswith("For at most 20 GFLOPs per image use")
    assert all(len(row) == len(found["columns"]) for row in found["rows"])
    assert all(isinstance(text, str) for row in found["rows"] for text in row)
    assert len(found["crossovers"]) == 3 and found["left_out"] == []


def test_summary_warns_where_differences_are_unpaired(world):
    assert any("Per-image values were not given" in note for note in summary(world.table, "fd")["notes"])
    assert not any("Per-image values" in note for note in summary(world.table, "fd", "paper", world.influence)["notes"])


def test_invalid_cells_are_said(world):
    found = summary(world.table.assign(valid=False), "fd", "paper", world.influence)
    assert any("too few images" in note for note in found["notes"])
    assert "too few images" in found["sentence"]
