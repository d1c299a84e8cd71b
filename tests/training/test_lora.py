from __future__ import annotations

import pytest
import torch

from isocost.errors import SpecError
from isocost.specs import Lora, TrainSettings
from isocost.training import loop, lora
from isocost.training.loop import batches, train
from isocost.training.objectives import OBJECTIVES
from isocost.training.state import Checkpoint

pytest.importorskip("peft")

RANK = Lora(rank=2, alpha=3.0)


@pytest.fixture(scope="module")
def pretrained(data, make_spec, tmp_path_factory):
    return Checkpoint.load(train(make_spec(data, images=16, checkpoints=()), data, tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def spec(data, make_spec, pretrained):
    return make_spec(data, lora=RANK, start_from=pretrained.ref("ema"))


@pytest.fixture(scope="module")
def tuned(spec, data, pretrained, tmp_path_factory):
    folder = train(spec, data, tmp_path_factory.mktemp("lora"), locate=lambda ref: pretrained.folder)
    return Checkpoint.load(folder)


def start(spec, pretrained):
    return loop.start(spec, "cpu", lambda ref: pretrained.folder)


def test_it_starts_as_the_checkpoint_that_it_is_given(spec, data, pretrained):
    state = start(spec, pretrained)
    (batch,) = batches(state, spec, data)
    network = loop.from_unet(pretrained.network("ema"))
    with torch.no_grad():
        ours, base = (OBJECTIVES["denoise"](one, batch, spec) for one in (state.network, network))
    torch.testing.assert_close(ours, base, rtol=1e-5, atol=1e-6)


def test_adapters_alone_are_trained(spec, pretrained, tuned):
    state = start(spec, pretrained)
    trained = [name for name, weight in state.module.named_parameters() if weight.requires_grad]
    assert trained and all(lora.is_adapter(name) for name in trained)
    base, found = pretrained.weights("ema"), tuned.weights("ema")
    assert base.keys() == found.keys()  # so that whoever samples need not know
    changed = {name for name in base if not torch.equal(base[name], found[name])}
    assert changed == {f"{name}.weight" for name, _ in lora.targets(pretrained.network("ema"), RANK)}


def test_what_is_sampled_from_is_the_network_with_its_averaged_adapters(spec, data, pretrained, tuned):
    state = start(spec, pretrained)
    named = dict(state.module.named_parameters())
    with torch.no_grad():
        for name, value in tuned.adapters().items():
            named[lora.inner_name(name)].copy_(value)
    (batch,) = batches(state, spec, data)
    with torch.no_grad():
        beside = OBJECTIVES["denoise"](state.network, batch, spec)
        merged = OBJECTIVES["denoise"](loop.from_unet(tuned.network("ema")), batch, spec)
    torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-5)


def test_stopped_and_gone_on_with_equals_never_stopped(spec, data, pretrained, tuned, tmp_path):
    def stop(line):
        if line["images_seen"] == 56:
            raise KeyboardInterrupt

    how = {"save_every_images": 16, "locate": lambda ref: pretrained.folder}
    with pytest.raises(KeyboardInterrupt):
        train(spec, data, tmp_path, progress=stop, **how)
    again = Checkpoint.load(train(spec, data, tmp_path, **how))
    assert again.digests == tuned.digests


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Lora(rank=9), "rank 9 is above the width of .*: an adapter of rank 8"),
        (Lora(rank=2, targets=("to_z",)), "ends in 'to_z'"),
        (Lora(rank=2, targets=("conv1",)), "is a Conv2d"),
    ],
)
def test_adapters_that_cannot_be_are_refused(spec, pretrained, asked, message):
    with pytest.raises(SpecError, match=message):
        start(spec.model_copy(update={"lora": asked}), pretrained)


def test_muon_is_refused():
    with pytest.raises(SpecError, match="Muon's updates are of full rank"):
        TrainSettings.parse(
            {"images": 8, "batch": 8, "caption_dropout": 0.0, "lora": {"rank": 2}, "optimizer": {"kind": "muon"}}
        )
