"""Tiny folders in the layouts of Stable Diffusion, against the pipeline that wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from isocost.diffusion.noise import batch_noise
from isocost.encoders.text import load_text_encoder, train_tokenizer
from isocost.errors import DataError
from isocost.models.cost import count_flops
from isocost.sampling.checkpoints import check_checkpoints
from isocost.sampling.engine import sample_latents
from isocost.sampling.folders import open_folder
from isocost.sampling.generate import generate
from isocost.specs import EngineSpec, Guidance, NoiseSchedule

PROMPTS = ("a red cube", "two green balls left of a cone")
SHAPE = (4, 8, 8)
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DDIM = {"clip_sample": False, "set_alpha_to_one": False}


def pipeline(scheduler: Any, second: bool = False) -> StableDiffusionPipeline:
    """Random and tiny, laid out as version 1, or as version 2: linear projections, heads by level, "!" as padding."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(PROMPTS, vocabulary=600, context_length=16)
    if second:
        tokenizer.pad_token = "!"
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        hidden_act="gelu" if second else "quick_gelu",
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=[2, 4] if second else 4,
        use_linear_projection=second,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


FIRST = PNDMScheduler(**SD_BETAS, skip_prk_steps=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pipeline(FIRST).save_pretrained(tmp_path)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def theirs(path: Path, steps: int, scale: float, output: str, **loading: Any) -> np.ndarray:
    """What the folder's own pipeline draws with DDIM from our noise."""
    pipe = StableDiffusionPipeline.from_pretrained(path, safety_checker=None, **loading)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    made = pipe(
        list(PROMPTS),
        negative_prompt=[""] * 2,
        num_inference_steps=steps,
        guidance_scale=scale,
        latents=torch.from_numpy(batch_noise([(prompt, 0) for prompt in PROMPTS], "x_T", SHAPE)),
        output_type=output,
    ).images
    return np.asarray(made)


@pytest.mark.parametrize("network", ["diffusers", "lean"])
@pytest.mark.parametrize(
    ("scheduler", "second"),
    [
        (FIRST, False),
        (DDIMScheduler(**SD_BETAS, **DDIM, prediction_type="v_prediction"), True),
        (
            DDIMScheduler(
                **SD_BETAS,
                **DDIM,
                prediction_type="v_prediction",
                rescale_betas_zero_snr=True,
                timestep_spacing="trailing",
            ),
            True,
        ),
        (DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False, prediction_type="sample"), False),
        (DDIMScheduler(beta_schedule="linear", clip_sample=False), False),
    ],
    ids=["v1", "v2", "zero_snr", "cosine", "linear"],
)
def test_images_are_the_pipelines(scheduler, second, network, tmp_path):
    pipeline(scheduler, second).save_pretrained(tmp_path)
    opened = open_folder(tmp_path)
    engine = EngineSpec(batch=2, network=network)
    plan = opened.plan("ddim", 5, Guidance(scale=3))
    ours = generate(opened.pipeline(engine), plan, engine, [(prompt, prompt, 0) for prompt in PROMPTS]).images
    images = theirs(tmp_path, 5, 3, "np")
    difference = np.abs(ours / 255 - images)
    assert difference.mean() < 1e-3 + 1 / 1020  # rounding to 8 bits is a quarter of a level on average
    assert difference.max() < 1e-3 + 1 / 510
    assert images.std() > 0.02  # not of one grey, which anything would match


def test_latents_are_the_pipelines_to_1e_3(folder):
    opened, engine = open_folder(folder), EngineSpec(batch=2)
    text = load_text_encoder(opened.text_encoder)
    plan = opened.plan("ddim", 10, Guidance(scale=7.5))
    ids = [(prompt, 0) for prompt in PROMPTS]
    networks = opened.pipeline(engine).network
    contexts = (text.encode(PROMPTS), text.encode([""])[0])
    ours, spent = sample_latents(networks, plan, *contexts, ids, opened.latent_shape, engine)
    np.testing.assert_allclose(ours.numpy(), theirs(folder, 10, 7.5, "latent"), rtol=0, atol=1e-3)
    assert spent == {opened.ref: 20}


def test_what_the_scheduler_says_is_honoured(tmp_path):
    pipeline(FIRST).save_pretrained(tmp_path)
    opened = open_folder(tmp_path)
    assert opened.schedule == NoiseSchedule(final_alpha="first")
    assert (opened.prediction, opened.spacing, opened.steps_offset) == ("epsilon", "leading", 1)
    assert opened.latent_shape == SHAPE
    pipeline(EulerDiscreteScheduler(beta_schedule="linear", beta_end=0.01, num_train_timesteps=500)).save_pretrained(
        tmp_path
    )
    opened = open_folder(tmp_path)
    assert opened.schedule == NoiseSchedule(kind="linear", num_train_timesteps=500, beta_start=1e-4, beta_end=0.01)
    assert opened.spacing == "linspace"
    pipeline(LCMScheduler()).save_pretrained(tmp_path)
    assert open_folder(tmp_path).spacing == "lcm"


