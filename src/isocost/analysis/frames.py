"""pandas' two types, for annotations: what a type checker sees of them, and what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # pandas' own annotations make `rows[mask]` a Series, a DataFrame or an array at once, which nothing accepts.
    DataFrame = Any
    Series = Any
else:
    from pandas import DataFrame, Series

__all__ = ["DataFrame", "Series"]
