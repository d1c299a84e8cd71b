"""Errors that a user can act on. Each says what was wrong, where, and what to do; the CLI prints it in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class IsocostError(Exception):
    """Base of every error this package raises on purpose. `exit_code` is what the CLI exits with."""

    exit_code = 1


class SpecError(IsocostError):
    """A wrong field, value, name or flag: nothing was started."""

    exit_code = 2


class DataError(IsocostError):
    """A file that is missing, corrupt or not what its header says; the message names it."""


class StoreError(IsocostError):
    """A store that cannot be read or written."""


class TrainingError(IsocostError):
    """Training cannot go on (NaN loss, full disk); the last good checkpoint is kept and named."""


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """` Did you mean 'x'?` when an option is close to `word`, else the sorted options."""
    names = sorted(options)
    close = difflib.get_close_matches(word, names, n=1)
    return f" Did you mean '{close[0]}'?" if close else f" Known: {', '.join(names)}."


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """`table[name]`, or a `SpecError` that names the `what`, the wrong name and the nearest right one."""
    if name not in table:
        raise SpecError(f"unknown {what} '{name}'.{did_you_mean(name, table)}")
    return table[name]