def test_what_a_config_leaves_out_is_its_class_s_default(folder):
    # PNDM ends at the first alpha_cumprod by default, DDIM at 1, and clips.
    file = folder / "scheduler" / "scheduler_config.json"
    edit(folder / "model_index.json", _class_name="LDMTextToImagePipeline")
    edit(file, set_alpha_to_one=..., steps_offset=..., timestep_spacing=...)
    opened = open_folder(folder)
    assert (opened.schedule.final_alpha, opened.spacing, opened.steps_offset) == ("first", "leading", 0)
    edit(file, _class_name="DDIMScheduler")
    with pytest.raises(DataError, match="clip_sample would clip denoised latents"):
        open_folder(folder)
    edit(file, clip_sample=False)
    assert open_folder(folder).schedule.final_alpha == "one"


def test_outdated_configs_are_read_as_the_pipeline_reads_them(folder):
    file = folder / "scheduler" / "scheduler_config.json"
    edit(file, _class_name="DDIMScheduler", clip_sample=True, steps_offset=0)
    pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert (pipe.scheduler.config.clip_sample, pipe.scheduler.config.steps_offset) == (False, 1)
    assert open_folder(folder).steps_offset == 1


def test_half_precision_variants(tmp_path):
    pipeline(FIRST).to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    names = {path.name for path in tmp_path.rglob("*.safetensors")}
    assert names == {"diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors"}
    opened, engine = open_folder(tmp_path), EngineSpec(batch=2)
    plan = opened.plan("ddim", 5, Guidance(scale=3))
    ours = generate(opened.pipeline(engine), plan, engine, [(prompt, prompt, 0) for prompt in PROMPTS]).images
    images = theirs(tmp_path, 5, 3, "np", variant="fp16", torch_dtype=torch.float32)
    assert np.abs(ours / 255 - images).max() < 1e-3 + 1 / 510


def test_the_digest_is_the_content_s(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    pipeline(FIRST).save_pretrained(elsewhere)
    assert open_folder(elsewhere).ref == open_folder(folder).ref
    other = pipeline(FIRST)
    other.unet.conv_in.bias.data += 1
    other.save_pretrained(elsewhere)
    assert open_folder(elsewhere).ref != open_folder(folder).ref


def test_guidance_is_allowed_and_costs_are_counted(folder):
    opened = open_folder(folder)
    check_checkpoints(opened.plan("unipc", 4, Guidance(scale=3)), {opened.ref.content_digest: opened.traits})
    unet: Any = opened.unet()
    assert opened.parameters() == sum(weight.numel() for weight in unet.parameters())
    meta = unet.to("meta")
    with torch.device("meta"):
        inputs = torch.empty(1, *SHAPE), torch.empty(1), torch.empty(1, 16, 32)
    assert opened.forward_flops(16) == count_flops(lambda: meta(*inputs))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "score"},
            "prediction_type 'score' is not among epsilon",
        ),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid' is not among"),
        ("scheduler/scheduler_config.json", {"timestep_spacing": "even"}, "timestep_spacing 'even' is not among"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding would clip denoised latents"),
        ("scheduler/scheduler_config.json", {"_class_name": "MyScheduler"}, "names no scheduler of diffusers"),
        ("unet/config.json", {"_class_name": "SD3Transformer2DModel"}, "not of a UNet2DConditionModel"),
        ("unet/config.json", {"in_channels": 9}, "in_channels 9, out_channels 4: it takes more than a latent"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type: it takes more than"),
        ("unet/config.json", {"sample_size": None}, "no sample_size"),
        ("unet/config.json", {"cross_attention_dim": 48}, "reads text 48 wide, the encoder's is 32"),
        ("vae/config.json", {"latent_channels": 16}, "latents of 4 channels, the VAE makes 16"),
    ],
)
def test_a_folder_that_a_plan_cannot_speak_for(folder, file, changes, message):
    edit(folder / file, **changes)
    with pytest.raises(DataError, match=message):
        open_folder(folder)


def test_a_part_that_is_missing(folder):
    with pytest.raises(DataError, match=r"config\.json: not readable"):
        open_folder(folder / "nowhere")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(DataError, match=r"scheduler_config\.json: not readable"):
        open_folder(folder)


def test_only_safetensors_are_read(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(DataError, match=r"diffusion_pytorch_model\.safetensors: not a readable safetensors file"):
        open_folder(folder).unet()
