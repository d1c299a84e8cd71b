"""Commands that show a training's log elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from isocost.cli.output import outcome
from isocost.cli.parser import Json, command


@command("isocost track runs/quickstart --to tensorboard", "isocost track runs/mine --to wandb --follow")
def track(
    store: Path, *, to: Literal["tensorboard", "wandb", "trackio"], follow: bool = False, json: Json = False
) -> None:
    """Copy the logs of a store's trainings to a tracker: loss, loss by timestep, gradient norm, rate, by images seen.

    Parameters
    ----------
    store
        Folder of results.
    to
        The tracker; pip install 'isocost[trackers]' installs all of them.
    follow
        Go on while members train: one after the other, as they were begun.
    """
    from isocost import api

    outcome({"lines": api.track(store, to, follow)}, json)
