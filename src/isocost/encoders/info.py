"""What a place holds: captioned images, or latents; in numbers, without decoding anything."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from isocost.data.images import open_images
from isocost.data.remote import Place, is_url
from isocost.encoders.latents import LatentShards, read_header
from isocost.encoders.live import LIVE, open_data
from isocost.errors import DataError


def describe(place: Place, verify: bool = False) -> dict[str, Any]:
    """`place`, `kind` ("images", "latents" or "live"), shards, counts and digest; with `verify`, every byte is read.

    Raises `DataError` naming what is missing or damaged.
    """
    header = _header(place)
    if header is not None and header.get("schema") == LIVE:
        return {"place": str(place), "kind": LIVE, "verified": verify, **_shown(open_data(place).header)}
    if header is not None:
        latents = LatentShards(place)
        if verify:
            latents.verify()
        shown = {"shards": len(latents.shards), "bytes": sum(shard.get("bytes", 0) for shard in header["shards"])}
        return {"place": str(place), "kind": "latents", "verified": verify, **shown, **_shown(header)}
    images = open_images([place], captions_required=False)
    if verify:
        images.verify()
    captions = [images.find_caption(index) for index in range(len(images))]
    return {
        "place": str(place),
        "kind": "images",
        "verified": verify,
        "shards": len(images.shards),
        "images": len(images),
        "captions": len(set(captions) - {None}),
        "without_caption": captions.count(None),
        "fields": dict(Counter(name for index in range(len(images)) for name in images.metadata(index))),
        "digest": images.digest,
    }


def _header(place: Place) -> dict[str, Any] | None:
    """The header of latents; None for anything else."""
    if not is_url(place):
        return read_header(place) if (Path(place) / "header.json").is_file() else None
    if str(place).endswith(".tar"):
        return None
    try:
        return read_header(place)
    except DataError:
        return None  # no header: images then, or an error that says what is wrong there


def _shown(header: dict[str, Any]) -> dict[str, Any]:
    names = ("images", "captions", "resolution", "latent_shape", "context_shape", "mean", "std", "filters", "digest")
    return {name: header[name] for name in names if header.get(name) is not None}
