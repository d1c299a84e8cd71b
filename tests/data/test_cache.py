from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import fsspec
import pytest

from isocost.data import cache as module
from isocost.data import remote
from isocost.data.cache import CacheFull, OpenFiles, RemoteFile, the_cache
from isocost.errors import DataError, SpecError


def put(url: str, data: bytes) -> RemoteFile:
    with fsspec.open(url, "wb") as file:
        file.write(data)
    return RemoteFile(*remote.find(url))


@pytest.fixture
def downloads(monkeypatch) -> list[str]:
    """URLs fetched, in order."""
    fetched, real = [], remote.download

    def counted(url: str, path: Path) -> None:
        fetched.append(url)
        real(url, path)

    monkeypatch.setattr(remote, "download", counted)
    return fetched


def held_files(cached) -> set[str]:
    """What the cache holds, by the names that the files had."""
    return {path.name.partition("-")[2] for path in cached._files()}


def test_a_file_is_fetched_whole_and_once(cached, bucket, downloads):
    file = put(f"{bucket}/a.tar", b"content")
    for _ in range(3):
        assert cached.hold(file).path.read_bytes() == b"content"
    assert downloads == [file.url] and held_files(cached) == {"a.tar"}
    assert not [path for path in cached.folder.iterdir() if path.suffix in (".part", ".reserved")]


def test_another_version_is_another_file(cached, bucket, downloads):
    old = put(f"{bucket}/a.tar", b"old")
    cached.hold(old)
    new = put(f"{bucket}/a.tar", b"new")
    assert new.version != old.version
    assert cached.hold(new).path.read_bytes() == b"new"
    assert cached.hold(old).path.read_bytes() == b"old" and len(downloads) == 2


def test_bytes_that_are_not_the_expected_ones_never_get_in(cached, bucket):
    file = put(f"{bucket}/a.tar", b"content")
    with pytest.raises(DataError, match=r"a\.tar: 7 bytes arrived, not 9: truncated, or rewritten"):
        cached.hold(file._replace(size=9))
    with pytest.raises(DataError, match=r"a\.tar: its bytes are not those that were indexed"):
        cached.hold(file._replace(sha256="0" * 64))
    assert held_files(cached) == set()


def test_the_least_recently_used_goes_and_never_one_in_use(cached, bucket):
    files = {name: put(f"{bucket}/{name}", bytes(300_000)) for name in "abcd"}
    in_use = cached.hold(files["a"])
    for name in "bcb":
        cached.hold(files[name])
    os.utime(cached.folder / files["b"].name, (10**9, 10**9))  # used before c, whatever the clock's resolution
    cached.hold(files["d"])
    assert held_files(cached) == {"a", "c", "d"}
    assert in_use.path.stat().st_size == 300_000
    with pytest.raises(DataError, match=r"big: 0\.002 GB, and the cache may hold 0\.001: raise \$ISOCOST_CACHE_GB"):
        cached.hold(put(f"{bucket}/big", bytes(2_000_000)))


def test_a_reader_lets_go_of_its_own_files_before_the_cache_is_called_full(cached, bucket, monkeypatch):
    files = {number: put(f"{bucket}/{number}", bytes([number]) * 400_000) for number in range(5)}
    opened = OpenFiles(files, Path.read_bytes)
    for number in (0, 1, 2, 3, 4, 0):
        assert opened[number] == bytes([number]) * 400_000
    monkeypatch.setattr(module, "SECONDS_FOR_ROOM", 0.01)
    others = [cached.hold(files[number]) for number in (0, 4)]
    with pytest.raises(
        CacheFull, match=r"0\.0008 GB are in use, .*/1 needs 0\.0004 more, and the cache may hold 0\.001"
    ):
        opened[1]
    del others
    assert opened[1] == bytes([1]) * 400_000


def test_what_a_process_that_died_left_is_cleared(cached, bucket):
    file = put(f"{bucket}/a", bytes(600_000))
    (cached.folder / "gone.part").write_bytes(b"half")
    (cached.folder / "gone.reserved").touch()
    os.truncate(cached.folder / "gone.reserved", 900_000)
    cached.hold(file)
    assert held_files(cached) == {"a"} and not list(cached.folder.glob("gone*[!k]"))


