"""Files that are not on this machine: in any store that fsspec knows, named by URL (s3://, gs://, https://, ...).

Credentials and endpoints are the store's own business, by its usual environment variables, or fsspec's
(`FSSPEC_S3_ENDPOINT_URL`). A store's client is a package of its own: the extra `remote` installs the common ones.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from isocost.errors import DataError, SpecError

T = TypeVar("T")
Place = str | Path
"""A path of this machine, or a URL. Never make a `Path` of a URL: that merges its slashes."""

SECONDS_BETWEEN_TRIES = (0.5, 2.0, 8.0)
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # trying again changes nothing
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
VERSION_FIELDS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "Last-Modified", "last_modified", "mtime")


class Found(NamedTuple):
    """A remote file as its store describes it. `size` in bytes, None where the store does not tell; `version`: an ETag
    or a time, "" where there is none."""

    url: str
    size: int | None
    version: str


def is_url(place: Place) -> bool:
    return "://" in str(place)


def place_of(place: Place) -> Place:
    """A URL as it is, without a slash at its end; anything else as a `Path`."""
    return str(place).rstrip("/") if is_url(place) else Path(place)


def beside(place: Place, name: str) -> Place:
    """The file `name` inside the folder `place`."""
    return f"{str(place).rstrip('/')}/{name}" if is_url(place) else Path(place) / name


def expand(place: Place) -> list[Place]:
    """`x-{000..002}.tar` -> the three places, as in a shell; anything else as it is."""
    match = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", str(place))
    if match is None:
        return [place_of(place)]
    head, first, last, tail = match.groups()
    if int(last) < int(first):
        raise SpecError(f"{place}: {{{first}..{last}}} counts down: give the lower number first.")
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [each for number in numbers for each in expand(f"{head}{number}{tail}")]


# --- asking a store ---


def find(url: str) -> Found:
    """What a store says of one file. Raises `DataError` where there is none, or the store cannot be reached."""
    info = _ask(url, lambda fs, path: fs.info(path))
    if info["type"] != "file":
        raise DataError(f"{url}: not a file")
    return _found(url, info)


def files_in(url: str) -> list[Found]:
    """The files directly in a remote folder, by name. Raises `DataError` where there is no such folder."""

    def ask(fs: Any, path: str) -> list[Found]:
        files = [entry for entry in fs.ls(path, detail=True) if entry["type"] == "file"]
        return [_found(f"{url}/{entry['name'].rpartition('/')[2]}", entry) for entry in files]

    return sorted(_ask(url, ask))


def read(url: str) -> bytes | None:
    """A small file, whole; None where there is none."""
    try:
        return _ask(url, lambda fs, path: fs.cat_file(path))
    except MissingFile:
        return None


def download(url: str, path: Path) -> None:
    """Copy a remote file to `path`. Raises `DataError` naming the URL; `OSError` where this machine's disk is full."""
    _ask(url, lambda fs, remote: fs.get_file(remote, str(path)))


class MissingFile(DataError):
    """No such file in a store that answers."""


def _ask(url: str, ask: Callable[[Any, str], T]) -> T:
    """`ask(file system, path)`, some times over where the store fails to answer."""
    fs, path = _file_system(url)
    for wait in (*SECONDS_BETWEEN_TRIES, None):
        try:
            return ask(fs, path)
        except FileNotFoundError:
            raise MissingFile(f"{url}: missing: no such file or folder there") from None
        except Exception as error:  # every store's client has exceptions of its own
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise
            if wait is None or isinstance(error, FINAL):
                what = " ".join(str(error).split()) or type(error).__name__
                raise DataError(f"{url}: cannot be read: {what}") from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _file_system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise SpecError(f"{url}: {error} (pip install 'isocost[remote]' brings the common ones)") from None
    except ValueError as error:
        raise SpecError(f"{url}: {error}") from None


def _found(url: str, info: dict[str, Any]) -> Found:
    size = info.get("size")
    version = next((info[name] for name in VERSION_FIELDS if info.get(name)), info.get("created", ""))
    return Found(url, None if size is None else int(size), _as_text(version))


def _as_text(version: Any) -> str:
    """One text for one moment, whichever way a store gives it."""
    if isinstance(version, datetime):
        version = version.timestamp()
    return f"{version:.3f}" if isinstance(version, float) else str(version)
