"""Commands about training data: `isocost encode`, and the `isocost data` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from isocost.cli.output import print_json, say
from isocost.cli.parser import Data, Json, Set, StorePath, app, command, share_of
from isocost.cli.studies import study_of
from isocost.errors import SpecError


@command(
    "isocost encode my.yaml --store runs/mine",
    "isocost encode my.yaml --store runs/mine --shard 3/16      (one of 16 jobs)",
    "torchrun --nproc-per-node 8 -m isocost encode my.yaml --store runs/mine --device cuda",
)
def encode(
    study: str,
    *,
    store: StorePath = None,
    shard: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    set_: Set = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Encode a study's training images and captions, or a share of them, ahead of training.

    Any number of processes on any machines that see the store take part, none waits for another, and any may die: run
    its command again. Whoever finds all done finishes the set.

    Parameters
    ----------
    study
        A recipe's name or a YAML file.
    shard
        i/n: every n-th piece of the work from number i (0 to n-1) on. Default: RANK and WORLD_SIZE, as torchrun sets
        them; else all of it.
    device
        Where the encoders run; with several processes on a machine, cuda is the GPU numbered LOCAL_RANK.
    """
    import os
    from dataclasses import asdict

    from isocost import api
    from isocost.console import shown_progress
    from isocost.study.encode import rank_of_environment

    share = rank_of_environment() if shard is None else share_of(shard)
    spec = study_of(study, set_, data)
    where = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else device
    with shown_progress(quiet=json) as progress:
        found = api.encode(spec, store, share, progress, where)
    if json:
        print_json(asdict(found))
        return
    say(f"{found.folder}: {found.done} of {found.shards} shards are there")
    say("finished" if found.finished else "not finished: whoever encodes the last shard finishes the set")


data_app = App(name="data", help="Look at captioned images and encoded data, here or at URLs, and filter them.")
app.command(data_app)


@data_app.command(
    name="info",
    help_epilogue="Examples:\n  isocost data info shards/\n  isocost data info s3://bucket/train --verify --json",
)
def data_info(*places: str, verify: bool = False, json: Json = False) -> None:
    """Count what lies in folders or shards: images, captions, fields of their json; or encoded data.

    Parameters
    ----------
    places
        Folders of images or tars, tars, folders of latents; URLs of such.
    verify
        Also read every byte and compare it with the index; exit 1 naming what is damaged.
    """
    from isocost import api

    if not places:
        raise SpecError("name a folder, a .tar or a URL.")
    found = api.data_info(places, verify)
    if json:
        print_json(found)
        return
    for one in found:
        say(f"{one['place']}: {one['kind']}, {one['images']:,} images")
        for name, value in one.items():
            if name not in ("place", "kind", "images"):
                say(f"  {name.replace('_', ' ')}: {value}")


@data_app.command(
    name="filter",
    help_epilogue="Examples:\n"
    "  isocost data filter shards/ --rule 'caption_words>=3' --rule 'shorter_side>=256'\n"
    "  isocost data filter s3://bucket/train --rule '5<=json.aesthetic' --missing drop --out kept.safetensors",
)
def data_filter(
    *places: str,
    rule: Annotated[list[str], Parameter(negative=(), help="FIELD>=x, FIELD<=x or x<=FIELD<=y (repeatable).")],
    missing: Literal["error", "drop", "keep"] = "error",
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Count which captioned images pass rules, as a study's data.filters would choose them.

    Fields: caption_characters, caption_words, width, height, shorter_side, aspect, and json.NAME, a number in the
    sample's .json.

    Parameters
    ----------
    places
        Folders of images or tars, tars; URLs of such.
    missing
        What becomes of an image that lacks a rule's field.
    out
        File for the filtered index: which images are kept, digest and counts.
    """
    from isocost import api
    from isocost.console import shown_progress

    if not places:
        raise SpecError("name a folder, a .tar or a URL.")
    with shown_progress(quiet=json) as progress:
        found = api.data_filter(places, rule, missing, out, progress)
    if json:
        print_json({**found.report, "digest": found.digest, "out": str(out) if out else None})
        return
    say(str(found))
    say(f"digest: {found.digest}")
