from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from isocost.data import filters as module
from isocost.data.filters import filtered, parse_rule, rule_text
from isocost.data.images import open_images
from isocost.data.shards import write_shards
from isocost.errors import DataError, SpecError
from isocost.specs import DataSource, Filter


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "jpeg", exif=exif)
    return buffer.getvalue()


SAMPLES = [
    {
        "__key__": "good",
        "jpg": jpeg(64, 48),
        "txt": "a small red house",
        "json": json.dumps({"score": 6.5, "q": {"a": 1}}),
    },
    {"__key__": "short", "jpg": jpeg(64, 48), "txt": "red", "json": json.dumps({"score": 9})},
    {"__key__": "small", "jpg": jpeg(64, 20), "txt": "a thin red strip", "json": json.dumps({"score": 7})},
    {"__key__": "ugly", "jpg": jpeg(64, 48), "txt": "a big red house", "json": json.dumps({"score": 2})},
    {"__key__": "unscored", "jpg": jpeg(64, 48), "txt": "a red house again", "json": json.dumps({"score": "high"})},
    {"__key__": "turned", "jpg": jpeg(30, 90, 6), "txt": "a turned red house", "json": json.dumps({"score": 6})},
]


@pytest.fixture
def images(tmp_path):
    write_shards(SAMPLES, tmp_path / "shards", "x", per_shard=2)
    return open_images([tmp_path / "shards"])


def keys(images, index) -> list[str]:
    return [images.keys[i] for i in index.kept]


def test_each_rule_drops_what_it_says_and_is_counted_where_an_image_first_fails(images):
    rules = [
        Filter(field="caption_words", min=3),
        Filter(field="shorter_side", min=30),
        Filter(field="json.score", min=5, missing="drop"),
    ]
    found = filtered(images, rules)
    assert keys(images, found) == ["good", "turned"]
    assert found.report == {
        "images": 6,
        "kept": 2,
        "rules": [
            {"rule": "3 <= caption_words", "dropped": 1, "missing": 0, "then": "refused"},
            {"rule": "30 <= shorter_side", "dropped": 1, "missing": 0, "then": "refused"},
            {"rule": "5 <= json.score", "dropped": 1, "missing": 1, "then": "dropped"},
        ],
    }
    lost = sum(rule["dropped"] + rule["missing"] for rule in found.report["rules"])
    assert lost + found.report["kept"] == found.report["images"], "each image is counted once"
    assert str(found).splitlines()[::3] == [
        "2 of 6 images kept",
        "5 <= json.score: 1 dropped; 1 without the field: dropped",
    ]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("caption_characters<=16", ["short", "small", "ugly"]),
        ("caption_words<=1", ["short"]),
        ("width>=90", ["turned"]),
        ("height<=30", ["small", "turned"]),
        ("aspect>=3", ["small", "turned"]),
        ("48<=shorter_side<=48", ["good", "short", "ugly", "unscored"]),
        ("json.q.a>=1", ["good"]),
        ("6 <= json.score <= 7", ["good", "small", "turned"]),
    ],
)
def test_every_field(images, rule, expected):
    """A turned photograph is as wide as it is shown."""
    assert keys(images, filtered(images, [parse_rule(rule, "drop")])) == expected


def test_what_is_missing_is_an_error_unless_asked_to_go_on(images, tmp_path):
    with pytest.raises(DataError, match=r"x-00002\.tar: key 'unscored' has no number 'json\.score': it cannot be filt"):
        filtered(images, [Filter(field="json.score", min=5)])
    kept = filtered(images, [Filter(field="json.score", min=5, missing="keep")])
    assert "unscored" in keys(images, kept) and kept.report["rules"][0]["missing"] == 1
    samples = [SAMPLES[0], {"__key__": "bare", "jpg": jpeg(9, 9)}, {"__key__": "torn", "jpg": b"torn", "txt": "x y z"}]
    write_shards(samples, tmp_path / "torn", "x")
    torn = open_images([tmp_path / "torn"])
    for rule, message in (("caption_words>=1", "key 'bare' has no caption"), ("width>=1", "key 'torn': not an image")):
        with pytest.raises(DataError, match=message):
            filtered(torn, [parse_rule(rule)])
        found = filtered(torn, [parse_rule(rule, "drop")])
        assert len(found.kept) == 2 and found.report["rules"][0]["missing"] == 1


def test_nothing_is_decoded(images, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    assert len(filtered(images, [Filter(field="width", min=1)]).kept) == 6


def test_the_index_is_made_once_and_made_again_when_it_is_damaged_or_of_something_else(images, tmp_path, monkeypatch):
    path, rules = tmp_path / "out" / "kept.safetensors", [Filter(field="caption_words", min=3)]
    first = filtered(images, rules, path)
    runs, real = [], module._run
    monkeypatch.setattr(module, "_run", lambda *arguments: runs.append(1) or real(*arguments))
    again = filtered(images, rules, path)
    assert not runs and again.digest == first.digest and again.report == first.report
    np.testing.assert_array_equal(again.kept, first.kept)
    whole = path.read_bytes()
    for broken in (whole[:-1] + b"\7", whole[:20], b""):
        path.write_bytes(broken)
        np.testing.assert_array_equal(filtered(images, rules, path).kept, first.kept)
    assert len(runs) == 3
    other = filtered(images, [Filter(field="caption_words", min=4)], path)
    assert other.digest != first.digest and len(runs) == 4


def test_a_filter_that_keeps_nothing(images):
    with pytest.raises(DataError, match=r"no image passes the filters: 0 of 6 images kept; 100 <= width: 6 dropped"):
        filtered(images, [Filter(field="width", min=100)])


def test_rules_as_text():
    for text in ("caption_words>=3", "json.a.b <= -1.5", "1<=aspect<=2", "256 <= shorter_side"):
        assert parse_rule(rule_text(parse_rule(text))) == parse_rule(text)
    for text, message in (
        ("caption_words=3", "expected FIELD>=NUMBER"),
        ("widht>=3", "no field 'widht' to filter by. Did you mean 'width'?"),
        ("3<=width<=1", "min 3 is above max 1"),
    ):
        with pytest.raises(SpecError, match=message):
            parse_rule(text)


def test_filters_of_a_source():
    with pytest.raises(SpecError, match="a filter needs `min`, `max` or both"):
        Filter.parse({"field": "width"})
    with pytest.raises(SpecError, match="filters are for kind 'images'"):
        DataSource.parse({"images": 3, "filters": [{"field": "width", "min": 3}]})
    plain = DataSource(kind="images", train=("x",))
    assert plain.model_copy(update={"filters": (Filter(field="width", min=3),)}).digest != plain.digest
