from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from isocost.data.images import decode_image, open_images
from isocost.data.shards import Shards, write_shards
from isocost.errors import DataError


def png(array: np.ndarray, mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, "png", **options)
    return buffer.getvalue()


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def samples(count: int) -> list[dict]:
    return [{"__key__": f"a/{i:04d}", "png": png(picture(i)), "txt": f"picture {i}"} for i in range(count)]


def foreign_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_round_trip_in_any_order(tmp_path):
    written = samples(25)
    paths = write_shards(written, tmp_path, "train", per_shard=10)
    assert [path.name for path in paths] == ["train-00000.tar", "train-00001.tar", "train-00002.tar"]
    shards = Shards(tmp_path)
    assert shards.keys == [sample["__key__"] for sample in written]
    for i in [*np.random.default_rng(0).permutation(25).tolist(), -1]:
        assert shards[i] == {"png": written[i]["png"], "txt": written[i]["txt"].encode()}
    with pytest.raises(IndexError):
        shards[25]


def test_tars_are_deterministic_and_readable_by_tarfile(tmp_path):
    a = write_shards(samples(3), tmp_path / "a", "x")[0]
    b = write_shards([dict(reversed(s.items())) for s in samples(3)], tmp_path / "b", "x")[0]
    assert a.read_bytes() == b.read_bytes()
    assert Shards([a]).digest == Shards([b]).digest != Shards(write_shards(samples(2), tmp_path / "c", "x")).digest
    with tarfile.open(a) as archive:
        members = archive.getmembers()
        assert {m.mtime for m in members} == {0} and members[1].name == "a/0000.txt"
        assert archive.extractfile(members[1]).read() == b"picture 0"


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text("abcé/_-", min_size=1, max_size=130).filter(lambda k: "//" not in k and k.strip("/") == k),
        st.binary(max_size=1030),
        max_size=6,
    )
)
def test_any_payload_and_long_names(tmp_path_factory, values):
    folder = tmp_path_factory.mktemp("any")
    paths = write_shards([{"__key__": k, "bin": v} for k, v in values.items()], folder, "x", per_shard=4)
    for path in paths:
        path.with_name(path.name + ".index.json").unlink()
    if values:
        found = Shards(folder)
        assert {key: found[i]["bin"] for i, key in enumerate(found.keys)} == values


def test_index_is_rebuilt_when_the_tar_is_newer_or_the_index_is_damaged(tmp_path):
    tar = foreign_tar(tmp_path / "x.tar", [("./k.txt", b"one")])
    assert Shards(tar)[0] == {"txt": b"one"}
    index = tmp_path / "x.tar.index.json"
    foreign_tar(tar, [("k.txt", b"two")])
    os.utime(tar, ns=(0, index.stat().st_mtime_ns + 1))
    assert Shards(tar)[0] == {"txt": b"two"}
    index.write_text("{")
    os.utime(tar, ns=(0, 0))
    assert Shards(tar)[0] == {"txt": b"two"}


def test_a_folder_that_cannot_be_written_is_indexed_in_memory(tmp_path, monkeypatch):
    tar = foreign_tar(tmp_path / "x.tar", [("k.txt", b"one")])

    def refuse(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr("isocost.data.shards._write_index", refuse)
    assert Shards(tar)[0] == {"txt": b"one"}
    assert not (tmp_path / "x.tar.index.json").exists()


def test_pickles_without_its_memory_maps(tmp_path):
    shards = Shards(write_shards(samples(3), tmp_path, "x"))
    assert shards[1] == pickle.loads(pickle.dumps(shards))[1]


@pytest.mark.parametrize("cut", [1, 600, 1024, 5000])
def test_truncated_tar(tmp_path, cut):
    tar = write_shards(samples(9), tmp_path, "x")[0]
    (tmp_path / "x-00000.tar.index.json").unlink()
    tar.write_bytes(tar.read_bytes()[: -1024 - cut])
    with pytest.raises(DataError, match=r"x-00000\.tar: .*after key 'a/000\d'.*|x-00000\.tar.*truncated"):
        Shards(tmp_path)


def test_truncated_after_indexing(tmp_path):
    tar = write_shards(samples(9), tmp_path, "x")[0]
    shards = Shards(tmp_path)
    tar.write_bytes(tar.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"x-00000\.tar.*truncated"):
        shards[8]


def test_missing_shards(tmp_path):
    paths = write_shards(samples(9), tmp_path, "x", per_shard=3)
    paths[1].unlink()
    with pytest.raises(DataError, match=r"x-00001\.tar: this shard is missing"):
        Shards(tmp_path)
    with pytest.raises(DataError, match=r"x-00001\.tar: this shard is missing"):
        Shards(paths)


def test_verify_finds_one_changed_byte(tmp_path):
    tar = write_shards(samples(3), tmp_path, "x")[0]
    shards = Shards(tmp_path)
    shards.verify()
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DataError, match=r"x-00000\.tar"):
        shards.verify()


@pytest.mark.parametrize("name", ["../k.txt", "/etc/k.txt", "a/../../k.txt"])
def test_unsafe_member_paths(tmp_path, name):
    with pytest.raises(DataError, match=r"x\.tar: member '.*' points outside"):
        Shards(foreign_tar(tmp_path / "x.tar", [("ok.txt", b""), (name, b"")]))


