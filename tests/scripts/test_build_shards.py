"""`scripts/build_shards.py` on clones of two or three invented images each."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_shards.py"
spec = importlib.util.spec_from_file_location("build_shards", SCRIPT)
assert spec and spec.loader
build_shards = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_shards)

GLOBE, MERMAN = "\U0001f30e", "\U0001f9dc\u200d\u2642\ufe0f"
DARK_MERMAN = "\U0001f9dc\U0001f3ff\u200d\u2642\ufe0f"


def picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    if mode == "RGBA":
        pixels[: size[1] // 2, :, 3] = 0  # the upper half is transparent
    Image.fromarray(pixels).save(path)


@pytest.fixture
def clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = {GLOBE: ":globe_showing_Americas:", MERMAN: ":merman:", DARK_MERMAN: ":merman_dark_skin_tone:"}
    package = types.ModuleType("emoji")
    package.EMOJI_DATA = {unicode: {"en": name} for unicode, name in names.items()}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "emoji", package)

    groups = {GLOBE: {"group": "Travel & Places"}, MERMAN: {"group": "People & Body"}}
    keywords = {GLOBE: ["globe_showing_americas", "earth"], MERMAN: ["merman"]}
    for path, value in (
        ("unicode-emoji-json/data-by-emoji.json", groups),
        ("emojilib/dist/emoji-en-US.json", keywords),
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(json.dumps(value))
    noto = tmp_path / "noto-emoji/png/128"
    for code in ("1f30e", "1f9dc_200d_2642", "1f9dc_1f3ff_200d_2642", "1f9dc_1f3fd_200d_2642", "1f1e6"):
        picture(noto / f"emoji_u{code}.png", (128, 128), "RGBA")
    fluent = tmp_path / "fluentui-emoji-unicode/assets"
    for stem in ("1f30e", GLOBE, "1f9dc-200d-2642-fe0f"):
        picture(fluent / f"{stem}_3d.png", (256, 264), "RGBA")

    picture(tmp_path / "codec-corpus/CID22/CID22-512/training/pexels-photo-1.png", (64, 64))
    picture(tmp_path / "codec-corpus/CID22/CID22-512/training/Boxplot.png", (64, 64))
    picture(tmp_path / "codec-corpus/CID22/CID22-512/validation/2.png", (64, 64))
    picture(tmp_path / "budgie-backgrounds/backgrounds/pier.jpg", (2 * 1100, 2 * 520))

    dreambooth = tmp_path / "dreambooth/dataset"
    dreambooth.mkdir(parents=True)
    (dreambooth / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\ncat2,cat\nvase,vase\n\nPrompts\n"
    )
    (dreambooth / "references_and_licenses.txt").write_text(
        "cat2: \n(credit: https://unsplash.com/@someone)\n00: https://x\n\nvase: Photos taken by A. Author\n"
    )
    picture(dreambooth / "cat2/00.jpg", (600, 300))
    picture(dreambooth / "vase/00.jpg", (300, 300))
    return tmp_path


def read(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def build(clones: Path, *sets: str) -> dict[str, dict[str, bytes]]:
    out = clones / "out"
    build_shards.main(clones, out, *sets, any_commit=True)
    return {path.stem: read(path) for path in out.glob("*.tar")}


def test_noto_keeps_wanted_tones_and_known_emoji(clones: Path):
    shards = build(clones, "emoji-noto")
    files = shards["emoji-noto-128-train"] | shards["emoji-noto-128-val"]
    keys = {name.split(".")[0] for name in files}
    assert keys == {"noto-1f30e", "noto-1f9dc_200d_2642", "noto-1f9dc_1f3ff_200d_2642"}
    assert json.loads(files["noto-1f9dc_1f3ff_200d_2642.json"]) == {
        "caption": "a flat emoji of merman dark skin tone",
        "group": "People & Body",
        "keywords": ["merman"],
        "license": "Apache-2.0",
        "name": "merman dark skin tone",
        "skin_tone": "dark",
        "source": "png/128/emoji_u1f9dc_1f3ff_200d_2642.png",
        "style": "flat",
        "unicode": "\U0001f9dc\U0001f3ff\u200d\u2642",
    }
    assert files["noto-1f30e.txt"] == b"a flat emoji of globe showing Americas"


def test_one_concept_is_never_in_both_splits():
    assert (
        build_shards.in_val(MERMAN) == build_shards.in_val(DARK_MERMAN) == build_shards.in_val("\U0001f9dc\u200d\u2642")
    )
    emoji = [chr(code) for code in range(0x1F300, 0x1F600)]
    assert 20 < sum(map(build_shards.in_val, emoji)) < 60  # one in twenty of 768
    assert build_shards.in_val("\U0001f34e") and not build_shards.in_val(GLOBE)  # as in the shards we used


def test_fluent_takes_each_drawing_once_padded_to_a_square_on_white(clones: Path):
    shards = build(clones, "emoji-fluent3d")
    files = shards["emoji-fluent3d-128-train"] | shards["emoji-fluent3d-128-val"]
    assert {name.split(".")[0] for name in files} == {"fluent-1f30e", "fluent-1f9dc-200d-2642-fe0f"}
    image = Image.open(io.BytesIO(files["fluent-1f30e.webp"]))
    assert (image.mode, image.size) == ("RGBA", (128, 128))
    assert image.getpixel((64, 2))[3] == 0  # type: ignore[index]
    assert min(image.convert("RGB").getpixel((64, 20))) > 245  # type: ignore[type-var]


def test_photographs_are_lossless_where_they_are_held_out(clones: Path):
    shards = build(clones, "cid22", "budgie")
    assert set(shards["sr-train-cid22"]) == {"cid22-pexels_photo_1.jpg", "cid22-pexels_photo_1.json"}
    held_out = Image.open(io.BytesIO(shards["sr-val-cid22"]["cid22-2.webp"]))
    source = Image.open(clones / "codec-corpus/CID22/CID22-512/validation/2.png")
    assert np.array_equal(np.array(held_out), np.array(source))
    crops = [json.loads(data)["crop"] for name, data in shards["sr-train-budgie"].items() if name.endswith("json")]
    assert crops == [[38, 4], [550, 4]]


def test_dreambooth_carries_class_credit_and_licence(clones: Path):
    files = build(clones, "dreambooth")["dreambooth-256"]
    cat, vase = json.loads(files["cat2-00.json"]), json.loads(files["vase-00.json"])
    assert (cat["credit"], cat["license"], cat["live"]) == ("credit: https://unsplash.com/@someone", "Unsplash", True)
    assert (vase["credit"], vase["license"], vase["live"]) == ("Photos taken by A. Author", "CC-BY-4.0", False)
    assert Image.open(io.BytesIO(files["cat2-00.jpg"])).size == (512, 256)
    assert files["cat2-00.txt"] == b"a photo of a cat"


def test_equal_clones_give_equal_bytes(clones: Path):
    build(clones, "dreambooth")
    first = (clones / "out/dreambooth-256.tar").read_bytes()
    build(clones, "dreambooth")
    assert (clones / "out/dreambooth-256.tar").read_bytes() == first
    with tarfile.open(clones / "out/dreambooth-256.tar") as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "", 0o644)}


def test_wrong_commit_missing_clone_and_unknown_set_stop_it(clones: Path):
    with pytest.raises(SystemExit, match="dreambooth is not at 4f887af7"):
        build_shards.main(clones, clones / "out", "dreambooth")
    with pytest.raises(SystemExit, match="no such clone"):
        build_shards.main(clones / "nowhere", clones / "out", "kodak")
    with pytest.raises(SystemExit, match=r"unknown set 'kodac'\. Known: "):
        build_shards.main(clones, clones / "out", "kodac")