def test_a_full_disk(cached, bucket, monkeypatch, downloads):
    file = put(f"{bucket}/a.tar", b"content")

    def full(url: str, path: Path) -> None:
        path.write_bytes(b"con")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(remote, "download", full)
        with pytest.raises(
            DataError, match=r"cache: no room on this disk for memory://.*a\.tar: make room, or set \$ISO"
        ):
            cached.hold(file)
    assert held_files(cached) == set() and cached.hold(file).path.read_bytes() == b"content"
    # A disk that fills up for other reasons takes what is not in use first.
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 3}))
    cached.hold(put(f"{bucket}/b.tar", b"12345678"))
    assert held_files(cached) == {"b.tar"}


def test_a_full_disk_is_told_apart_from_a_store_that_fails(cached, bucket, monkeypatch):
    file, (fs, _) = put(f"{bucket}/a.tar", b"content"), remote._file_system(bucket)

    def fail(error: OSError) -> None:
        def raises(*_: object) -> None:
            raise error

        monkeypatch.setattr(type(fs), "get_file", raises)

    fail(OSError(28, "No space left on device"))
    with pytest.raises(DataError, match="no room on this disk"):
        cached.hold(file)
    fail(ConnectionResetError("reset by peer"))
    with pytest.raises(DataError, match=r"^memory://.*a\.tar: cannot be read: reset by peer"):
        cached.hold(file)


def test_a_store_that_fails_now_and_then_is_asked_again(cached, bucket, monkeypatch):
    file, failures = put(f"{bucket}/a.tar", b"content"), [ConnectionError("one"), TimeoutError()]
    monkeypatch.setattr(remote, "SECONDS_BETWEEN_TRIES", (0, 0))
    fs, _ = remote._file_system(bucket)
    real = type(fs).get_file

    def flaky(self, *args):
        if failures:
            raise failures.pop()
        return real(self, *args)

    monkeypatch.setattr(type(fs), "get_file", flaky)
    assert cached.hold(file).path.read_bytes() == b"content" and not failures


def test_threads_fetch_one_file_once(cached, bucket, downloads):
    file, found = put(f"{bucket}/a.tar", bytes(500_000)), []
    threads = [threading.Thread(target=lambda: found.append(cached.hold(file).path.stat().st_size)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [500_000] * 8 and len(downloads) == 1


def _hold_in_turn(folder: str, source: str, rounds: int) -> None:
    os.environ["ISOCOST_CACHE"], os.environ["ISOCOST_CACHE_GB"] = folder, "0.001"
    files = {number: RemoteFile(*remote.find(f"file://{source}/{number}")) for number in range(5)}
    for turn in range(rounds):
        opened = OpenFiles(files, Path.read_bytes)
        for number in range(5):
            place = (number + turn) % 5
            assert opened[place] == bytes([place]) * 300_000


def test_processes_share_a_cache_that_is_too_small_for_all(cached, tmp_path):
    """Each evicts what the others fetched; nobody ever reads a file that is half there, or of another shard."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(5):
        (source / str(number)).write_bytes(bytes([number]) * 300_000)
    context = multiprocessing.get_context("spawn")
    arguments = (str(cached.folder), str(source), 6)
    processes = [context.Process(target=_hold_in_turn, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    _hold_in_turn(*arguments)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sum(path.stat().st_size for path in cached._files()) <= cached.limit


def test_prefetch_brings_files_before_they_are_asked_for(cached, bucket, downloads):
    files = [put(f"{bucket}/{name}", b"x") for name in "abc"]
    cached.prefetch([*files, RemoteFile(f"{bucket}/missing", 1, "")])
    deadline = threading.Event()
    while cached._queued and not deadline.wait(0.01):
        pass
    assert held_files(cached) == {"a", "b", "c"}
    cached.prefetch(files)
    for file in files:
        cached.hold(file)
    assert sorted(downloads) == sorted([*(file.url for file in files), f"{bucket}/missing"])


def test_settings_that_are_wrong(cached, tmp_path, monkeypatch):
    monkeypatch.setenv("ISOCOST_CACHE_GB", "much")
    with pytest.raises(SpecError, match="ISOCOST_CACHE_GB=much: expected a number"):
        the_cache()
    monkeypatch.setenv("ISOCOST_CACHE_GB", "1")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOCOST_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"file: cannot keep remote files here: .*set \$ISOCOST_CACHE"):
        the_cache()
