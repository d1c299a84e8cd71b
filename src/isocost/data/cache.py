"""Remote files on this machine's disk: each fetched whole once, checked, shared by all processes, of bounded size.

FOLDER/NAME              a file, whole: it appears by rename, after its size and digest were checked
FOLDER/NAME.lock         held shared by whoever reads NAME, exclusively by whoever fetches or evicts it
FOLDER/NAME.part         being fetched
FOLDER/NAME.reserved     an empty file as long as NAME will be, so that several fetches at once keep to the limit
FOLDER/indexes/          indexes of tars that have none beside them (`isocost.data.shards`); never evicted

FOLDER is $ISOCOST_CACHE, by default ~/.cache/isocost/shards; it may hold $ISOCOST_CACHE_GB (100) of 10^9 bytes.
Locks are the system's (flock), which lets go when a process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import functools
import os
import queue
import shutil
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from isocost.data import remote
from isocost.errors import DataError, SpecError
from isocost.files import file_digest, sync
from isocost.specs import digest_of

T = TypeVar("T")
DEFAULT_GB = 100.0
FETCHES_AT_ONCE = 4
MOST_HELD = 256  # files that one reader holds at once, each an open file of the process
SECONDS_FOR_ROOM = 60


class RemoteFile(NamedTuple):
    """A remote file and what is known of its bytes. `version`: an ETag, a time, a digest: what changes with them."""

    url: str
    size: int | None
    version: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """What it is called in the cache: another version is another file."""
        return digest_of([self.url, self.size, self.version])[:32] + "-" + self.url.rpartition("/")[2][-60:]


class CacheFull(DataError):
    """Everything in the cache is in use."""


class Held:
    """A file of the cache that stays there while this object lives."""

    def __init__(self, path: Path, lock: int):
        self.path = path
        self._finalizer = weakref.finalize(self, os.close, lock)


class Cache:
    """A folder of remote files. limit: bytes that it may hold. Any number of processes and threads may share it."""

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self._queue: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        self._queued: set[str] = set()
        self._threads: list[threading.Thread] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{folder}: cannot keep remote files here: {error.strerror}: set $ISOCOST_CACHE to a folder"
            ) from None

    def hold(self, file: RemoteFile) -> Held:
        """The file on this machine's disk, fetched unless it is there.

        Raises `DataError` naming the URL where it cannot be read or is not what it should be, and where there is no
        room on the disk; `CacheFull` where all that is in the cache is in use.
        """
        path = self.folder / file.name
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if path.is_file():
                    os.utime(path)  # the time of its last use
                    return Held(path, lock)
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.is_file():  # or else another process fetched it while this one waited
                    self._fetch(file, path)
        except BaseException:
            os.close(lock)
            raise

    def verify(self, file: RemoteFile) -> None:
        """Read a file whole. Raises `DataError` where its bytes changed since they came, and forgets them: it is
        fetched again when it is next asked for, and who reads it now reads on."""
        if file_digest(self.hold(file).path) != file.sha256:
            (self.folder / file.name).unlink(missing_ok=True)
            raise DataError(f"{file.url}: its copy in {self.folder} was damaged, and is fetched again when needed")

    def prefetch(self, files: Iterable[RemoteFile]) -> None:
        """Fetch files in the background, in this order. What fails here is said when the file is asked for."""
        for file in files:
            if file.name not in self._queued and not (self.folder / file.name).is_file():
                self._queued.add(file.name)
                self._queue.put(file)
        while self._queued and len(self._threads) < FETCHES_AT_ONCE:
            # Daemons: a process that ends does not wait for what it will not read.
            self._threads.append(threading.Thread(target=self._work, name="isocost-prefetch", daemon=True))
            self._threads[-1].start()

    def _work(self) -> None:
        while True:
            file = self._queue.get()
            try:
                self.hold(file)
            except (DataError, SpecError, OSError):
                continue  # `hold` says it again to whoever needs the file
            finally:
                self._queued.discard(file.name)

    # --- fetching ---

    def _fetch(self, file: RemoteFile, path: Path) -> None:
        """Bring a file here; its lock is held."""
        part, reserved = (path.with_name(path.name + end) for end in (".part", ".reserved"))
        try:
            with self._only_one():
                self._make_room(file)
                reserved.touch()
                os.truncate(reserved, file.size or 0)
            remote.download(file.url, part)
            _check(file, part)
            sync(part)
            os.replace(part, path)
        except OSError as error:
            if error.errno not in remote.NO_ROOM:
                raise
            raise DataError(
                f"{self.folder}: no room on this disk for {file.url}: make room, or set $ISOCOST_CACHE to another"
            ) from None
        finally:
            part.unlink(missing_ok=True)
            reserved.unlink(missing_ok=True)

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        """One process at a time counts and evicts."""
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_room(self, file: RemoteFile) -> None:
        """Evict what was not used for longest, until the file fits into the limit and onto the disk."""
        size = file.size or 0
        if size > self.limit:
            raise DataError(
                f"{file.url}: {size / 1e9:.3g} GB, and the cache may hold {self.limit / 1e9:.3g}: "
                "raise $ISOCOST_CACHE_GB"
            )
        files = self._files()
        total = sum(status.st_size for status in files.values())
        for path in sorted(files, key=lambda path: files[path].st_mtime_ns):
            if total + size <= self.limit and size <= shutil.disk_usage(self.folder).free:
                return
            if self._evict(path):
                total -= files[path].st_size
        if total + size > self.limit:
            raise CacheFull(
                f"{self.folder}: {total / 1e9:.3g} GB are in use, {file.url} needs {size / 1e9:.3g} more, and the "
                f"cache may hold {self.limit / 1e9:.3g}: raise $ISOCOST_CACHE_GB"
            )

    def _files(self) -> dict[Path, os.stat_result]:
        """What takes up room: whole files, and those that are on their way."""
        found = {}
        for path in self.folder.glob("[!.]*"):
            if path.suffix not in (".lock", ".part") and path.is_file():
                with suppress(FileNotFoundError):  # it arrived, or was evicted, in between
                    found[path] = path.stat()
        return found

    def _evict(self, path: Path) -> bool:
        """Delete a file (or what a process that died left of it), unless someone uses it."""
        whole = path.with_suffix("") if path.suffix == ".reserved" else path
        lock = os.open(whole.with_name(whole.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            for end in ("", ".reserved", ".part"):
                whole.with_name(whole.name + end).unlink(missing_ok=True)
            return True
        finally:
            os.close(lock)


def _check(file: RemoteFile, path: Path) -> None:
    """Raises `DataError` unless the bytes at `path` are those that are expected of the file."""
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise DataError(f"{file.url}: {size} bytes arrived, not {file.size}: truncated, or rewritten")
    if file.sha256 is not None and file_digest(path) != file.sha256:
        raise DataError(f"{file.url}: its bytes are not those that were indexed: damaged, or rewritten")


def the_cache() -> Cache:
    """The cache that the environment names. Raises `SpecError` for a limit that is no number."""
    given = os.environ.get("ISOCOST_CACHE_GB", str(DEFAULT_GB))
    try:
        limit = int(float(given) * 1e9)
    except ValueError:
        raise SpecError(f"ISOCOST_CACHE_GB={given}: expected a number of gigabytes.") from None
    folder = os.environ.get("ISOCOST_CACHE") or Path.home() / ".cache" / "isocost" / "shards"
    return _cache(Path(folder), limit)


_cache = functools.lru_cache(Cache)


# --- a reader's open files ---


class OpenFiles(Generic[T]):
    """Remote files by number, opened when asked for. The least recently used are let go where there are too many, or
    where the cache has no room left otherwise. Threads may share it. Raises as `Cache.hold`."""

    def __init__(self, files: Mapping[int, RemoteFile], opener: Callable[[Path], T]):
        self.files, self._opener = files, opener
        self._open: OrderedDict[int, tuple[T, Held]] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> T:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number][0]
        held = self._hold(self.files[number])  # may take long: other threads read on
        opened = self._opener(held.path)
        with self._lock:
            self._open[number] = opened, held
            while len(self._open) > MOST_HELD:
                self._open.popitem(last=False)
        return opened

    def prefetch(self, numbers: Iterable[int]) -> None:
        """Fetch those of `numbers` that are remote in the background, in this order."""
        files = [self.files[number] for number in numbers if number in self.files]
        if files:
            the_cache().prefetch(files)

    def _hold(self, file: RemoteFile) -> Held:
        """Hold a file, at the cost of others of this reader; where other readers use all there is, wait for them."""
        deadline = time.monotonic() + SECONDS_FOR_ROOM
        while True:
            try:
                return the_cache().hold(file)
            except CacheFull:
                with self._lock:
                    if self._open:
                        self._open.popitem(last=False)
                        continue
                if time.monotonic() > deadline:
                    raise
                time.sleep(SECONDS_FOR_ROOM / 600)  # this reader holds nothing now: two never wait for each other

    def __reduce__(self) -> tuple:
        return OpenFiles, (self.files, self._opener)
