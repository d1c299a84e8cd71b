"""Commands that score images: `isocost score`, and the `isocost reference` commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from isocost.cli.output import print_json, say
from isocost.cli.parser import Json, app, command
from isocost.errors import SpecError

Skip = Annotated[bool, Parameter(negative=(), help="Leave out images that cannot be read; they are counted and named.")]
Device = Annotated[Literal["cpu", "cuda"], Parameter(help="Where extractors run.")]


@command(
    "isocost score generated/ real/",
    "isocost score generated/ real/ --metrics fd,kid[fid-tf],clip",
    "isocost score a/ b/ c/ real/ --metrics kid          (a ranking)",
    "isocost score generated/ targets/ --metrics psnr,ssim,lpips",
    "isocost score runs/quickstart --cell 3fa4 --metrics kid   (a store has its own reference)",
    "isocost score features.npz reference.safetensors --metrics fd --json",
    "isocost score generated/ coco2014-30k:/data/coco --metrics fd[fid-tf]",
)
def score(
    *paths: str,
    reference: Annotated[
        list[str] | None, Parameter(negative=(), help="The reference (repeatable); then all paths are scored.")
    ] = None,
    metrics: str = "fd,kid",
    extractor: str | None = None,
    cell: str | None = None,
    captions: Path | None = None,
    paired: bool | None = None,
    skip_unreadable: Skip = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Score generated images: GENERATED... REFERENCE. Folders, tars, features (.npz, .safetensors) or stores.

    Several GENERATED are ranked, by paired differences where their file names match. The last path is the reference,
    unless --reference names it, no metric needs one, or the only path is a store.

    Parameters
    ----------
    metrics
        fd, kid, cmmd, clip, is, precision, recall, density, coverage, accuracy; of pairs psnr, ssim, lpips, similarity.
        An extractor in brackets, kid[fid-tf], is of that metric alone.
    extractor
        Of metrics that name none: scenes-clip-score, fid-tf, fid-clean, efficientnet-lite0, or the folder or hub id of
        a CLIP or DINOv2; with -32 at its end projected to 32 dimensions. Default: the shipped one, or the study's.
    cell
        Of a store, the cell whose key begins so. Default: all cells.
    captions
        Text file with a line an image, in the order of file names. Default: those beside the images.
    paired
        Whether several sets are compared image by image. Default: where their file names match.
    """
    from isocost import api
    from isocost.console import print_scores, shown_progress

    generated, references = _sides(list(paths), reference, metrics)
    with shown_progress(quiet=json) as progress:
        found = api.score(
            generated,
            references,
            metrics,
            extractor=extractor,
            cell=cell,
            captions=captions,
            paired=paired,
            skip_unreadable=skip_unreadable,
            device=device,
            progress=progress,
        )
    if json:
        print_json(found.as_dict())
    else:
        print_scores(found)


def _sides(paths: list[str], reference: list[str] | None, metrics: str) -> tuple[list[str], Any]:
    """What is scored, and against what."""
    from isocost.scoring.measures import are_against_others, names_in
    from isocost.study.sources import store_at

    if not paths:
        raise SpecError("nothing to score: isocost score GENERATED... REFERENCE.")
    if reference or not are_against_others(names_in(metrics)):
        return paths, reference
    if len(paths) == 1:
        if store_at(paths[0]) is None:
            raise SpecError(f"{paths[0]} is to be scored against what? isocost score GENERATED... REFERENCE.")
        return paths, None
    return paths[:-1], paths[-1]


# --- references ---

references = App(name="reference", help="Build a reference once, to score against it often; or show one.")
app.command(references)


@references.command(
    name="build",
    help_epilogue="Examples:\n"
    "  isocost reference build real/ --extractor fid-tf --out real-fid-tf.safetensors\n"
    "  isocost reference build coco2014-30k:/data/coco --extractor fid-tf --out coco.safetensors --moments",
)
def reference_build(
    images: str,
    *,
    extractor: str,
    out: Path,
    moments: Annotated[bool, Parameter(negative=())] = False,
    skip_unreadable: Skip = False,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Write the features of reference images as one file, with digest, extractor, protocol and n.

    Parameters
    ----------
    images
        A folder, a .tar, a folder of tars, or PROTOCOL:FOLDER (coco2014-30k, div2k-sr-3k).
    extractor
        As of `isocost score`.
    out
        The file, .safetensors.
    moments
        Keep mean and covariance only: a small file that serves Frechet distances.
    """
    from isocost import api
    from isocost.console import shown_progress

    if out.suffix != ".safetensors":
        raise SpecError(f"--out {out}: a reference is a .safetensors file.")
    with shown_progress(quiet=json) as progress:
        found = api.build_reference(
            images, extractor, out, moments=moments, skip_unreadable=skip_unreadable, device=device, progress=progress
        )
    _show(found, json, {"file": str(out)})


@references.command(name="show", help_epilogue="Examples:\n  isocost reference show real-fid-tf.safetensors")
def reference_show(file: Path, *, json: Json = False) -> None:
    """Say what a reference is: its digest, extractor, protocol, n and source. A corrupt file is an error."""
    from isocost import api

    _show(api.load_reference(file), json, {"file": str(file)})


@references.command(
    name="manifest",
    help_epilogue="Examples:\n"
    "  isocost reference manifest coco2014-30k:/data/coco --json > captions.json\n"
    "  isocost reference manifest div2k-sr-3k:/data/DIV2K --json > crops.json",
)
def reference_manifest(protocol: str, *, json: Json = False) -> None:
    """List what a protocol chose: images with captions, or crops with the seeds of their degradation.

    Parameters
    ----------
    protocol
        PROTOCOL:FOLDER.
    """
    from isocost.scoring.protocols import open_protocol

    found = open_protocol(protocol)
    if json:
        print_json({"protocol": found.protocol, "chosen": found.manifest})
        return
    say(f"{found.protocol}: {len(found):,} images")
    for row in found.manifest:
        say("  ".join(str(value) for value in row.values()))


def _show(found: Any, json: bool, extra: dict[str, Any]) -> None:
    about = extra | found.describe()
    if json:
        print_json(about)
        return
    for name, value in about.items():
        for line in value if isinstance(value, list) else [value]:
            say(f"{name}: {line}")
