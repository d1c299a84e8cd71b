"""A checkpoint as a diffusers folder: UNet, encoders, scheduler and a model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from isocost import __version__
from isocost.diffusion.schedule import LCM_TIMESTEPS
from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.errors import SpecError, StoreError
from isocost.models.build import build
from isocost.models.cost import forward_flops, parameters
from isocost.specs import NoiseSchedule, TrainSpec
from isocost.study.checkpoints import Found
from isocost.study.grid import plan_name
from isocost.study.tables import table as table_of
from isocost.training import lora
from isocost.training.lineage import training_gflops

LICENCES = {
    "scenes": "Procedural scenes drawn by isocost (Apache-2.0).",
    "images": "As the images that it was trained on.",
}


def export(found: Found, folder: Path) -> Path:
    """Write a checkpoint's EMA weights as a folder that `StableDiffusionPipeline.from_pretrained` loads.

    The folder appears whole or not at all. Its scheduler is DDIM at the training schedule, or LCMScheduler of a student
    of consistency distillation; the last step's alpha_cumprod is exported too.

    Raises:
        SpecError: the folder exists and is not empty, or the checkpoint is of a kind that this pipeline cannot run: a
            transformer, or a network trained by flow matching.
        StoreError: it cannot be written.
    """
    _check_runs_in_stable_diffusion(found.checkpoint.spec)
    _refuse_overwriting(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        temporary.chmod(0o755)
        try:
            _write(found, temporary)
            if folder.exists():
                folder.rmdir()
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot export: {error.strerror or error}") from None
    return folder


LORA_FILE = "pytorch_lora_weights.safetensors"  # where `load_lora_weights` looks in a folder


def export_lora(found: Found, folder: Path) -> Path:
    """Write a checkpoint's averaged adapters as a folder that `pipeline.load_lora_weights` takes, with a README.md.

    The pipeline is that of the checkpoint that the run started from, exported: its digest stands in the README.

    Raises:
        SpecError: the run trained no adapters; or as `export`.
        StoreError: it cannot be written.
    """
    from safetensors.torch import save_file

    spec = found.checkpoint.spec
    if spec.lora is None:
        raise SpecError(
            f"{found.checkpoint.folder}: trained whole, without train.lora: there are no adapters to write."
        )
    _check_runs_in_stable_diffusion(spec)
    _refuse_overwriting(folder)
    tensors = lora.exported(found.checkpoint.adapters(), spec.lora)
    base = spec.start_from.content_digest if spec.start_from else "initial weights"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / LORA_FILE, metadata={"format": "pt"})
        (folder / "README.md").write_text(_lora_card(spec, base))
    except OSError as error:
        raise StoreError(f"{folder}: cannot export: {error.strerror or error}") from None
    return folder


def _lora_card(spec: TrainSpec, base: str) -> str:
    assert spec.lora is not None
    return f"""---
library_name: diffusers
tags: [lora]
---

# Adapters of rank {spec.lora.rank} for {spec.model.family} {spec.model.name}, {spec.data.resolution} px

Written by isocost {__version__}; for the checkpoint `{base}`, exported by `isocost export`:
`pipeline.load_lora_weights(folder)`. The scale, alpha / rank = {spec.lora.scale:g}, is in the weights already.

```yaml
{spec.to_yaml()}```
"""


def _refuse_overwriting(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SpecError(f"{folder}: a file, or not empty. Choose another folder, so that nothing is overwritten.")


def _check_runs_in_stable_diffusion(spec: TrainSpec) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    others = "`isocost sample` draws from it, and its weights are ema.safetensors in its own folder"
    if not isinstance(build(spec.model, "meta"), UNet2DConditionModel):
        raise SpecError(
            f"family '{spec.model.family}' cannot be exported: StableDiffusionPipeline runs UNets only. {others}."
        )
    if spec.model.takes_image:
        raise SpecError(
            "a network that upscales images cannot be exported: StableDiffusionPipeline gives it none. `isocost "
            "upscale` runs it, and its weights are ema.safetensors in its own folder."
        )
    if "flow" in (spec.schedule.kind, spec.prediction):
        raise SpecError(
            "a network trained by 'flow' matching cannot be exported: diffusers' flow schedulers tell a network its "
            f"noise level, where ours tell it the timestep. {others}."
        )


def _write(found: Found, folder: Path) -> None:
    spec = found.checkpoint.spec
    autoencoder = load_autoencoder(found.autoencoder)
    text_encoder = load_text_encoder(found.text_encoder)
    unet: Any = found.checkpoint.network("ema")
    unet.register_to_config(sample_size=spec.data.latent_shape[1])
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    autoencoder.save(folder / "vae")
    text_encoder.save(folder / "text_encoder", folder / "tokenizer")
    scheduler = scheduler_of(spec)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(_model_index(type(scheduler).__name__), indent=2) + "\n")
    (folder / "README.md").write_text(model_card(found))


def scheduler_of(spec: TrainSpec) -> Any:
    """The diffusers scheduler of a checkpoint: as it is to be sampled."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_lcm import LCMScheduler

    config = scheduler_config(spec.schedule, spec.prediction)
    if spec.consistency:
        scaling = spec.consistency.timestep_scaling
        return LCMScheduler(**config, original_inference_steps=LCM_TIMESTEPS, timestep_scaling=scaling)
    if spec.guided and spec.guided.steps:
        config["timestep_spacing"] = "trailing"  # the timesteps of its round
    return DDIMScheduler(**config)


