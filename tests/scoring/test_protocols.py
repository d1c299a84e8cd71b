from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.scoring.pictures import Means, pictures

from isocost.data.images import square
from isocost.errors import DataError, SpecError
from isocost.scoring.protocols import (
    coco2014_30k,
    div2k_sr_3k,
    is_protocol,
    one_protocol,
    open_protocol,
    protocol_prompts,
    rank,
)
from isocost.scoring.references import build

GOLDEN_CAPTIONS = [602, 1004, 501, 200, 301, 700, 103, 401]
GOLDEN_COCO = "coco2014-30k@76818203bf33"
GOLDEN_CROP = {
    "key": "0801-0",
    "image": "0801.png",
    "x": 11,
    "y": 13,
    "size": 32,
    "degradation_seed": 2074343241,
}
GOLDEN_DIV2K = "div2k-sr-3k@d31186691a6f"


def coco(folder: Path, images: int = 12) -> Path:
    """A folder with the layout of COCO 2014: captions of every image but the last, one image grey."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2014").mkdir()
    entries = []
    for index in range(images):
        name = f"COCO_val2014_{index * 7:012d}.jpg"
        image = Image.fromarray(pictures(1, index, size=40)[0]).resize((40, 30))
        (image.convert("L") if index == 3 else image).save(folder / "val2014" / name)
        entries.append({"id": index * 7, "file_name": name, "height": 30, "width": 40})
    captions = [
        {"id": 100 * index + k, "image_id": index * 7, "caption": f" caption {k}\nof image {index} "}
        for index in range(images - 1)
        for k in range(5)
    ]
    (folder / "annotations" / "captions_val2014.json").write_text(
        json.dumps({"info": {}, "licenses": [], "images": entries, "annotations": captions})
    )
    return folder


def div2k(folder: Path, images: int = 3) -> Path:
    (folder / "DIV2K_valid_HR").mkdir(parents=True)
    for index in range(images):
        size = (60 + index, 48)
        Image.fromarray(pictures(1, index, size=64)[0]).resize(size).save(
            folder / "DIV2K_valid_HR" / f"{801 + index:04d}.png"
        )
    return folder


# --- COCO ---


def test_coco_takes_one_caption_of_as_many_images(tmp_path):
    found = coco2014_30k(coco(tmp_path), count=8, resolution=16)
    assert len(found) == len(found.prompts) == 8
    assert len({chosen.image_id for chosen in found.chosen}) == 8
    for chosen in found.chosen:
        image = chosen.image_id // 7
        assert chosen.caption_id // 100 == image
        assert chosen.caption == f"caption {chosen.caption_id % 100} of image {image}"
    assert found.keys == tuple(sorted(found.keys))
    for index, key in enumerate(found.keys):
        chosen = next(chosen for chosen in found.chosen if Path(chosen.file_name).stem == key)
        assert found.caption(index) == chosen.caption
        assert found.where(index).endswith(f"val2014/{chosen.file_name}")
        with Image.open(tmp_path / "val2014" / chosen.file_name) as image:
            assert np.array_equal(found.read(index).pixels, square(np.asarray(image.convert("RGB")), 16))


def test_cocos_choice_is_a_function_of_ids_alone(tmp_path):
    folder = coco(tmp_path)
    found = coco2014_30k(folder, count=8)
    ranked = sorted(range(0, 77, 7), key=lambda image_id: rank("coco2014-30k", image_id))
    assert [chosen.image_id for chosen in found.chosen] == ranked[:8]
    path = folder / "annotations" / "captions_val2014.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: content[name][::-1] for name in ("images", "annotations")}))
    assert coco2014_30k(folder, count=8).protocol == found.protocol
    assert coco2014_30k(folder, count=7).prompts == found.prompts[:7]
    # Golden: the choice, and so the digest that scores carry, must never change under one name.
    assert [chosen.caption_id for chosen in found.chosen] == GOLDEN_CAPTIONS
    assert found.protocol == GOLDEN_COCO


def test_cocos_digest_moves_with_captions_and_resolution(tmp_path):
    folder = coco(tmp_path)
    before = coco2014_30k(folder, count=8).protocol
    assert coco2014_30k(folder, count=8, resolution=64).protocol != before
    assert coco2014_30k(folder, count=9).protocol != before
    path = folder / "annotations" / "captions_val2014.json"
    path.write_text(path.read_text().replace("of image", "of the image"))
    assert coco2014_30k(folder, count=8).protocol != before


def test_a_reference_carries_the_protocol_and_counts_grey_images(tmp_path):
    found = coco2014_30k(coco(tmp_path), count=11, resolution=16)
    (reference,) = build(found, [Means()])
    assert reference.protocol == found.protocol and reference.n == 11
    assert reference.notices == ("coco2014-30k: of 11 images, brought to 8-bit RGB: grey (1).",)


def test_what_is_missing_of_coco_is_named(tmp_path):
    with pytest.raises(DataError, match=r"captions_val2014\.json: not there"):
        coco2014_30k(tmp_path)
    folder = coco(tmp_path / "coco")
    with pytest.raises(DataError, match="11 images with captions, and coco2014-30k takes 30,000"):
        coco2014_30k(folder)
    found = coco2014_30k(folder, count=3)
    Path(found.where(1)).unlink()
    with pytest.raises(DataError, match=f"{Path(found.where(1)).name}: not there, and the protocol names it"):
        found.read(1)
    for content in ("junk", "[]", '{"images": [], "annotations": [{}]}'):
        (folder / "annotations" / "captions_val2014.json").write_text(content)
        with pytest.raises(DataError, match=r"captions_val2014\.json: not COCO's captions"):
            coco2014_30k(folder)


# --- DIV2K ---


def test_div2k_takes_as_many_crops_of_every_image(tmp_path):
    found = div2k_sr_3k(div2k(tmp_path), images=3, crops=30, size=32)
    assert len(found) == 30 and len(set(found.keys)) == 30
    for index, crop in enumerate(found.crops):
        with Image.open(tmp_path / "DIV2K_valid_HR" / crop.image) as image:
            whole = np.asarray(image)
        assert crop.x <= whole.shape[1] - 32 and crop.y <= whole.shape[0] - 32
        assert np.array_equal(found.read(index).pixels, whole[crop.y : crop.y + 32, crop.x : crop.x + 32])
        assert found.where(index).endswith(f"{crop.image} at {crop.x}, {crop.y}")
    assert sum(crop.image == "0801.png" for crop in found.crops) == 10
    assert len({crop.degradation_seed for crop in found.crops}) == 30
    assert len({(crop.x, crop.y) for crop in found.crops}) > 20
    assert found.manifest[0] == GOLDEN_CROP
    assert found.protocol == GOLDEN_DIV2K


def test_div2ks_folder_may_be_named_itself(tmp_path):
    div2k(tmp_path)
    options = {"images": 3, "crops": 6, "size": 32}
    assert div2k_sr_3k(tmp_path / "DIV2K_valid_HR", **options).manifest == div2k_sr_3k(tmp_path, **options).manifest


def test_what_does_not_fit_div2k_is_named(tmp_path):
    div2k(tmp_path)
    with pytest.raises(DataError, match=r"3 \.png files, and div2k-sr-3k takes the 100"):
        div2k_sr_3k(tmp_path)
    with pytest.raises(DataError, match=r"0801\.png: 60 x 48 pixels, smaller than a crop of 512"):
        div2k_sr_3k(tmp_path, images=3)
    (tmp_path / "DIV2K_valid_HR" / "0802.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"0802\.png: not an image"):
        div2k_sr_3k(tmp_path, images=3, crops=3, size=32)


# --- by name, and in tables ---


def test_protocols_are_named_with_a_folder(tmp_path):
    assert is_protocol("coco2014-30k:/data") and not is_protocol("coco/:x") and not is_protocol("folder")
    with pytest.raises(SpecError, match=r"unknown protocol 'coco'. Known: coco2014-30k, div2k-sr-3k"):
        open_protocol("coco:x")
    with pytest.raises(SpecError, match="say where its data lies, div2k-sr-3k:FOLDER"):
        open_protocol("div2k-sr-3k")
    with pytest.raises(DataError, match="takes 30,000"):
        open_protocol(f"coco2014-30k:{coco(tmp_path)}")


def test_only_coco_has_prompts(tmp_path, monkeypatch):
    from isocost.scoring import protocols

    monkeypatch.setitem(protocols.PROTOCOLS, "coco2014-30k", lambda folder: coco2014_30k(folder, count=5))
    monkeypatch.setitem(protocols.PROTOCOLS, "div2k-sr-3k", lambda folder: div2k_sr_3k(folder, 3, 6, 32))
    assert protocol_prompts(f"coco2014-30k:{coco(tmp_path / 'c')}") == tuple(coco2014_30k(tmp_path / "c", 5).prompts)
    with pytest.raises(SpecError, match="this protocol has no prompts"):
        protocol_prompts(f"div2k-sr-3k:{div2k(tmp_path / 'd')}")


def test_a_table_of_two_protocols_or_references_is_refused():
    row = {"metric": "fd[x]", "protocol": "coco2014-30k@12", "reference": "ab"}
    one_protocol([row, row, {"metric": "clip[x]", "protocol": "", "reference": float("nan")}])
    one_protocol([{"metric": "fd[x]"}, {"metric": "fd[x]"}])
    with pytest.raises(SpecError, match=r"fd\[x\]: scores by two protocols, 'coco2014-30k@12' and 'coco2014-30k@34'"):
        one_protocol([row, {**row, "protocol": "coco2014-30k@34"}])
    with pytest.raises(SpecError, match="'coco2014-30k@12' and no named protocol"):
        one_protocol([row, {**row, "protocol": ""}])
    with pytest.raises(SpecError, match="two references, 'ab' and 'cd'"):
        one_protocol([row, {**row, "reference": "cd"}])
