from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from isocost.encoders.precompute import precompute
from isocost.errors import DataError, SpecError
from isocost.specs import DataSource, TrainSettings
from isocost.training import loop
from isocost.training.loop import batches, train
from isocost.training.objectives import OBJECTIVES, Batch
from isocost.training.state import Checkpoint

SETTINGS = TrainSettings(images=8, batch=8, caption_dropout=0.0, objective="superres")


class Pixels:
    """Block means: 16 px -> latents [4,4,4]."""

    digest = "pixels"

    def encode(self, images: np.ndarray) -> np.ndarray:
        blocks = images.reshape(len(images), 4, 4, 4, 4, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2) / 255 - 0.5
        return (8 * np.concatenate([blocks, blocks[:, :1]], 1)).astype(np.float32)


class Letters:
    digest = "letters"

    def encode(self, captions: list[str]) -> np.ndarray:
        return np.stack([np.full((3, 8), 0.1 * len(caption), np.float32) for caption in captions])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(4):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        coarse.resize((24, 24), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    source = DataSource(kind="images", resolution=16, images=40, train=(str(folder),), degradation="realesrgan")
    return precompute(source, Pixels(), Letters(), tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def pretrained(data, make_spec, tmp_path_factory):
    """A text-to-image checkpoint on latents of the same autoencoder."""
    folder = tmp_path_factory.mktemp("pretrained")
    return Checkpoint.load(train(make_spec(data, images=16, checkpoints=()), data, folder))


@pytest.fixture(scope="module")
def finetuning(make_spec, photographs, pretrained):
    model, ref = pretrained.spec.model.conditioned, pretrained.ref("ema")
    return make_spec(photographs, model=model, objective="superres", caption_dropout=0.0, start_from=ref)


def test_it_is_denoising_given_the_condition_beside_the_noise():
    rng = torch.Generator().manual_seed(0)
    x0, noise, condition = torch.randn(3, 5, 4, 8, 8, generator=rng)
    batch = Batch(x0, torch.randn(5, 3, 6, generator=rng), noise, torch.tensor([0, 9, 500, 900, 999]), condition)
    seen = []

    def network(x, timesteps, contexts):
        seen.append((x, timesteps, contexts))
        return 0.3 * x[:, :4] + 0.2 * x[:, 4:]

    losses = OBJECTIVES["superres"](network, batch, SETTINGS)
    plain = OBJECTIVES["denoise"](lambda x, *_: 0.3 * x + 0.2 * condition, batch, SETTINGS)
    assert torch.equal(losses, plain)
    x, timesteps, contexts = seen[0]
    assert torch.equal(x[:, 4:], condition) and torch.equal(timesteps, batch.timesteps)
    assert torch.equal(contexts, batch.contexts)


def test_it_starts_as_the_text_to_image_checkpoint_that_it_is_given(finetuning, photographs, pretrained):
    state = loop.start(finetuning, "cpu", lambda ref: pretrained.folder)
    (batch,) = batches(state, finetuning, photographs)
    narrow = pretrained.network("ema").to(memory_format=torch.channels_last)
    with torch.no_grad():
        losses = OBJECTIVES["superres"](state.network, batch, finetuning)
        lean = loop.LeanForward(narrow)
        assert torch.equal(losses, OBJECTIVES["denoise"](lean, batch, finetuning))


def test_new_weights_are_trained(finetuning, photographs, pretrained, tmp_path):
    spec = finetuning.model_copy(update={"images": 16, "checkpoints": ()})
    final = train(spec, photographs, tmp_path, locate=lambda ref: pretrained.folder)
    weights = Checkpoint.load(final).weights("raw")["conv_in.weight"]
    assert weights.shape[1] == 8 and (weights[:, 4:] != 0).any(dim=(0, 2, 3)).all()


def test_stopped_and_gone_on_with_equals_never_stopped(finetuning, photographs, pretrained, tmp_path):
    def run(folder, until=None):
        def stop(line):
            if until is not None and line["images_seen"] == until:
                raise KeyboardInterrupt

        return train(
            finetuning, photographs, folder, progress=stop, save_every_images=16, locate=lambda ref: pretrained.folder
        )

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", until=56)
    whole, again = Checkpoint.load(run(tmp_path / "whole")), Checkpoint.load(run(tmp_path / "stopped"))
    assert whole.digests == again.digests


def test_a_batch_is_of_pairs(finetuning, photographs, pretrained):
    state = loop.start(finetuning, "cpu", lambda ref: pretrained.folder)
    state.images_seen = 16
    (batch,) = batches(state, finetuning, photographs)
    places = [
        int(np.flatnonzero((photographs.latents(range(40)) == latent.numpy()).all(axis=(1, 2, 3)))[0])
        for latent in batch.latents
    ]
    assert batch.condition is not None
    np.testing.assert_array_equal(batch.condition.numpy(), photographs.conditions(places))
    assert (batch.contexts.numpy() == photographs.null_context).all()


def test_what_cannot_be_trained_is_refused(finetuning, data, make_spec, photographs, pretrained, tmp_path):
    with pytest.raises(SpecError, match="no captions to drop"):
        TrainSettings.parse(SETTINGS.model_dump() | {"caption_dropout": 0.1})
    with pytest.raises(DataError, match="no low-resolution images"):
        train(finetuning.model_copy(update={"data": data.spec}), data, tmp_path)
    narrow = finetuning.model_copy(update={"model": pretrained.spec.model})
    with pytest.raises(DataError, match="4 in and 4 out, which takes twice as many in as out"):
        train(narrow, photographs, tmp_path)
    wider = finetuning.model_copy(update={"model": finetuning.model.model_copy(update={"width": 8})})
    with pytest.raises(DataError, match="cannot start"):
        train(wider, photographs, tmp_path, locate=lambda ref: pretrained.folder)
    alien = photographs.spec.model_copy(update={"autoencoder": "other"})
    with pytest.raises(DataError, match="another autoencoder"):
        loop.start(finetuning.model_copy(update={"data": alien}), "cpu", lambda ref: pretrained.folder)
