"""The `isocost recipe` commands."""

from __future__ import annotations

import sys
from pathlib import Path

from cyclopts import App

from isocost.cli.output import print_json, say
from isocost.cli.parser import Data, Json, Set, app
from isocost.cli.studies import study_of

recipes = App(name="recipe", help="List recipes, write one out as YAML, or rebuild the shipped encoders.")
app.command(recipes)


@recipes.command(name="list")
def recipe_list(*, json: Json = False) -> None:
    """List the recipes."""
    from isocost.recipes import SUMMARIES

    if json:
        print_json(SUMMARIES)
        return
    for name, summary in SUMMARIES.items():
        say(f"{name:12} {summary}")


@recipes.command(name="show", help_epilogue="Examples:\n  isocost recipe show emoji --data shards > my.yaml")
def recipe_show(name: str, *, set_: Set = None, data: Data = None, json: Json = False) -> None:
    """Print a recipe as YAML, to be edited and given to `isocost sweep`.

    Parameters
    ----------
    name
        The recipe.
    """
    spec = study_of(name, set_, data)
    if json:
        print_json(spec.model_dump(mode="json"))
    else:
        sys.stdout.write(spec.to_yaml())


@recipes.command(name="assets", help_epilogue="Examples:\n  isocost recipe assets rebuilt --only scenes-vae")
def recipe_assets(out: Path, *, only: list[str] | None = None, json: Json = False) -> None:
    """Train the shipped encoders anew: autoencoder, both CLIPs, attribute classifier. About half an hour on two cores.

    Parameters
    ----------
    out
        Folder to write them to.
    only
        Names of those to train.
    """
    from isocost.encoders.train import train_assets

    train_assets(out, only=only)
    if json:
        print_json({"folder": str(out)})
    else:
        say(f"wrote {out}")