def scheduler_config(schedule: NoiseSchedule, prediction: str) -> dict[str, Any]:
    """Arguments of diffusers' DDIMScheduler that mean the same as our schedule, spacing "leading"."""
    return {
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.kind,
        "prediction_type": prediction,
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "set_alpha_to_one": schedule.final_alpha == "one",
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "clip_sample": False,
    }


def _model_index(scheduler: str) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": version("diffusers"),
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def model_card(found: Found) -> str:
    """README.md of an export: what it is, data and licence, compute, scores with digests, limits."""
    spec = found.checkpoint.spec
    kind = found.store.study().data.kind if found.store else None
    side, length = spec.data.latent_shape[1], spec.data.context_shape[0]
    forward = forward_flops(spec.model, side, length)
    trained, in_all = training_gflops(found.checkpoint)
    return f"""---
library_name: diffusers
pipeline_tag: text-to-image
---

# {spec.model.family} {spec.model.name}, {spec.data.resolution} px

A latent diffusion model exported by isocost {__version__}. Load it with
`StableDiffusionPipeline.from_pretrained(folder)`.

| | |
|---|---|
| UNet | {parameters(spec.model):,} parameters, {forward / 1e9:.4g} GFLOPs an evaluation of one image |
| predicts | {spec.prediction}, {spec.schedule.kind} betas; the last alpha_cumprod is `{spec.schedule.final_alpha}` |
| trained on | {found.checkpoint.images_seen:,} images seen ({spec.data.images:,} distinct), batch {spec.batch} |
| training compute | {trained / 1e3:.4g} TFLOPs (forward and backward x images seen){_came_from(found, in_all)} |
| weights | EMA, sha256 `{found.checkpoint.ref("ema").content_digest}` |
| autoencoder | sha256 `{spec.data.autoencoder}` |
| text encoder | sha256 `{spec.data.text_encoder}` |

## Data and licence

{LICENCES.get(kind or "", "Data of the study that trained it.")} Encoded data: sha256 `{spec.data.digest_of_shards}`.

## Scores

{_scores(found)}

## Limits

It draws only what its training captions describe, at {spec.data.resolution} px. Guidance {_guidance_note(spec)}.
Scores are by the study's own extractor: they compare members of one study, not one study with another.

## Spec

```yaml
{spec.to_yaml()}```
"""


def _came_from(found: Found, in_all: float) -> str:
    """What it started or learned from, and the compute of all of them."""
    known = found.checkpoint.lineage
    if known is None:
        return ""
    line = ", ".join(f"{one.member} by '{one.objective}' (`{one.content_digest[:12]}`)" for one in known.ancestors)
    return f"; {in_all / 1e3:.4g} with what it came from: {line}"


def _guidance_note(spec: TrainSpec) -> str:
    if spec.scales is not None:
        low, high = spec.scales
        steps = f", at {spec.guided.steps} steps" if spec.guided and spec.guided.steps else ""
        return f"is embedded, for scales {low:g} to {high:g}: one evaluation a step{steps}"
    if spec.caption_dropout == 0:
        return "does not work: it was trained without caption dropout"
    return f"works: {spec.caption_dropout:.0%} of the captions were dropped in training"


def _scores(found: Found) -> str:
    """Each metric of the checkpoint's best cell, chosen on the selection half and reported on the other."""
    if found.store is None:
        return "Not scored: exported outside a store."
    try:
        table: Any = table_of(found.store)
    except StoreError:
        return "Not scored yet."
    digest = found.checkpoint.ref("ema").content_digest
    rows = table[(table["checkpoint"] == digest) & ~table["metric"].str.contains("/")]
    lines = ["| metric | value | stderr | n | plan | sample key |", "|---|---|---|---|---|---|"]
    for metric, scores in rows.groupby("metric"):
        halves = {split: scores[scores["split"] == split].set_index("sample_key") for split in ("selection", "report")}
        ascending = not scores["higher_is_better"].iloc[0]
        key = halves["selection"]["value"].sort_values(ascending=ascending).index[0]
        best = halves["report"].loc[[key]].iloc[0]
        plan = plan_name(best.to_dict())
        lines.append(f"| {metric} | {best['value']:.4g} | {best['stderr']:.2g} | {best['n']} | {plan} | `{key[:16]}` |")
    return "\n".join(lines)
