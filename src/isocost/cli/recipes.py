"""The `isocost recipe` commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from isocost.cli.output import print_json, say
from isocost.cli.parser import Data, Json, Set, app
from isocost.cli.studies import study_of

recipes = App(
    name="recipe",
    help="List recipes, write one out as YAML, or train encoders: the shipped ones, or one for photographs.",
)
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


@recipes.command(
    name="photo-vae",
    help_epilogue="Examples:\n"
    "  isocost recipe photo-vae photo-vae --train photos/ --held-out kodak.tar\n"
    "  isocost recipe photo-vae photo-vae --train a.tar --train b.tar --held-out kodak.tar --images 16000",
)
def recipe_photo_vae(
    out: Path,
    *,
    train: Annotated[list[str], Parameter(negative=(), help="Photographs: a folder or tar (repeatable).")],
    held_out: Annotated[list[str], Parameter(negative=(), help="Those to measure on (repeatable).")],
    images: int | None = None,
    latent_channels: int | None = None,
    side: int | None = None,
    degradation: str = "realesrgan",
    seed: int = 0,
    json: Json = False,
) -> None:
    """Train an autoencoder on photographs, for super-resolution. About 50 minutes on one core; run it again to go on.

    Says what it reconstructs of held-out photographs, beside bicubic enlargements of their reductions, clean and
    degraded: what lies between is what super-resolution can gain.

    Parameters
    ----------
    out
        Folder to write it to.
    images
        Crops seen in training.
    latent_channels
        Of the latent; 4 is what members that start from another autoencoder's latents have.
    side
        Pixels a side of a crop.
    degradation
        realesrgan or stablesr, of the input that it is compared with.
    """
    from isocost import api
    from isocost.encoders.train.steps import to_stderr

    chosen = {"images": images, "latent_channels": latent_channels, "side": side}
    given = {name: value for name, value in chosen.items() if value is not None}
    found = api.photo_vae(train, held_out, out, given, seed, degradation, to_stderr)
    if json:
        print_json({"folder": str(out), **found})
        return
    say(f"wrote {out}, measured on {found['images']} held-out photographs:")
    say(f"  reconstruction                    {found['psnr_held_out']:6.2f} dB")
    say(f"  bicubic, of a clean reduction     {found['psnr_bicubic_clean']:6.2f} dB")
    say(f"  bicubic, of the degraded input    {found['psnr_bicubic_degraded']:6.2f} dB ({found['degradation']})")
    if not found["enough_room"]:
        say("less than 3 dB above the degraded input: too little room for a study of super-resolution; train longer.")
