from __future__ import annotations

import functools
import http.server
import pickle
import threading
from pathlib import Path

import fsspec
import pytest
from tests.data.test_shards import foreign_tar, samples

from isocost.data import remote
from isocost.data.images import open_images
from isocost.data.shards import INDEX_SUFFIX, Shards, write_shards
from isocost.errors import DataError, SpecError


@pytest.fixture
def folder(tmp_path) -> Path:
    """25 samples in three shards."""
    write_shards(samples(25), tmp_path / "shards", "x", per_shard=10)
    return tmp_path / "shards"


@pytest.fixture
def uploaded(folder, bucket) -> str:
    """The same in a store, with their indexes."""
    for path in folder.iterdir():
        upload(path, f"{bucket}/{path.name}")
    return bucket


def upload(path: Path, url: str) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(path.read_bytes())


def delete(url: str) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    fs.rm(path)


def tars_in(cached) -> list[str]:
    return sorted(path.name.partition("-")[2] for path in cached._files())


@pytest.mark.parametrize("form", ["{}", "{}/", "{}/x-{{00000..00002}}.tar"])
def test_a_remote_folder_reads_as_a_local_one(folder, uploaded, cached, form):
    here, there = Shards(folder), Shards(form.format(uploaded))
    assert (there.keys, there.digest, there.sizes) == (here.keys, here.digest, [10, 10, 5])
    assert tars_in(cached) == [], "indexes alone were read"
    assert [there[i] for i in range(25)] == [here[i] for i in range(25)]
    assert there.where(24) == f"{uploaded}/x-00002.tar: key 'a/0024'"


def test_only_the_shards_that_are_read_are_fetched(uploaded, cached):
    shards = Shards(uploaded)
    shards[11]
    assert tars_in(cached) == ["x-00001.tar"]
    assert pickle.loads(pickle.dumps(shards))[12] == shards[12]


def test_an_index_that_is_missing_is_made_once(folder, uploaded, cached, monkeypatch):
    delete(f"{uploaded}/x-00001.tar{INDEX_SUFFIX}")
    assert Shards(uploaded).digest == Shards(folder).digest
    assert tars_in(cached) == ["x-00001.tar"]
    for path in cached._files():
        path.unlink()
    assert Shards(uploaded).keys[10] == "a/0010" and tars_in(cached) == [], "the index is kept with the cache"


def test_an_index_of_another_tar_is_not_believed(folder, uploaded, cached):
    upload(folder / f"x-00002.tar{INDEX_SUFFIX}", f"{uploaded}/x-00001.tar{INDEX_SUFFIX}")
    assert Shards(uploaded).digest == Shards(folder).digest


def test_a_damaged_remote_tar_is_named_by_its_url(tmp_path, bucket, cached):
    path = foreign_tar(tmp_path / "cut.tar", [("k.txt", b"one"), ("l.txt", b"two")])
    path.write_bytes(path.read_bytes()[:1300])
    upload(path, f"{bucket}/cut.tar")
    with pytest.raises(DataError, match=rf"^{bucket}/cut\.tar: .*truncated after key 'k'"):
        Shards(f"{bucket}/cut.tar")


def test_a_flipped_bit_is_found_on_the_way_here(folder, uploaded):
    data = bytearray((folder / "x-00000.tar").read_bytes())
    data[700] ^= 1
    with fsspec.open(f"{uploaded}/x-00000.tar", "wb") as file:
        file.write(bytes(data))
    with pytest.raises(DataError, match=rf"{uploaded}/x-00000\.tar: its bytes are not those that were indexed"):
        Shards(uploaded)[0]


def test_verify_finds_a_bit_that_flipped_in_the_cache(uploaded, cached):
    shards = Shards(uploaded)
    shards.verify()
    (path,) = [path for path in cached._files() if path.name.endswith("x-00001.tar")]
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{uploaded}/x-00001\.tar: its copy in .*cache was damaged, and is fetched"):
        shards.verify()
    Shards(uploaded).verify()


def test_a_shard_that_is_rewritten_while_it_is_read_from(folder, uploaded, cached):
    shards = Shards(uploaded)
    upload(folder / "x-00002.tar", f"{uploaded}/x-00001.tar")
    with pytest.raises(
        DataError, match=rf"{uploaded}/x-00001\.tar: \d+ bytes arrived, not \d+: truncated, or rewritten"
    ):
        shards[10]


def test_shards_that_are_missing(uploaded, bucket):
    delete(f"{uploaded}/x-00001.tar")
    with pytest.raises(DataError, match=rf"{uploaded}/x-00001\.tar: this shard is missing"):
        Shards(uploaded)
    with pytest.raises(DataError, match=rf"{uploaded}/x-00001\.tar: missing: no such file"):
        Shards(uploaded + "/x-{00000..00002}.tar")
    with pytest.raises(DataError, match="memory://nowhere: missing: no such file or folder"):
        Shards("memory://nowhere")


def test_stores_that_nothing_here_can_read(monkeypatch):
    with pytest.raises(SpecError, match=r"^abc://bucket/x\.tar: Protocol not known: abc"):
        Shards("abc://bucket/x.tar")

    def absent(_):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", absent)
    with pytest.raises(SpecError, match=r"^s3://bucket/x\.tar: Install s3fs to access S3 \(pip install 'isocost\[rem"):
        Shards("s3://bucket/x.tar")


def test_images_of_local_and_remote_shards_in_one_sequence(folder, uploaded, tmp_path):
    mixed = open_images([f"{uploaded}/x-00000.tar", str(folder / "x-00001.tar"), f"{uploaded}/x-00002.tar"])
    plain = open_images([folder])
    assert mixed.captions == plain.captions and mixed.digest == plain.digest
    assert (mixed[3].image == plain[3].image).all() and (mixed[24].image == plain[24].image).all()


def test_shards_over_file_urls(folder, cached):
    assert Shards(f"file://{folder}")[13] == Shards(folder)[13] and tars_in(cached) == ["x-00001.tar"]


def test_shards_over_http(folder, cached):
    pytest.importorskip("aiohttp", reason="fsspec's client for http is in the extra 'remote'")
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        for place in (base, base + "/x-{00000..00002}.tar"):
            shards = Shards(place)
            assert shards.digest == Shards(folder).digest and shards[24] == Shards(folder)[24]
        with pytest.raises(DataError, match=rf"{base}/x-00003\.tar: missing"):
            Shards(f"{base}/x-00003.tar")
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_ranges_of_names():
    assert remote.expand("s3://b/x-{08..11}.tar") == [f"s3://b/x-{number}.tar" for number in ("08", "09", "10", "11")]
    assert remote.expand("a/{0..1}/{2..3}.tar") == [Path(f"a/{i}/{j}.tar") for j in (2, 3) for i in (0, 1)]
    assert remote.expand("plain.tar") == [Path("plain.tar")] and remote.expand("s3://b/") == ["s3://b"]
    with pytest.raises(SpecError, match="counts down"):
        remote.expand("x-{3..1}.tar")
