"""Commands about single models: their sizes, their images, and folders for diffusers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from isocost.cli.output import print_json, records, say
from isocost.cli.parser import Json, command
from isocost.errors import SpecError


@command("isocost ladder sd", "isocost ladder dit", "isocost ladder micro --json")
def ladder(name: str = "sd", *, json: Json = False) -> None:
    """Print the members of a ladder: parameters, forward GFLOPs and normalised cost.

    For `sd` the paper's Table 1 stands beside our counts. Counted without weights, in seconds.

    Parameters
    ----------
    name
        sd (the paper's), sd-768 (Stable Diffusion 1.5's text encoder), dit (transformers); micro, dit-micro (small).
    """
    from isocost import api

    frame = api.ladder(name)
    if json:
        print_json(records(frame))
        return
    from isocost.console import print_table

    print_table(frame, title=f"ladder {name}: one evaluation of one image; FLOPs = 2 x multiply-adds")


@command(
    'isocost sample runs/quickstart --member c32 --prompt "a large red circle in the centre on a blue background"',
    "isocost sample CHECKPOINT --prompt 'two small green stars' --steps 8 --guidance 2 --out stars.png",
    'isocost sample runs/quickstart --cell 3fa9 --prompt "a red heart"      (exactly as that cell)',
)
def sample(
    checkpoint: Path,
    *,
    prompt: Annotated[list[str], Parameter(negative=(), help="What to draw (repeatable).")],
    member: str | None = None,
    steps: int = 20,
    sampler: str = "ddim",
    guidance: float = 2.0,
    spacing: Literal["leading", "linspace", "trailing"] = "trailing",
    eta: float = 0.0,
    replicate: int = 0,
    cell: str | None = None,
    out: Path = Path("sample.png"),
    json: Json = False,
) -> None:
    """Draw images from a checkpoint and write them as one PNG (or one file a prompt, with {i} in --out).

    Parameters
    ----------
    checkpoint
        A checkpoint's folder, a training run's, or a store (then say which --member).
    member
        Which member of a store: c8, c16, ...
    steps
        Sampling steps, 1 to 1000.
    sampler
        ddim, ddpm, dpmpp_2m, euler or heun.
    guidance
        Classifier-free guidance scale; 1 = none.
    spacing
        How timesteps are spread.
    eta
        DDIM's eta: 0 deterministic, 1 ancestral.
    replicate
        Another number, another image of the same prompt.
    cell
        Of a store: draw exactly as this cell does (how its sample key begins), whatever the other settings say.
    out
        Where to write.
    """
    from isocost import api
    from isocost.console import write_images

    images = api.sample(
        checkpoint,
        prompt,
        steps=steps,
        sampler=sampler,
        guidance_scale=guidance,
        spacing=spacing,
        eta=eta,
        replicate=replicate,
        member=member,
        cell=cell,
    )
    written = [str(path) for path in write_images(images, out)]
    if json:
        print_json({"images": written})
    else:
        say("wrote " + ", ".join(written))


@command(
    'isocost interpolate runs/quickstart --member c24 --from "a large red circle in the centre on a blue background"'
    ' --to "two small green stars at the top on a white background"',
    "isocost interpolate CHECKPOINT --from A --to B --alphas 1,.8,.5,.2,0 --path spherical --out strip.png",
)
def interpolate(
    checkpoint: Path,
    *,
    from_: Annotated[str, Parameter(name="--from", help="The prompt at alpha 1.")],
    to: Annotated[str, Parameter(help="The prompt at alpha 0.")],
    alphas: str = "1,.8,.5,.2,0",
    path: Literal["linear", "spherical"] = "linear",
    member: str | None = None,
    steps: int = 20,
    sampler: str = "ddim",
    guidance: float = 7.5,
    spacing: Literal["leading", "linspace", "trailing"] = "trailing",
    eta: float = 0.0,
    replicate: int = 0,
    out: Path = Path("interpolated.png"),
    json: Json = False,
) -> None:
    """Draw images between two prompts and write them side by side (or one a file, with {i} in --out).

    The embeddings of both, all tokens, are mixed; noise is the first prompt's in all images, so that alpha 1 is what
    `isocost sample` draws of it.

    Parameters
    ----------
    checkpoint
        A checkpoint's folder, a training run's, or a store (then say which --member).
    alphas
        Weights of the first prompt, 0 to 1, with commas between.
    path
        Through the embeddings: on the line between them, or on the arc.
    member
        Which member of a store: c8, c16, ...
    steps
        Sampling steps, 1 to 1000.
    sampler
        ddim, ddpm, dpmpp_2m, euler or heun.
    guidance
        Classifier-free guidance scale; 1 = none.
    spacing
        How timesteps are spread.
    eta
        DDIM's eta: 0 deterministic, 1 ancestral.
    replicate
        Another number, another noise.
    out
        Where to write.
    """
    from isocost import api
    from isocost.console import write_images

    images = api.interpolate(
        checkpoint,
        from_,
        to,
        alphas=_numbers(alphas),
        path=path,
        steps=steps,
        sampler=sampler,
        guidance_scale=guidance,
        spacing=spacing,
        eta=eta,
        replicate=replicate,
        member=member,
    )
    written = [str(path) for path in write_images(images, out)]
    if json:
        print_json({"images": written})
    else:
        say("wrote " + ", ".join(written))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise SpecError(f"--alphas {text}: expected numbers with commas between, as in 1,.8,.5,.2,0.") from None


@command(
    "isocost upscale photo.jpg --checkpoint runs/sr --member c32",
    "isocost upscale photos/ --checkpoint CHECKPOINT --steps 8 --out upscaled/",
)
def upscale(
    image: Path,
    *,
    checkpoint: Path,
    member: str | None = None,
    steps: int = 20,
    sampler: str = "ddim",
    eta: float = 0.0,
    replicate: int = 0,
    tile: int | None = None,
    overlap: int | None = None,
    batch: int = 16,
    out: Path = Path("upscaled"),
    json: Json = False,
) -> None:
    """Make an image, or every image of a folder, four times as large, with a page that shows it before and after.

    Any size will do: an image is made in tiles that overlap and share one trajectory. Transparency is laid on white,
    and 16-bit images become 8-bit ones; what was done is said.

    Parameters
    ----------
    image
        An image file, or a folder of them.
    checkpoint
        Of a training for super-resolution: a checkpoint's folder, a run's, or a store (then say which --member).
    member
        Which member of a store: c8, c16, ...
    steps
        Sampling steps, 1 to 1000.
    sampler
        ddim, ddpm, dpmpp_2m, euler or heun.
    eta
        DDIM's eta: 0 deterministic, 1 ancestral.
    replicate
        Another number, other details.
    tile
        Pixels of the image that the network sees at a time. Default: as in its training.
    overlap
        Pixels that neighbouring tiles share. Default: a quarter of a tile.
    batch
        Tiles a network call.
    out
        Folder for NAME.png and NAME.html.
    """
    from isocost import api
    from isocost.console import shown_progress, write_images
    from isocost.data.images import image_files
    from isocost.reporting.before_after import before_after

    written = []
    for path in image_files(image) if image.is_dir() else [image]:
        with shown_progress(quiet=json) as progress:
            made = api.upscale(
                path,
                checkpoint,
                member=member,
                steps=steps,
                sampler=sampler,
                eta=eta,
                replicate=replicate,
                tile=tile,
                overlap=overlap,
                batch=batch,
                progress=progress,
            )
        if made.conversions:
            print(f"{path}: brought to 8-bit RGB ({', '.join(made.conversions)})", file=sys.stderr)
        (file,) = write_images(made.image[None], out / f"{path.stem}.png")
        height, width = made.image.shape[:2]
        facts = {
            "from": f"{path.name}, {width // 4} x {height // 4} pixels",
            "to": f"{width} x {height} pixels",
            "by": f"{checkpoint}{f', {member}' if member else ''}",
            "with": f"{sampler}, {steps} steps, replicate {replicate}",
        }
        page = before_after(made.bicubic, made.image, out / f"{path.stem}.html", path.name, facts)
        written.append({"image": str(file), "page": str(page)})
    if json:
        print_json(written)
    else:
        for files in written:
            say(f"wrote {files['image']} and {files['page']}")


@command(
    "isocost export runs/quickstart exported --member c32",
    "isocost export CHECKPOINT exported",
    "isocost export runs/dreambooth house --member c16-house --lora",
)
def export(checkpoint: Path, out: Path, *, member: str | None = None, lora: bool = False, json: Json = False) -> None:
    """Write a checkpoint as a diffusers folder with a model card; `StableDiffusionPipeline.from_pretrained` loads it.

    Parameters
    ----------
    checkpoint
        A checkpoint's folder, a training run's, or a store (then say which --member).
    out
        Folder to write; it must not exist, or be empty.
    member
        Which member of a store.
    lora
        Of a run with adapters these alone, for a pipeline of the checkpoint that it started from.
    """
    from isocost import api

    folder = api.export(checkpoint, out, member=member, lora=lora)
    use = "pipeline.load_lora_weights" if lora else "StableDiffusionPipeline.from_pretrained"
    if json:
        print_json({"folder": str(folder)})
    else:
        say(f'wrote {folder}\nUse it: {use}("{folder}")')
