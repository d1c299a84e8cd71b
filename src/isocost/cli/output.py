"""What commands print: lines for people, JSON for programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def say(line: str) -> None:
    print(line)


def outcome(found: dict[str, Any], json: bool) -> None:
    """Print what an upkeep command did; exit 1 where it found something broken."""
    if json:
        print_json(found)
    else:
        for name, value in found.items():
            lines = value if isinstance(value, list) else [value]
            for line in lines or ["none"]:
                say(f"{name}: {line}")
    if found.get("corrupt"):
        sys.exit(1)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict(orient="records")  # pyright: ignore[reportReturnType]


def print_json(value: Any) -> None:
    import json

    print(json.dumps(_plain(value), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    """JSON's own types: numpy scalars become Python's, NaN and infinity null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return str(value) if isinstance(value, Path) else value
