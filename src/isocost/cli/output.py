"""What commands print: lines for people, JSON for programs."""

from __future__ import annotations

import sys
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
    from isocost.files import json_text

    print(json_text(value))
