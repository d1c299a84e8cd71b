from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from isocost.encoders import classifier as classifier_module
from isocost.encoders import text as text_module
from isocost.encoders import weights
from isocost.encoders.classifier import AttributeClassifier, AttributeNet
from isocost.encoders.text import ClipScorer, train_tokenizer
from isocost.errors import DataError, SpecError
from isocost.scoring import extractors, inception, pretrained
from isocost.scoring.extractors import AttributeLogits, ClipFeatures, Projected, load_extractor, project, projection

GOLDEN = [-0.0919517426350609, 0.03837670060541484, -0.2025862650183812]


def tiny_clip(seed: int = 0) -> ClipScorer:
    """A CLIP of random weights for 8 px images and captions of 6 tokens, with 6 features."""
    tokenizer = train_tokenizer(["a red dot"] * 2, vocabulary=520, context_length=6)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    end = tokenizer.eos_token_id
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 6, "eos_token_id": end}
    vision = {**tower, "image_size": 8, "patch_size": 4}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6))
    return ClipScorer(module, tokenizer)


def tiny_classifier(seed: int = 0) -> AttributeClassifier:
    attributes = {"colour": ("red", "green", "blue"), "count": (1, 2)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = AttributeNet({"colour": 3, "count": 2}, width=4, resolution=8)
    return AttributeClassifier(module, attributes, width=4, resolution=8)


CLIP = ClipFeatures("clip", tiny_clip())
CLASSIFIER = AttributeLogits("classifier", tiny_classifier())


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (300, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def assets(monkeypatch) -> list[str]:
    """Stands in for the loaders; the list holds the refs asked for."""
    asked: list[str] = []

    def load(kind):
        def loader(ref, *args, **kwargs):
            asked.append(str(ref))
            return kind()

        return loader

    monkeypatch.setattr(text_module, "load_clip", load(tiny_clip))
    monkeypatch.setattr(classifier_module, "load_classifier", load(tiny_classifier))
    return asked


@pytest.mark.parametrize("extractor", [CLIP, Projected(CLIP, 3), CLASSIFIER], ids=lambda extractor: extractor.name)
def test_features_do_not_depend_on_what_else_is_asked_for(extractor, images):
    together = extractor(images)
    assert together.shape == (300, extractor.dims) and together.dtype == np.float32
    assert together.std(axis=0).min() > 0
    assert np.array_equal(extractor(images[5:8]), together[5:8])
    assert np.array_equal(extractor(images[[299, 2]]), together[[299, 2]])


def bad_images():
    good = np.zeros((2, 4, 4, 3), np.uint8)
    return [good.astype(np.float32), good[0], good.transpose(0, 3, 1, 2), good[:0], good[..., :1]]


@pytest.mark.parametrize("images", bad_images())
@pytest.mark.parametrize("extractor", [CLIP, Projected(CLIP, 3), CLASSIFIER], ids=lambda extractor: extractor.name)
def test_images_of_another_type_or_shape_are_refused(extractor, images):
    with pytest.raises(DataError, match=r"expected uint8 \[N, H, W, 3\]"):
        extractor(images)


def test_the_projection_is_orthonormal_and_fixed():
    p = projection(64, 32)
    np.testing.assert_allclose(p.T @ p, np.eye(32), atol=1e-14)
    assert np.array_equal(p, projection(64, 32))
    assert not np.allclose(projection(65, 32)[:64], p, atol=0.1)
    np.testing.assert_allclose(projection(64, 8), p[:, :8], atol=1e-12)
    # Golden values: a change of these would silently change every score made before.
    np.testing.assert_allclose(p[:3, 0], GOLDEN, atol=1e-12)


def test_projecting_keeps_the_precision_of_float32():
    features = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    np.testing.assert_allclose(project(features, 8), features.astype(float) @ projection(64, 8), atol=1e-6)


def test_logits_are_split_by_attribute(images):
    split, direct = CLASSIFIER.split(CLASSIFIER(images)), CLASSIFIER.classifier.logits(images)
    assert {name: logits.shape for name, logits in split.items()} == {"colour": (300, 3), "count": (300, 2)}
    for name in direct:
        np.testing.assert_allclose(split[name], direct[name], rtol=1e-6)


def test_captions_have_features_and_a_count_of_those_cut():
    captions = ["a red dot", "a dot", "a red dot a red dot a red dot"]
    features = CLIP.text(captions)
    assert features.shape == (3, CLIP.dims) and features.dtype == np.float32
    assert np.array_equal(CLIP.text(captions[1:2]), features[1:2])
    assert not np.allclose(features[0], features[1])
    assert CLIP.count_truncated(captions) == 1


def test_shipped_extractors_load_by_name(assets):
    full, projected = load_extractor("scenes-clip-score"), load_extractor("scenes-clip-score-4")
    assert (full.name, full.dims) == ("scenes-clip-score", 6)
    assert (projected.name, projected.dims) == ("scenes-clip-score-4", 4)
    assert load_extractor("scenes-clip-score", dims=4).digest == projected.digest != full.digest
    assert load_extractor("scenes-clip-score", dims=3).digest != projected.digest
    assert load_extractor("scenes-attributes").dims == 5
    assert assets == ["scenes-clip-score"] * 4 + ["scenes-attributes"]


def configured(folder: Path, model_type: str) -> Path:
    """A folder as `save_pretrained` leaves it, but for its weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def test_a_folder_is_the_study_s_own_clip(assets, tmp_path):
    folder = configured(tmp_path / "own-clip-2", "clip")
    assert load_extractor(folder).name == "own-clip-2" and load_extractor(folder).dims == 6
    assert load_extractor(f"{folder}-4").name == "own-clip-2-4"
    assert load_extractor(f"{folder}-4").dims == 4
    assert set(assets) == {str(folder)}


def test_a_saved_clip_comes_back(tmp_path, images):
    CLIP.clip.save(tmp_path / "saved")
    extractor = load_extractor(tmp_path / "saved", dims=2)
    assert extractor.base.digest == CLIP.digest
    np.testing.assert_allclose(extractor.base(images[:2]), CLIP(images[:2]), atol=1e-6)


def test_a_folder_is_what_its_config_says(assets, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(pretrained, "dinov2_features", lambda ref, device: asked.append((ref, device)) or CLIP)
    dinov2, classifier = configured(tmp_path / "a", "dinov2"), configured(tmp_path / "b", "isocost_attributes")
    assert load_extractor(dinov2, dims=3, device="cuda").base is CLIP and asked == [(str(dinov2), "cuda")]
    assert load_extractor(classifier).dims == 5
    with pytest.raises(DataError, match=r"config\.json is of 'bert'; known as extractors: clip, dinov2"):
        load_extractor(configured(tmp_path / "c", "bert"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no config\.json found"):
        load_extractor(tmp_path / "empty")


def test_a_hub_id_is_taken_whole_where_it_is_cached(assets, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "cached_file", lambda repo, name: tmp_path if repo in cached else None)
    monkeypatch.setattr(weights, "locate", lambda ref, *_: configured(tmp_path / str(len(assets)), "clip"))
    cached = {"who/model"}
    assert load_extractor("who/model").name == "model"
    assert load_extractor("who/model-4").dims == 4
    cached = {"who/model-4", "who/model"}
    assert load_extractor("who/model-4").dims == 6
    assert assets == ["who/model", "who/model", "who/model-4"]


def test_a_file_of_weights_is_named_after_a_colon(monkeypatch, tmp_path):
    asked = []
    path = tmp_path / "weights-2"
    path.touch()
    monkeypatch.setattr(inception, "load_inception", lambda *given: asked.append(given) or CLIP)
    assert load_extractor("fid-tf") is CLIP
    assert load_extractor(f"fid-tf:{path}").dims == 6
    assert load_extractor(f"fid-clean:{path}-4", device="cuda").dims == 4
    assert asked == [("fid-tf", None, "cpu"), ("fid-tf", str(path), "cpu"), ("fid-clean", str(path), "cuda")]
    with pytest.raises(SpecError, match="unknown extractor 'scenes-clip-score:/my/weights'"):
        load_extractor("scenes-clip-score:/my/weights")


def test_weights_by_path_are_projected_too(inception_file, fid_tf):
    extractor = load_extractor(f"fid-tf:{inception_file}-16")
    assert (extractor.name, extractor.dims) == ("fid-tf-16", 16)
    assert extractor.base.digest == fid_tf.digest


def test_unknown_extractors_and_too_many_dims_are_refused(assets, tmp_path):
    with pytest.raises(SpecError, match=r"unknown extractor 'scenes-clip-scor'\. Did you mean 'scenes-clip-score'"):
        load_extractor("scenes-clip-scor")
    with pytest.raises(SpecError, match="unknown extractor 'inception-32'"):
        load_extractor("inception-32")
    with pytest.raises(DataError, match=r"encoder 'nobody/nothing': no config\.json found"):
        load_extractor("nobody/nothing")
    with pytest.raises(SpecError, match="has 6 dims and cannot be projected to 32"):
        load_extractor("scenes-clip-score-32")


@pytest.mark.parametrize("module", ["isocost.scoring.metrics", "isocost.scoring.extractors"])
def test_names_are_known_before_networks_are_loaded(module):
    code = f"import sys, {module}; print(*{{'torch', 'transformers', 'pandas'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.returncode) == ([], 0), done.stderr


def test_a_digest_covers_weights_and_preprocessing(monkeypatch):
    assert ClipFeatures("x", tiny_clip()).digest == ClipFeatures("y", tiny_clip()).digest
    assert ClipFeatures("x", tiny_clip(seed=1)).digest != ClipFeatures("x", tiny_clip()).digest
    assert AttributeLogits("x", tiny_classifier(seed=1)).digest != CLASSIFIER.digest
    before = ClipFeatures("x", tiny_clip()).digest
    monkeypatch.setattr(extractors, "PREPROCESSING", "nearest")
    assert ClipFeatures("x", tiny_clip()).digest != before
