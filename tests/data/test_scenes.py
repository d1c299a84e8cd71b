"""Scenes: bytes and captions that never change, attributes that the pixels and the captions agree with."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from isocost.data import scenes
from isocost.errors import SpecError
from isocost.specs import SceneOptions

OPTIONS = SceneOptions()
GOLDEN_CAPTIONS = {
    0: "a picture of two large dotted red rings at the top on a purple background",
    10: "two small striped green diamonds to the left of one small dotted yellow diamond on a blue background",
    22: "three striped red triangles in the centre on a yellow background",
}


def _sha(images: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("resolution", "digest"), [(16, "30f743b053a7c55f"), (32, "7afffc57ea92baad"), (64, "e3b1e8f950137723")]
)
def test_golden_images(resolution, digest):
    """A changed byte changes every study's data: it needs a new `SceneOptions.version`."""
    assert _sha(scenes.draw(0, range(64), resolution, OPTIONS)) == digest


def test_golden_captions():
    assert {index: scenes.describe(0, index, OPTIONS)[0] for index in GOLDEN_CAPTIONS} == GOLDEN_CAPTIONS


def test_single_and_batched_scenes_are_equal_bytes():
    indices = [5, 3, 900_000, 77, 5]
    batch = scenes.scenes(3, indices, 32, OPTIONS)
    large = scenes.draw(3, range(100), 32, OPTIONS)
    for index, drawn in zip(indices, batch, strict=True):
        alone = scenes.scene(3, index, 32, OPTIONS)
        assert alone.image.dtype == np.uint8 and alone.image.shape == (32, 32, 3)
        assert np.array_equal(alone.image, drawn.image)
        assert (alone.caption, alone.attributes) == (drawn.caption, drawn.attributes)
        assert (alone.caption, alone.attributes) == scenes.describe(3, index, OPTIONS)
    assert np.array_equal(large[77], batch[3].image)


def test_seed_and_index_both_count():
    images = {_sha(scenes.scene(seed, index, 32, OPTIONS).image) for seed in (0, 1, 2) for index in (0, 1, 2)}
    assert len(images) == 9


def test_one_group_only_where_asked():
    described = scenes.describe_all(0, range(300), SceneOptions(groups=1))
    assert {attributes["groups"] for _, attributes in described} == {1}
    assert not any(name.endswith("2") for _, attributes in described for name in attributes)


def test_every_value_of_every_attribute_occurs():
    seen: dict[str, set] = {name: set() for name in scenes.ATTRIBUTES}
    for _, attributes in scenes.describe_all(0, range(1000), OPTIONS):
        for name, value in attributes.items():
            seen[name].add(value)
    assert seen == {name: set(values) for name, values in scenes.ATTRIBUTES.items()}


def _phrases(caption: str, attributes: dict) -> list[str]:
    """The caption's noun phrases in the order of the slots, from its words alone."""
    for words, swap in (("to the left of", 0), ("to the right of", 1), ("above", 0), ("below", 1)):
        first, found, second = caption.partition(f" {words} ")
        if found:
            return [second, first] if swap else [first, second]
    return [caption]


def test_caption_says_what_the_attributes_say():
    numbers = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
    places = {
        "left": "left",
        "right": "right",
        "top": "top",
        "bottom": "bottom",
        "centre": "centre",
        "middle": "centre",
    }
    for caption, attributes in scenes.describe_all(4, range(500), OPTIONS):
        assert f"{attributes['background']} background" in caption and caption == caption.lower()
        rest = caption.replace(f"{attributes['background']} background", "").replace("a picture of ", "")
        phrases = _phrases(rest, attributes)
        assert len(phrases) == attributes["groups"]
        if attributes["groups"] == 1:
            assert {places[word] for word in rest.split() if word in places} == {attributes["place"]}
        else:
            assert attributes["place"] == ("top" if "above" in caption or "below" in caption else "left")
        for phrase, suffix in zip(phrases, ("", "2"), strict=False):
            words = phrase.split()
            shape = next(word for word in words if word in scenes.SHAPES or word in scenes.PLURALS.values())
            at = words.index(shape)
            assert shape in (attributes[f"shape{suffix}"], scenes.PLURALS[str(attributes[f"shape{suffix}"])])
            assert words[at - 1] == attributes[f"colour{suffix}"]
            described = words[max(0, at - 4) : at - 1]
            textures = [word for word in described if word in scenes.TEXTURES]
            assert textures == [t for t in [attributes[f"texture{suffix}"]] if t != "plain"]
            sizes = [word for word in described if word in scenes.SIZES]
            assert sizes == [attributes[name] for name in [f"size{suffix}"] if name in attributes]
            counted = [numbers[word] for word in words[:at] if word in numbers]
            assert counted[-1] == attributes[f"count{suffix}"]


