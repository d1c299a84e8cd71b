"""Tokenizer, text encoder and CLIP: what is saved is what transformers and diffusers load, whatever the version."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from isocost.data import scenes
from isocost.encoders.text import (
    ClipScorer,
    TextEncoder,
    load_clip,
    load_text_encoder,
    load_tokenizer,
    resize,
    save_tokenizer,
    tokenize,
    train_tokenizer,
)
from isocost.errors import DataError
from isocost.specs import SceneOptions

CAPTIONS = [caption for caption, _ in scenes.describe_all(1, range(400), SceneOptions())]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(CAPTIONS, vocabulary=700, context_length=24)


def _text_config(tokenizer) -> dict:
    size = len(tokenizer)
    marks = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {"vocab_size": size, "max_position_embeddings": 24, "projection_dim": 8, **width, **marks}


@pytest.fixture(scope="module")
def encoder(tokenizer) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(CLIPTextModel(CLIPTextConfig(**_text_config(tokenizer))), tokenizer)


@pytest.fixture(scope="module")
def clip(tokenizer) -> ClipScorer:
    torch.manual_seed(1)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 8, "projection_dim": 8}
    config = CLIPConfig(text_config=_text_config(tokenizer), vision_config=vision, projection_dim=8)
    return ClipScorer(CLIPModel(config), tokenizer, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_words_of_the_captions_become_tokens_and_any_text_can_be_written(tokenizer):
    assert 514 < len(tokenizer) <= 700
    words = CAPTIONS[0].split()
    assert tokenizer.tokenize(CAPTIONS[0]) == [f"{word}</w>" for word in words]
    text = "a lighthouse über the sea, 7 ☂"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == len(tokenizer) - 2 and ids.count(len(tokenizer) - 1) == 1 and ids[-1] == len(tokenizer) - 1
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_saved_tokenizer_is_the_same_here_and_in_transformers(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    for again in (load_tokenizer(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)):
        assert len(again) == len(tokenizer) > 2
        assert again.model_max_length == 24
        assert [again(text)["input_ids"] for text in CAPTIONS[:20]] == [
            tokenizer(text)["input_ids"] for text in CAPTIONS[:20]
        ]


def test_a_cut_caption_keeps_its_end_mark_and_is_counted(tokenizer, encoder):
    long = " ".join(["red"] * 40)
    ids = tokenize(tokenizer, [long, "red"], 24)
    assert ids.shape == (2, 24) and ids[0, -1] == len(tokenizer) - 1
    assert encoder.count_truncated([long, "red", " ".join(["red"] * 22), " ".join(["red"] * 23)]) == 2


def test_embeddings_are_the_last_hidden_state_in_any_company(encoder):
    alone = np.concatenate([encoder.encode([caption]) for caption in CAPTIONS[:5]])
    encoder._cache.clear()
    together = encoder.encode([*CAPTIONS[:40], "", CAPTIONS[0]])
    assert together.shape == (42, 24, 16) and together.dtype == np.float32
    assert np.array_equal(alone, together[:5]) and np.array_equal(together[0], together[41])
    ids = tokenize(encoder.tokenizer, CAPTIONS[:5], 24)
    with torch.no_grad():
        theirs = encoder.module(input_ids=ids).last_hidden_state.numpy()
    np.testing.assert_allclose(alone, theirs, atol=1e-5)


def test_cache_is_bounded_and_forgets_the_oldest(encoder, monkeypatch):
    from isocost.encoders import text

    monkeypatch.setattr(text, "CACHE_BYTES", 3 * 4 * 24 * 16)
    encoder._cache.clear()
    rows = encoder.encode(CAPTIONS[:8])
    assert list(encoder._cache) == CAPTIONS[5:8]
    assert np.array_equal(encoder.encode(CAPTIONS[:8]), rows)


def test_flops_count_attention_and_projections(encoder):
    """Closed form for L tokens, width D: 4 projections, two attention products, an MLP 2 D wide; 2 a multiply-add."""
    length, width = 24, 16
    layer = 4 * length * width**2 + 2 * length**2 * width + 2 * length * width * 32
    assert encoder.flops == 2 * 2 * layer


def test_saved_text_encoder_has_old_names_and_loads_anywhere(encoder, tmp_path):
    pipeline = tmp_path / "pipeline"
    encoder.save(pipeline / "text_encoder", pipeline / "tokenizer")
    names = load_file(pipeline / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in names)
    for ref in (pipeline, pipeline / "text_encoder"):
        again = load_text_encoder(ref)
        assert again.digest == encoder.digest
        assert np.array_equal(again.encode(CAPTIONS[:3]), encoder.encode(CAPTIONS[:3]))
    theirs = CLIPTextModel.from_pretrained(pipeline / "text_encoder")
    ids = tokenize(encoder.tokenizer, CAPTIONS[:3], 24)
    with torch.no_grad():
        np.testing.assert_allclose(theirs(input_ids=ids).last_hidden_state, encoder.encode(CAPTIONS[:3]), atol=1e-5)


def test_diffusers_pipeline_uses_the_same_embeddings(encoder, tmp_path):
    """The folder layout of a StableDiffusionPipeline, prompts encoded by diffusers' own code."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    encoder.save(tmp_path / "text_encoder", tmp_path / "tokenizer")
    blocks = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    UNet2DConditionModel(
        sample_size=8,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=2,
        **blocks,
    ).save_pretrained(tmp_path / "unet")
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"], "requires_safety_checker": False}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path)
    embedding = pipeline.encode_prompt(CAPTIONS[0], "cpu", 1, False)[0]
    np.testing.assert_allclose(embedding[0].detach(), encoder.encode([CAPTIONS[0]])[0], atol=1e-5)


