"""Other people's checkpoints: a diffusers text-to-image folder with a UNet (the layouts of Stable Diffusion 1 and 2).

What the folder's scheduler says of the training (betas, prediction, zero terminal SNR) and of how to walk the timesteps
(spacing, offset, where the last step ends) is honoured. Which sampler it names is not: that is what a sweep chooses.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from isocost.encoders.autoencoder import load_autoencoder
from isocost.encoders.text import load_text_encoder
from isocost.encoders.weights import content_digest, load_into, quiet_random, read_config, read_weights
from isocost.errors import DataError
from isocost.models.cost import count_flops
from isocost.sampling.checkpoints import Traits
from isocost.sampling.engine import prepare
from isocost.sampling.generate import Pipeline
from isocost.specs import (
    CheckpointRef,
    EngineSpec,
    Guidance,
    NoiseSchedule,
    Prediction,
    SamplingPlan,
    Spacing,
    Stage,
    digest_of,
)

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

UNET_WEIGHTS = "diffusion_pytorch_model.safetensors"
# What StableDiffusionPipeline sets in any scheduler that says otherwise, as it holds such configs to be outdated.
STABLE_DIFFUSION = {"steps_offset": 1, "clip_sample": False}
# Parts of a UNet that take more than a latent, a timestep and the text of one encoder.
OTHER_INPUTS = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)


@dataclass(frozen=True)
class DiffusersFolder:
    """A pipeline's folder, of which the configs were read. Weights are read when they are asked for.

    spacing, steps_offset: how the folder's scheduler walks the timesteps; a plan may choose others. latent_shape:
    (C, h, w) at the resolution of its training. width: channels of the UNet's first level.
    """

    path: Path
    schedule: NoiseSchedule
    prediction: Prediction
    spacing: Spacing
    steps_offset: int
    latent_shape: tuple[int, int, int]
    width: int

    @property
    def autoencoder(self) -> str:
        """Reference for `load_autoencoder`."""
        return str(self.path / "vae")

    @property
    def text_encoder(self) -> str:
        """Reference for `load_text_encoder`."""
        return str(self.path / "text_encoder")

    def unet(self) -> UNet2DConditionModel:
        """The module, fp32. Raises `DataError` naming a file that is missing, corrupt or not safetensors."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        folder = self.path / "unet"
        with quiet_random():
            module: Any = UNet2DConditionModel.from_config(read_config(folder))
        load_into(module, read_weights(folder / UNET_WEIGHTS), folder / UNET_WEIGHTS)
        return module.eval().requires_grad_(False)

    @cached_property
    def ref(self) -> CheckpointRef:
        """The checkpoint by content: of its UNet, autoencoder and text encoder, as images hang on all three. How many
        images it saw is not known: 0."""
        return self.ref_with(self.unet())

    def ref_with(self, unet: UNet2DConditionModel) -> CheckpointRef:
        """`ref`, with its UNet read already."""
        config: Any = unet.config
        parts = [content_digest(config, unet), self.traits.autoencoder, self.traits.text_encoder]
        return CheckpointRef(content_digest=digest_of(parts), images_seen=0)

    @cached_property
    def traits(self) -> Traits:
        """What decides which plans it can serve. Whether captions were dropped in training is not known."""
        return Traits(
            schedule=self.schedule,
            prediction=self.prediction,
            latent_shape=self.latent_shape,
            autoencoder=load_autoencoder(self.autoencoder).digest,
            text_encoder=load_text_encoder(self.text_encoder).digest,
            caption_dropout=None,
        )

    def plan(self, sampler: str, steps: int, guidance: Guidance, eta: float = 0.0) -> SamplingPlan:
        """A plan that walks the timesteps as the folder's scheduler does."""
        return SamplingPlan(
            stages=(Stage(checkpoint=self.ref),),
            schedule=self.schedule,
            prediction=self.prediction,
            sampler=sampler,
            steps=steps,
            spacing=self.spacing,
            steps_offset=self.steps_offset,
            guidance=guidance,
            eta=eta,
        )

    def pipeline(self, engine: EngineSpec) -> Pipeline:
        """Everything that turns prompts into images."""
        return Pipeline(
            network=prepare(self.unet(), engine),
            autoencoder=load_autoencoder(self.autoencoder),
            text_encoder=load_text_encoder(self.text_encoder),
            latent_shape=self.latent_shape,
            caption_dropout=None,
        )

    def forward_flops(self, context_length: int) -> int:
        """FLOPs of one evaluation of one image, as `models.cost` counts them: no weights are read."""
        import torch

        unet = self._on_meta()
        with torch.device("meta"):
            latent = torch.empty(1, *self.latent_shape)
            context = torch.empty(1, context_length, unet.config["cross_attention_dim"])
            return count_flops(lambda: unet(latent, torch.empty(1), context))

    def parameters(self) -> int:
        """How many weights its UNet has."""
        return sum(weight.numel() for weight in self._on_meta().parameters())

    def _on_meta(self) -> Any:
        import torch
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        with torch.device("meta"):
            return UNet2DConditionModel.from_config(read_config(self.path / "unet"))


