from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.training.conftest import Letters, Pixels

from isocost.data import sampler
from isocost.encoders.precompute import precompute
from isocost.errors import DataError, SpecError
from isocost.specs import DataSource, Optimizer, Prior, TrainSettings
from isocost.training import loop
from isocost.training.loop import batches, train
from isocost.training.objectives import OBJECTIVES, Batch, dreambooth
from isocost.training.state import Checkpoint

INSTANCES, IMAGES = 5, 12
SETTINGS = TrainSettings(images=8, batch=8, caption_dropout=0.0, objective="dreambooth", prior=Prior(weight=0.5))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Pictures of a subject and of its class, each in a folder."""
    rng = np.random.default_rng(0)
    found = []
    for name, count in (("subject", INSTANCES), ("class", IMAGES - INSTANCES)):
        folder = tmp_path_factory.mktemp(name)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text("a z star" if name == "subject" else "a star")
        found.append(str(folder))
    return found


@pytest.fixture(scope="module")
def subject(folders, tmp_path_factory):
    source = DataSource(kind="images", resolution=16, train=folders, instances=INSTANCES)
    return precompute(source, Pixels(), Letters(), tmp_path_factory.mktemp("latents"), check_scale=False)


@pytest.fixture(scope="module")
def alone(folders, tmp_path_factory):
    """The subject's pictures, and nothing else."""
    source = DataSource(kind="images", resolution=16, train=folders[:1])
    return precompute(source, Pixels(), Letters(), tmp_path_factory.mktemp("latents"), check_scale=False)


@pytest.fixture(scope="module")
def pretrained(data, make_spec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    return Checkpoint.load(train(make_spec(data, images=16, checkpoints=()), data, folder))


@pytest.fixture(scope="module")
def tuning(make_spec, subject, pretrained):
    return make_spec(subject, objective="dreambooth", prior=Prior(weight=0.5), start_from=pretrained.ref("ema"))


def test_the_loss_is_the_mean_of_each_half_weighted(tuning, subject, pretrained):
    """Against the expression of diffusers' train_dreambooth: mse(instance) + prior_loss_weight * mse(class)."""
    state = loop.start(tuning, "cpu", lambda ref: pretrained.folder)
    (batch,) = batches(state, tuning, subject)

    def network(x, timesteps, contexts):
        return 0.3 * x + contexts.mean()

    losses = OBJECTIVES["dreambooth"](network, batch, tuning)
    plain = OBJECTIVES["denoise"](network, batch._replace(weights=None), tuning)
    own, of_class = plain.chunk(2)
    assert (losses.sum() / tuning.batch).item() == pytest.approx((own.mean() + 0.5 * of_class.mean()).item(), rel=1e-6)


def test_half_a_batch_is_of_the_subject_and_half_of_its_class(tuning, subject):
    seen = np.concatenate([dreambooth.indices(tuning, start).reshape(2, 4) for start in range(0, 80, 8)], axis=1)
    assert (seen[0] < INSTANCES).all() and (seen[1] >= INSTANCES).all()
    assert np.bincount(seen[0]).tolist() == [8] * INSTANCES  # 40 of 5: every picture as often
    assert set(seen[1]) == set(range(INSTANCES, IMAGES))


def test_ranks_and_parts_see_what_one_sees(tuning, subject, pretrained):
    state = loop.start(tuning, "cpu", lambda ref: pretrained.folder)
    state.images_seen = 16
    (whole,) = batches(state, tuning, subject)
    parts = list(batches(state, tuning.model_copy(update={"accumulation": 4}), subject))
    for together, name in zip(zip(*parts, strict=True), Batch._fields, strict=True):
        if together[0] is not None:
            assert torch.equal(torch.cat(together), getattr(whole, name)), name
    assert whole.weights.tolist() == [2.0] * 4 + [1.0] * 4


def test_with_weight_zero_it_is_plain_fine_tuning_to_the_bit(tuning, subject, alone, make_spec, pretrained, tmp_path):
    without = tuning.model_copy(update={"prior": Prior(weight=0)})
    plain = make_spec(alone, start_from=pretrained.ref("ema"))

    def run(spec, data, name):
        return Checkpoint.load(train(spec, data, tmp_path / name, locate=lambda ref: pretrained.folder))

    assert run(without, subject, "without").digests == run(plain, alone, "plain").digests
    assert np.array_equal(dreambooth.indices(without, 16), sampler.indices(INSTANCES, plain.seed, 16, 8))
    assert run(tuning, subject, "with").digests != run(plain, alone, "plain").digests


def test_stopped_and_gone_on_with_equals_never_stopped(tuning, subject, pretrained, tmp_path):
    def run(folder, until=None):
        def stop(line):
            if until is not None and line["images_seen"] == until:
                raise KeyboardInterrupt

        locate = lambda ref: pretrained.folder  # noqa: E731
        return train(tuning, subject, folder, progress=stop, save_every_images=16, locate=locate)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", until=56)
    assert Checkpoint.load(run(tmp_path / "whole")).digests == Checkpoint.load(run(tmp_path / "stopped")).digests


def test_what_cannot_be_trained_is_refused(tuning, subject, data, alone, make_spec, tmp_path):
    with pytest.raises(SpecError, match="goes with settings `prior`"):
        TrainSettings.parse(SETTINGS.model_dump() | {"prior": None})
    with pytest.raises(SpecError, match="has no half"):
        TrainSettings.parse(SETTINGS.model_dump() | {"batch": 1})
    with pytest.raises(DataError, match="which images are the subject's"):
        train(tuning.model_copy(update={"data": data.spec}), data, tmp_path)
    only = subject.spec.model_copy(update={"instances": IMAGES})
    with pytest.raises(DataError, match="no images of the class"):
        loop._check_subject(tuning.model_copy(update={"data": only}), subject)
    assert Optimizer().kind == "adamw" and alone.spec.instances is None