def test_clip_features_match_transformers(clip):
    images = scenes.draw(1, range(3), 32, SceneOptions())
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    ids = tokenize(clip.tokenizer, CAPTIONS[:3], 24)
    with torch.no_grad():
        theirs = clip.module(input_ids=ids, pixel_values=pixels)
    np.testing.assert_allclose(clip.image_features(images, normalised=True), theirs.image_embeds, atol=1e-5)
    np.testing.assert_allclose(clip.text_features(CAPTIONS[:3], normalised=True), theirs.text_embeds, atol=1e-5)
    assert clip.logit_scale == pytest.approx(float(clip.module.logit_scale.exp()))
    raw = clip.image_features(images)
    assert not np.allclose(np.linalg.norm(raw, axis=1), 1)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), theirs.image_embeds, atol=1e-5)


def test_clip_rows_do_not_depend_on_how_many_are_passed(clip):
    images = scenes.draw(1, range(70), 32, SceneOptions())
    rows = clip.image_features(images)
    assert np.array_equal(clip.image_features(images[66:69]), rows[66:69])
    assert np.array_equal(clip.text_features(CAPTIONS[33:35]), clip.text_features(CAPTIONS[:40])[33:35])


def test_saved_clip_loads_here_and_in_transformers(clip, tmp_path):
    clip.save(tmp_path)
    again = load_clip(tmp_path)
    assert again.digest == clip.digest and again.mean == (0.5, 0.5, 0.5)
    theirs = CLIPModel.from_pretrained(tmp_path)
    for name, value in clip.module.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], value)
    assert load_text_encoder(tmp_path).context_shape == (24, 16)


def test_digest_covers_tokenizer_and_normalisation(clip, encoder):
    other = ClipScorer(clip.module, clip.tokenizer, (0.4, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert other.digest != clip.digest
    words = train_tokenizer(["entirely other words here"] * 9, 700, 24)
    assert TextEncoder(encoder.module, words).digest != encoder.digest


def test_resize_is_pillow_s_antialiased_bicubic_of_the_shorter_side():
    from PIL import Image

    image = scenes.draw(1, [0], 64, SceneOptions())[0][:48]
    ours = resize(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255, 24)[0].permute(1, 2, 0).numpy() * 255
    theirs = np.asarray(Image.fromarray(image).resize((32, 24), Image.Resampling.BICUBIC), dtype=float)[:, 4:28]
    assert ours.shape == (24, 24, 3) and np.abs(ours - theirs).max() < 2


def test_errors_say_where_and_what(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"assets.*scenes-clip-condition"):
        load_text_encoder("scenes-clip")
    encoder.save(tmp_path)
    with pytest.raises(DataError, match="needs a whole CLIP"):
        load_clip(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(DataError, match=r"merges\.txt"):
        load_text_encoder(tmp_path)


def test_shipped_encoders_retrieve_and_are_two_trainings():
    conditions, scores = load_text_encoder("scenes-clip-condition"), load_clip("scenes-clip-score")
    assert conditions.context_shape == (24, 64) and len(conditions.tokenizer) > 514
    assert scores.context_length == 24 and scores.module.config.text_config.hidden_size != 64
    described = scenes.describe_all(9100, range(128), SceneOptions())
    captions = [caption for caption, _ in described]
    assert conditions.count_truncated(captions) == 0 and scores.count_truncated(captions) == 0
    images = scenes.draw(9100, range(128), 32, SceneOptions())
    cosine = scores.image_features(images, normalised=True) @ scores.text_features(captions, normalised=True).T
    assert (cosine.argmax(1) == np.arange(128)).mean() > 0.9
    pooled = conditions.encode(captions).reshape(128, -1)
    assert len(np.unique(pooled.round(4), axis=0)) == 128
