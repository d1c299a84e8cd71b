"""Which images of a set are used: rules on captions, sizes and scores, run once, with a count of all that they drop.

What comes out is a filtered index: the numbers of the images that are kept, with a digest and the counts, in one file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isocost.data.images import CaptionedImages
from isocost.errors import DataError, SpecError
from isocost.files import atomic_write
from isocost.specs import Filter, digest_of

SCHEMA = 1
SHARDS_AHEAD = 4


@dataclass(frozen=True)
class FilteredIndex:
    """kept: int64 [K], numbers of the images that pass, rising. digest: of the images and the rules. report: counts.

    `report`: `images` and `kept`, and of each rule (in order; an image counts where it first fails) `dropped` by its
    value, and `missing`: how many had no such field, and what became of those.
    """

    kept: np.ndarray
    digest: str
    report: dict[str, Any]

    def __str__(self) -> str:
        """The report as lines of text."""
        lines = [f"{self.report['kept']:,} of {self.report['images']:,} images kept"]
        for rule in self.report["rules"]:
            missing = f"; {rule['missing']:,} without the field: {rule['then']}" if rule["missing"] else ""
            lines.append(f"{rule['rule']}: {rule['dropped']:,} dropped{missing}")
        return "\n".join(lines)


def rule_text(rule: Filter) -> str:
    """`3 <= caption_words <= 40`: what `parse_rule` reads."""
    low = "" if rule.min is None else f"{rule.min:.12g} <= "
    high = "" if rule.max is None else f" <= {rule.max:.12g}"
    return f"{low}{rule.field}{high}"


def parse_rule(text: str, missing: str = "error") -> Filter:
    """A `Filter` from `FIELD>=x`, `FIELD<=x` or `x<=FIELD<=y`. Raises `SpecError`."""
    number = r"([-+]?[0-9.]+(?:e[-+]?\d+)?)"
    field = r"([a-z][^\s<>=]*)"
    plain = re.sub(r"\s+", "", text)
    found: dict[str, Any] | None = None
    if match := re.fullmatch(rf"{field}(>=|<=){number}", plain):
        found = {"field": match[1], "min" if match[2] == ">=" else "max": match[3]}
    elif match := re.fullmatch(rf"{number}<={field}(?:<={number})?", plain):
        found = {"field": match[2], "min": match[1], "max": match[3]}
    if found is None:
        raise SpecError(f"rule '{text}': expected FIELD>=NUMBER, FIELD<=NUMBER or NUMBER<=FIELD<=NUMBER.")
    return Filter.parse({**found, "missing": missing}, f"rule '{text}'")


def filtered(
    images: CaptionedImages,
    rules: Sequence[Filter],
    path: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FilteredIndex:
    """The images that pass every rule. Where `path` holds the answer already it is read, else it is left there.

    Raises `DataError` naming an image that lacks a field, where its rule does not say what then; and where nothing is
    kept.
    """
    digest = digest_of([SCHEMA, images.digest, [rule.canonical() for rule in rules]])
    found = _read(path, digest) if path else None
    if found is None:
        found = _run(images, rules, digest, progress)
        if path:
            write_index(found, path)
    return found


def _run(images: CaptionedImages, rules: Sequence[Filter], digest: str, progress: Any) -> FilteredIndex:
    counts = [{"rule": rule_text(rule), "dropped": 0, "missing": 0, "then": _then(rule)} for rule in rules]
    kept, start = [], 0
    shards = images.shards
    for number, size in enumerate(shards):
        images.prefetch(range(number + 1, min(number + 1 + SHARDS_AHEAD, len(shards))))
        kept += [index for index in range(start, start + size) if _passes(images, index, rules, counts)]
        start += size
        if progress:
            progress(start, len(images))
    report = {"images": len(images), "kept": len(kept), "rules": counts}
    index = FilteredIndex(np.array(kept, dtype=np.int64), digest, report)
    if not kept:
        raise DataError("no image passes the filters: " + "; ".join(str(index).splitlines()))
    return index


def _then(rule: Filter) -> str:
    return {"drop": "dropped", "keep": "kept", "error": "refused"}[rule.missing]


def _passes(images: CaptionedImages, index: int, rules: Sequence[Filter], counts: list[dict[str, Any]]) -> bool:
    for rule, count in zip(rules, counts, strict=True):
        value, why = _value(images, index, rule.field)
        if value is None:
            if rule.missing == "error":
                raise DataError(
                    f"{why}: it cannot be filtered by {rule.field}; `missing` drop or keep counts it and goes on"
                )
            count["missing"] += 1
            if rule.missing == "drop":
                return False
        elif not (rule.min is None or rule.min <= value) or not (rule.max is None or value <= rule.max):
            count["dropped"] += 1
            return False
    return True


def _value(images: CaptionedImages, index: int, field: str) -> tuple[float | None, str]:
    """An image's value of a field; None, and why, where it has none."""
    if field.startswith("json."):
        value: Any = images.metadata(index)
        for part in field.removeprefix("json.").split("."):
            value = value.get(part) if isinstance(value, dict) else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
        return (float(value) if is_number else None), f"{images.where(index)} has no number '{field}'"
    if field.startswith("caption_"):
        caption = images.find_caption(index)
        if caption is None:
            return None, f"{images.where(index)} has no caption"
        return float(len(caption.split() if field == "caption_words" else caption)), ""
    try:
        width, height = images.size(index)
    except DataError as error:
        return None, str(error)
    sizes = {"width": width, "height": height, "shorter_side": min(width, height)}
    return float(sizes.get(field, max(width, height) / min(width, height))), ""


# --- the file ---


def write_index(index: FilteredIndex, path: Path) -> None:
    """`kept` as int64, and digest and counts as text in the header of a safetensors file."""
    from safetensors.numpy import save

    kept = np.ascontiguousarray(index.kept)
    about = {"schema": SCHEMA, "digest": index.digest, "kept_sha256": _sha256(kept), "report": index.report}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(save({"kept": kept}, metadata={"filter": json.dumps(about)}))


def _read(path: Path, digest: str) -> FilteredIndex | None:
    """The index that lies at `path`; None where there is none of this digest, whole."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            kept, about = file.get_tensor("kept"), json.loads(file.metadata()["filter"])
        if (about["schema"], about["digest"], about["kept_sha256"]) != (SCHEMA, digest, _sha256(kept)):
            return None
        return FilteredIndex(kept, digest, about["report"])
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def _sha256(kept: np.ndarray) -> str:
    return hashlib.sha256(kept.astype("<i8").tobytes()).hexdigest()