def open_folder(path: str | Path) -> DiffusersFolder:
    """Read the configs of a folder that `StableDiffusionPipeline.save_pretrained` wrote, or one of that layout.

    Raises:
        DataError: a part is missing, corrupt, or of a kind that a plan cannot say: another network than a text-to-image
            UNet, or a scheduler with betas, a prediction or clipping of its own. It names the file and the field.
    """
    path = Path(path).expanduser()
    unet = read_config(path / "unet")
    _check_unet(unet, path / "unet" / "config.json")
    _check_encoders(unet, path)
    file = path / "scheduler" / "scheduler_config.json"
    scheduler = _scheduler(file)
    if _pipeline_class(path) == "StableDiffusionPipeline":
        scheduler |= STABLE_DIFFUSION
    schedule, prediction = _schedule(scheduler, file), _one_of(scheduler, "prediction_type", get_args(Prediction), file)
    spacing = "lcm" if scheduler["_class_name"] == "LCMScheduler" else scheduler.get("timestep_spacing", "leading")
    _one_of({"timestep_spacing": spacing}, "timestep_spacing", get_args(Spacing), file)
    side = unet["sample_size"]
    height, width = side if isinstance(side, list | tuple) else (side, side)
    return DiffusersFolder(
        path=path,
        schedule=schedule,
        prediction=prediction,
        spacing=spacing,
        steps_offset=int(scheduler.get("steps_offset", 0)),
        latent_shape=(unet["in_channels"], height, width),
        width=unet["block_out_channels"][0],
    )


def is_diffusers(path: Path) -> bool:
    """Whether a folder is laid out as `open_folder` reads it."""
    return (path / "unet" / "config.json").is_file()


def _pipeline_class(path: Path) -> str | None:
    index = path / "model_index.json"
    try:
        return json.loads(index.read_text()).get("_class_name") if index.is_file() else None
    except ValueError as error:
        raise DataError(f"{index}: not readable as JSON ({error}); fetch it again.") from None


def _check_unet(config: dict[str, Any], file: Path) -> None:
    kind = config.get("_class_name")
    if kind != "UNet2DConditionModel":
        raise DataError(f"{file}: of {kind}, not of a UNet2DConditionModel.")
    if config["in_channels"] != config["out_channels"]:
        raise DataError(
            f"{file}: in_channels {config['in_channels']}, out_channels {config['out_channels']}: it takes more than a "
            "latent (inpainting, depth or super-resolution), which text-to-image plans do not give."
        )
    wants = [field for field in OTHER_INPUTS if config.get(field) is not None]
    if wants:
        raise DataError(
            f"{file}: {', '.join(wants)}: it takes more than a latent, a timestep and one text encoder's text."
        )
    if config.get("sample_size") is None:
        raise DataError(f"{file}: no sample_size, the side of its latents; write it in.")


def _check_encoders(unet: dict[str, Any], path: Path) -> None:
    vae, text = read_config(path / "vae"), read_config(path / "text_encoder")
    if vae.get("latent_channels", 4) != unet["in_channels"]:
        raise DataError(
            f"{path}: the UNet takes latents of {unet['in_channels']} channels, the VAE makes {vae['latent_channels']}."
        )
    width = text.get("hidden_size", unet["cross_attention_dim"])
    if width != unet["cross_attention_dim"]:
        raise DataError(f"{path}: the UNet reads text {unet['cross_attention_dim']} wide, the encoder's is {width}.")


def _scheduler(file: Path) -> dict[str, Any]:
    """scheduler_config.json, with its class's defaults for what it leaves out."""
    from diffusers import schedulers

    try:
        config = json.loads(file.read_text())
        kind = getattr(schedulers, config["_class_name"])
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable as JSON ({error}); fetch it again.") from None
    except (KeyError, AttributeError):
        raise DataError(f"{file}: names no scheduler of diffusers (_class_name).") from None
    signature = inspect.signature(kind.__init__)
    defaults = {name: given.default for name, given in signature.parameters.items() if given.default is not given.empty}
    return defaults | config


def _schedule(config: dict[str, Any], file: Path) -> NoiseSchedule:
    if config.get("trained_betas") is not None:
        raise DataError(f"{file}: trained_betas: a table of betas is not a schedule that a plan can name.")
    for field in ("clip_sample", "thresholding"):
        if config.get(field):
            raise DataError(
                f"{file}: {field} would clip denoised latents, which our samplers do not do: set it to false, as "
                "Stable Diffusion has it."
            )
    to_one = config.get("set_alpha_to_one", config.get("final_sigmas_type") != "sigma_min")
    return NoiseSchedule(
        kind=_one_of(config, "beta_schedule", get_args(NoiseSchedule.model_fields["kind"].annotation), file),
        num_train_timesteps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
        final_alpha="one" if to_one else "first",
    )


def _one_of(config: dict[str, Any], field: str, options: tuple[str, ...], file: Path) -> Any:
    value = config.get(field)
    if value not in options:
        raise DataError(f"{file}: {field} '{value}' is not among {', '.join(options)}.")
    return value
