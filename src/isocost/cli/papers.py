"""The command that does a whole paper."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from isocost.cli.output import print_json, say
from isocost.cli.parser import Json, Workers, command


@command(
    "isocost reproduce paper-micro --dry-run      (what it takes here, by stage)",
    "isocost reproduce paper-micro                (run it again to go on)",
    "isocost reproduce paper-micro --only pretraining --only distill",
    "isocost reproduce paper --dry-run --data /data/pairs --coco /data/coco --div2k /data/DIV2K",
)
def reproduce(
    paper: str,
    *,
    root: Path | None = None,
    only: Annotated[list[str] | None, Parameter(negative=())] = None,
    data: Annotated[str | None, Parameter(help="Of `paper`: captioned images, photographs and subjects.")] = None,
    coco: Annotated[str | None, Parameter(help="Of `paper`: COCO-2014.")] = None,
    div2k: Annotated[str | None, Parameter(help="Of `paper`: DIV2K's validation images.")] = None,
    workers: Workers = None,
    dry_run: bool = False,
    mfu: float = 0.4,
    peak_tflops: float | None = None,
    json: Json = False,
) -> None:
    """Do every experiment of the paper, stage by stage, and judge its claims. Run it again to go on after a stop.

    Stages come in the order in which they stand on each other, one training seed of everything first.

    Parameters
    ----------
    paper
        paper-micro: two cores, nothing to download. paper-gpu: one GPU. paper: its own size, a cluster.
    root
        Folder of stores, one a stage. Default: runs/PAPER.
    only
        A stage's name; repeatable.
    dry_run
        Say what each stage takes, and do nothing: minutes, timed here, where it is for a CPU; else GPU-hours.
    mfu
        Of a dry run: which share of the GPUs' peak goes into the networks' own FLOPs.
    peak_tflops
        Of a dry run: the peak of one GPU. Default: an H100's in bf16, 989.
    """
    from isocost import api
    from isocost.console import print_claims, print_stages, shown_progress
    from isocost.models.budget import H100_BF16_TFLOPS

    folders = {name: value for name, value in (("data", data), ("coco", coco), ("div2k", div2k)) if value is not None}
    if dry_run:
        speed = mfu * (peak_tflops or H100_BF16_TFLOPS) * 1e12
        with shown_progress(quiet=json) as progress:
            found = api.reproduction_cost(paper, root, only, workers, progress, **folders)
        rows = [asdict(stage) | {"gpu_hours": stage.flops / speed / 3600} for stage in found]
        if json:
            print_json(rows)
        else:
            print_stages(paper, found, speed)
        return
    with shown_progress(quiet=json) as progress:
        page = api.reproduce(paper, root, only, workers, progress, **folders)
    verdicts = api.claims(page.parent)
    if json:
        print_json({"report": str(page), "claims": asdict(verdicts)})
        return
    print_claims(verdicts)
    say(f"\nReport: {page}\nOpen it in a browser: {page.resolve().as_uri()}")