def test_captions_fit_the_shipped_context():
    longest = max(len(caption.split()) for caption, _ in scenes.describe_all(0, range(3000), OPTIONS))
    assert longest <= 22  # 24 tokens with the two marks, a word being a token


def test_colours_on_the_image_are_those_named():
    """Pixels at corners are background; the first group's colour is found on its own side."""
    images = scenes.draw(0, range(300), 64, SceneOptions(groups=1))
    described = scenes.describe_all(0, range(300), SceneOptions(groups=1))
    for image, (_, attributes) in zip(images, described, strict=True):
        if attributes["place"] not in ("left", "right") or attributes["texture"] != "plain":
            continue
        halves = {"left": image[:, :32], "right": image[:, 32:]}
        empty = halves["right" if attributes["place"] == "left" else "left"].reshape(-1, 3).astype(float)
        own = halves[str(attributes["place"])].reshape(-1, 3).astype(float)
        background, colour = (np.array(scenes.PALETTE[str(attributes[key])]) for key in ("background", "colour"))
        assert np.abs(empty - background).max() < 12 + 0.5 * 128 + 1
        covered = np.abs(own - colour).max(axis=1) <= 13
        assert covered.mean() > 0.04


def test_a_group_of_n_is_n_pieces():
    """Count connected pieces of the group's mask by flood fill, where shapes are compact and apart."""
    ndimage = pytest.importorskip("scipy.ndimage")
    options = SceneOptions(groups=1)
    images, described = scenes.draw(1, range(400), 128, options), scenes.describe_all(1, range(400), options)
    checked = 0
    for image, (_, attributes) in zip(images, described, strict=True):
        if attributes["shape"] not in ("circle", "ring", "cross") or attributes["texture"] != "plain":
            continue
        colour = np.array(scenes.PALETTE[str(attributes["colour"])])
        pieces = ndimage.label(np.abs(image.astype(float) - colour).max(axis=2) <= 13)[0]
        sizes = np.bincount(pieces.ravel())[1:]
        assert (sizes > 40).sum() == attributes["count"]
        checked += 1
    assert checked > 20


def test_groups_differ_in_colour_from_each_other_and_the_background():
    for _, attributes in scenes.describe_all(2, range(500), OPTIONS):
        colours = [attributes[name] for name in ("background", "colour", "colour2") if name in attributes]
        assert len(set(colours)) == len(colours)


def test_chance_levels_are_shares_of_the_commonest_value():
    levels = scenes.chance(OPTIONS)
    assert set(levels) == set(scenes.ATTRIBUTES)
    assert levels["groups"] == pytest.approx(0.5, abs=0.03)
    assert levels["shape"] == pytest.approx(1 / 8, abs=0.02)
    assert levels["place"] == pytest.approx(0.35, abs=0.03)  # left: half of the pairs and a fifth of the single groups
    assert "colour2" not in scenes.chance(SceneOptions(groups=1))


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(SpecError, match="16 px"):
        scenes.scene(0, 0, 15, OPTIONS)
    with pytest.raises(SpecError, match="version 2"):
        scenes.describe(0, 0, SceneOptions(version=2))


def test_imports_no_torch():
    code = "import sys, isocost.data.scenes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