def test_links_names_without_extension_and_compressed_tars(tmp_path):
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        info = tarfile.TarInfo("k.txt")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match=r"l\.tar: member 'k\.txt' is a link"):
        Shards(tmp_path / "l.tar")
    with pytest.raises(DataError, match="no extension"):
        Shards(foreign_tar(tmp_path / "n.tar", [("LICENSE", b"")]))
    with tarfile.open(tmp_path / "z.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("k.txt"))
    with pytest.raises(DataError, match=r"z\.tar: not a plain tar"):
        Shards(tmp_path / "z.tar")


def test_duplicate_keys(tmp_path):
    with pytest.raises(DataError, match=r"d\.tar: key 'k' has two members '\.txt'"):
        Shards(foreign_tar(tmp_path / "d.tar", [("k.txt", b"1"), ("./k.txt", b"2")]))
    one = foreign_tar(tmp_path / "one.tar", [("k.txt", b"1")])
    two = foreign_tar(tmp_path / "two.tar", [("k.txt", b"2")])
    with pytest.raises(DataError, match=r"two\.tar: key 'k' is also in .*one\.tar"):
        Shards([one, two])
    with pytest.raises(DataError, match="'a' was written before"):
        write_shards([{"__key__": "a", "txt": ""}] * 2, tmp_path, "x")
    assert not list(tmp_path.glob("x-*")) and not list(tmp_path.glob(".*"))


def test_webdataset_extension_is_all_after_the_first_dot(tmp_path):
    shards = Shards(foreign_tar(tmp_path / "x.tar", [("v1.0/k.seg.png", b"1"), ("v1.0/k.txt", b"2")]))
    assert shards.keys == ["v1.0/k"] and shards[0] == {"seg.png": b"1", "txt": b"2"}


def test_images_of_tars_and_folders_in_one_sequence(tmp_path):
    tar = write_shards(samples(3), tmp_path, "x")[0]
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, name in enumerate(["t", "j", "m"]):
        Image.fromarray(picture(10 + i)).save(folder / f"{name}.png")
    (folder / "t.txt").write_text("from txt\n")
    (folder / "j.json").write_text(json.dumps({"caption": "from json", "likes": 3}))
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "m.png", "text": "from metadata", "id": 7}) + "\n")
    images = open_images([str(tar), str(folder)])
    assert images.captions == ["picture 0", "picture 1", "picture 2", "from json", "from metadata", "from txt"]
    assert images.keys[2:] == ["a/0002", "j", "m", "t"]
    np.testing.assert_array_equal(images[1].image, picture(1))
    np.testing.assert_array_equal(images[-1].image, picture(10))
    assert images[3].metadata == {"caption": "from json", "likes": 3} and images[4].metadata["id"] == 7


def test_captions_are_read_without_decoding_and_required_by_default(tmp_path):
    tar = write_shards([{"__key__": "k", "png": b"not a png", "txt": "hello"}], tmp_path, "x")[0]
    images = open_images([tar])
    assert images.captions == ["hello"]
    with pytest.raises(DataError, match=r"x-00000\.tar: key 'k': not an image"):
        images[0]
    bare = write_shards([{"__key__": "k", "png": png(picture(0))}], tmp_path, "bare")[0]
    with pytest.raises(DataError, match=r"bare-00000\.tar: key 'k' has no caption"):
        open_images([bare])[0]
    assert open_images([bare], captions_required=False)[0].caption == ""


def test_files_that_are_not_images_are_named(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    with pytest.raises(DataError, match="no images"):
        open_images([folder])
    (folder / "a.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.heic: not an image"):
        open_images([folder])
    (folder / "a.heic").rename(folder / "a.jpg")
    (folder / "a.txt").write_text("c")
    with pytest.raises(DataError, match=r"a\.jpg: not an image"):
        open_images([folder])[0]
    whole = png(np.zeros((64, 64, 3), np.uint8) + picture(0)[0, 0])
    (folder / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.jpg: not an image"):
        open_images([folder])[0]
    (folder / "metadata.jsonl").write_text('{"file_name": "gone.png"}')
    with pytest.raises(DataError, match=r"metadata\.jsonl: names 'gone\.png'"):
        open_images([folder])


def test_folder_digest_is_of_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(picture(0)).save(tmp_path / name / "k.png")
        (tmp_path / name / "k.txt").write_text("same")
    assert open_images([tmp_path / "a"]).digest == open_images([tmp_path / "b"]).digest
    before = open_images([tmp_path / "b"]).digest
    (tmp_path / "b" / "k.txt").write_text("other")
    assert open_images([tmp_path / "b"]).digest != before


def test_decoding_rules():
    rgb = picture(3)
    grey = rgb[..., 0]
    np.testing.assert_array_equal(decode_image(png(grey), "x"), np.repeat(grey[..., None], 3, 2))

    wide = np.linspace(0, 65535, 35).round().astype(np.uint16).reshape(5, 7)
    np.testing.assert_array_equal(decode_image(png(wide), "x")[..., 1], np.round(wide / 257))

    alpha = np.random.default_rng(1).integers(0, 256, (5, 7, 1), dtype=np.uint8)
    expected = (rgb * (alpha / 255) + 255 * (1 - alpha / 255)).round()
    composed = decode_image(png(np.concatenate([rgb, alpha], 2)), "x")
    assert composed.shape == (5, 7, 3) and np.abs(composed - expected).max() <= 1

    palette = Image.fromarray(rgb).quantize(4)
    buffer = io.BytesIO()
    palette.save(buffer, "png")
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "x"), np.array(palette.convert("RGB")))
    buffer = io.BytesIO()
    palette.save(buffer, "png", transparency=palette.getpixel((0, 0)))
    assert decode_image(buffer.getvalue(), "x")[0, 0].tolist() == [255, 255, 255]

    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter by the camera
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "png", exif=exif)
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "x"), np.rot90(rgb, -1))
