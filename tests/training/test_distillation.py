"""Runs that distil: where they start, what they follow, and that they go on to the same bits."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from isocost.errors import DataError, SpecError, TrainingError
from isocost.models.cost import forward_flops, training_flops
from isocost.specs import Consistency, DataSource, Guided, NoiseSchedule
from isocost.training import loop
from isocost.training.lineage import training_gflops
from isocost.training.loop import batches, train
from isocost.training.parallel import Layout
from isocost.training.state import Checkpoint

EMBED = {"guidance_dim": 16}


@pytest.fixture(scope="module")
def teacher(data, make_spec, tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("teacher")
    return Checkpoint.load(train(make_spec(data, images=16, checkpoints=()), data, folder))


@pytest.fixture(scope="module")
def make_student(data, make_spec, teacher):
    """The spec of a student of a checkpoint, by default the teacher."""

    def make(objective="consistency", of=teacher, embed=True, **changes):
        fields = {
            "model": of.spec.model.model_copy(update=EMBED if embed else {}),
            "objective": objective,
            "start_from": of.ref("ema"),
            "teacher": of.ref("ema"),
            "caption_dropout": 0.0,
            "images": 48,
            "checkpoints": (16,),
        }
        how = {"consistency": Consistency(guidance=(1.0, 4.0))} if objective == "consistency" else {"guided": Guided()}
        return make_spec(data, **{**fields, **how, **changes})

    return make


@pytest.fixture(scope="module")
def stage_1(data, make_student, teacher, tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("stage-1")
    spec = make_student("guided", images=16, checkpoints=())
    return Checkpoint.load(train(spec, data, folder, locate=lambda ref: teacher.folder))


def test_the_student_equals_its_teacher_at_first(data, make_student, teacher):
    spec = make_student()
    state = loop.start(spec, "cpu", lambda ref: teacher.folder)
    (batch,) = batches(state, spec, data)
    assert state.networks is not None and batch.scales is not None
    assert 1 <= batch.scales.min() < batch.scales.max() <= 4
    assert torch.equal(batch.null_context, torch.from_numpy(data.null_context))
    given = batch.noise, batch.timesteps, batch.contexts
    with torch.no_grad():
        own = state.networks.student(*given, batch.scales)
        assert torch.equal(own, state.networks.teacher(*given))
        assert torch.equal(own, state.networks.target(*given, batch.scales))


def test_scales_are_a_function_of_images_seen(data, make_student, teacher):
    spec = make_student()
    state = loop.start(spec, "cpu", lambda ref: teacher.folder)
    first = [batch.scales for batch in batches(state, spec, data)]
    parts = list(batches(state, spec.model_copy(update={"accumulation": 4}), data))
    assert torch.equal(torch.cat([part.scales for part in parts]), first[0])
    state.images_seen = 8
    (later,) = batches(state, spec, data)
    assert not torch.equal(later.scales, first[0])


def test_the_target_is_the_average_after_every_step(data, make_student, teacher, tmp_path):
    spec = make_student()
    state = loop.start(spec, "cpu", lambda ref: teacher.folder)
    before = {name: weight.clone() for name, weight in state.average.state_dict().items()}
    for _ in range(2):
        loop.step(state, spec, data, tmp_path)
    target = dict(state.networks.target.unet.named_parameters())
    assert target.keys() == before.keys()
    for name, average in state.average.state_dict().items():
        assert target[name].data_ptr() == average.data_ptr()
    assert any(not torch.equal(target[name], before[name]) for name in before)
    assert not any(weight.requires_grad for weight in target.values())


@pytest.mark.parametrize("objective", ["consistency", "guided"])
def test_stopped_and_gone_on_with_equals_never_stopped(objective, data, make_student, teacher, tmp_path):
    spec = make_student(objective)

    def run(folder, until=None):
        def stop(line):
            if until is not None and line["images_seen"] == until:
                raise KeyboardInterrupt

        return train(spec, data, folder, progress=stop, save_every_images=16, locate=lambda ref: teacher.folder)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", until=40)
    whole, again = Checkpoint.load(run(tmp_path / "whole")), Checkpoint.load(run(tmp_path / "stopped"))
    assert whole.digests == again.digests
    weight = whole.weights("ema")["time_embedding.cond_proj.weight"]
    assert (weight != 0).any()


def test_codi_needs_no_guidance_and_drops_captions(data, make_student, teacher, tmp_path):
    spec = make_student(embed=False, consistency=Consistency(setting="codi"), caption_dropout=0.25, images=16)
    final = Checkpoint.load(train(spec, data, tmp_path, locate=lambda ref: teacher.folder))
    assert final.spec.model == teacher.spec.model
    before, after = teacher.weights("ema"), final.weights("ema")
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)


def test_a_round_learns_from_stage_1_and_its_lineage_says_so(data, make_student, teacher, stage_1, tmp_path):
    spec = make_student("guided", of=stage_1, guided=Guided(steps=8), images=16, checkpoints=())
    final = Checkpoint.load(train(spec, data, tmp_path, locate=lambda ref: stage_1.folder))
    ancestors = final.lineage.ancestors
    assert [(one.objective, one.content_digest) for one in ancestors] == [
        ("denoise", teacher.ref("ema").content_digest),
        ("guided", stage_1.ref("ema").content_digest),
    ]
    size = (4, 3)
    model = spec.model
    plain = 16 * training_flops(teacher.spec.model, *size) / 1e9
    of_stage_1 = 16 * (training_flops(model, *size) + 2 * forward_flops(model, *size)) / 1e9
    assert training_gflops(teacher) == (pytest.approx(plain), pytest.approx(plain))
    assert training_gflops(stage_1) == (pytest.approx(of_stage_1), pytest.approx(plain + of_stage_1))
    own, in_all = training_gflops(final)  # each of two steps of an embedding teacher is one evaluation
    assert own == pytest.approx(of_stage_1) and in_all == pytest.approx(plain + 2 * of_stage_1)
    assert teacher.lineage is None


def changed(checkpoint: Checkpoint, folder, **fields) -> Checkpoint:
    """The same weights, said to be of another spec."""
    shutil.copytree(checkpoint.folder, folder)
    spec = checkpoint.spec.model_copy(update=fields)
    (folder / "spec.yaml").write_text(spec.to_yaml())
    state = json.loads((folder / "state.json").read_text()) | {"spec": spec.digest}
    (folder / "state.json").write_text(json.dumps(state))
    return Checkpoint.load(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prediction": "epsilon"}, "another prediction than its student: epsilon, and v_prediction is asked for"),
        ({"schedule": NoiseSchedule(kind="linear")}, "another schedule"),
        ({"caption_dropout": 0.0}, "cannot be guided: it was trained without caption dropout"),
    ],
)
def test_teachers_that_do_not_fit_are_named(fields, message, data, make_student, teacher, tmp_path):
    other = changed(teacher, tmp_path / "other", **fields)
    with pytest.raises(DataError, match=message):
        loop.start(make_student(), "cpu", lambda ref: other.folder)


def test_a_teacher_of_other_latents_is_named(data, make_student, teacher, tmp_path):
    shape = data.spec.model_copy(update={"latent_shape": (4, 8, 8)})
    other = changed(teacher, tmp_path / "other", data=shape)
    with pytest.raises(DataError, match="latents of another shape than its student: 4x8x8, and 4x4x4 is asked for"):
        loop.start(make_student(), "cpu", lambda ref: other.folder)
    text = changed(teacher, tmp_path / "text", data=data.spec.model_copy(update={"text_encoder": "others"}))
    with pytest.raises(DataError, match="text of another encoder"):
        loop.start(make_student(), "cpu", lambda ref: text.folder)


def test_a_teacher_that_is_not_finite_is_named(data, make_student, teacher, tmp_path):
    from safetensors.torch import save_file

    from isocost.files import file_digest

    folder = shutil.copytree(teacher.folder, tmp_path / "nan")
    weights = teacher.weights("ema")
    weights["conv_in.bias"][0] = float("nan")
    save_file(weights, folder / "ema.safetensors")
    state = json.loads((folder / "state.json").read_text())
    state["sha256"]["ema.safetensors"] = file_digest(folder / "ema.safetensors")
    (folder / "state.json").write_text(json.dumps(state))
    broken = Checkpoint.load(folder)
    with pytest.raises(DataError, match="nan: this teacher has weights that are not finite"):
        loop.start(make_student(of=broken), "cpu", lambda ref: folder)


def test_a_student_that_diverges_stops(data, make_student, teacher, tmp_path, monkeypatch):
    real = loop.OBJECTIVES["consistency"]
    monkeypatch.setitem(loop.OBJECTIVES, "consistency", lambda *given: real(*given) * float("nan"))
    with pytest.raises(TrainingError, match="after 0 images the loss is nan"):
        train(make_student(), data, tmp_path, locate=lambda ref: teacher.folder)


def test_rounds_that_do_not_follow_are_refused(data, make_student, teacher, stage_1, tmp_path):
    early = make_student("guided", guided=Guided(steps=8))
    with pytest.raises(DataError, match="no student of guided distillation: rounds begin from stage 1"):
        loop.start(early, "cpu", lambda ref: teacher.folder)
    eight = changed(stage_1, tmp_path / "eight", guided=Guided(steps=8))
    with pytest.raises(DataError, match="takes 8 steps: the next round has 4, not 2"):
        loop.start(make_student("guided", of=eight, guided=Guided(steps=2)), "cpu", lambda ref: eight.folder)
    blind = make_student(of=stage_1, consistency=Consistency(setting="codi"), embed=False)
    with pytest.raises((DataError, SpecError), match=r"guidance_dim|embeds guidance"):
        train(blind, data, tmp_path / "blind", locate=lambda ref: stage_1.folder)


def test_specs_that_cannot_be_distilled_are_refused(data, make_spec, make_student, teacher, tmp_path):
    for spec, message in [
        (make_student(teacher=None), "objective 'consistency' has one; name the checkpoint to learn from"),
        (make_spec(data, teacher=teacher.ref("ema")), "objective 'denoise' has none; leave it out"),
        (make_student(embed=False), "give its members a guidance_dim"),
        (make_spec(data, model=teacher.spec.model.model_copy(update=EMBED)), "distils no guidance: leave it out"),
    ]:
        with pytest.raises(SpecError, match=message):
            train(spec, data, tmp_path, locate=lambda ref: teacher.folder)
    with pytest.raises(SpecError, match="whole weights on every rank"):
        train(make_student(), data, tmp_path, layout=Layout(sharding="fsdp"))
    fields = make_student().model_dump(mode="json")
    for changes, message in [
        ({"guided": {}}, "objective 'guided' goes with settings `guided`"),
        ({"consistency": {"setting": "codi", "guidance": [1, 2]}}, "setting 'codi' learns from itself"),
        ({"schedule": {"kind": "flow"}, "prediction": "flow"}, "not of kind 'flow'"),
    ]:
        with pytest.raises(SpecError, match=message):
            type(make_student()).parse(fields | changes)


class Pixels:
    """Block means: 16 px -> latents [4,4,4]."""

    digest = "pixels"

    def encode(self, images):
        blocks = images.reshape(len(images), 4, 4, 4, 4, 3).mean(axis=(2, 4)).transpose(0, 3, 1, 2) / 255 - 0.5
        return torch.tensor(8 * blocks[:, [0, 1, 2, 0]], dtype=torch.float32).numpy()


class Letters:
    digest = "letters"

    def encode(self, captions):
        return torch.full((len(captions), 3, 8), 0.1).numpy()


@pytest.mark.parametrize("setting", ["lcm", "codi"])
def test_a_student_of_super_resolution_is_given_the_image_too(setting, make_spec, tmp_path):
    import numpy as np
    from PIL import Image

    from isocost.encoders.precompute import precompute

    folder = tmp_path / "photographs"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(folder / "one.png")
    source = DataSource(kind="images", resolution=16, images=16, train=(str(folder),), degradation="realesrgan")
    pairs = precompute(source, Pixels(), Letters(), tmp_path / "latents")
    model = make_spec(pairs).model.conditioned
    fields = {"model": model, "caption_dropout": 0.0, "images": 16, "checkpoints": ()}
    upscaler = Checkpoint.load(train(make_spec(pairs, objective="superres", **fields), pairs, tmp_path / "teacher"))
    spec = make_spec(
        pairs, objective="consistency", consistency=Consistency(setting=setting), teacher=upscaler.ref("ema"),
        start_from=upscaler.ref("ema"), **fields,
    )  # fmt: skip
    state = loop.start(spec, "cpu", lambda ref: upscaler.folder)
    (batch,) = batches(state, spec, pairs)
    assert batch.condition is not None and batch.scales is None
    with torch.no_grad():
        losses = loop.OBJECTIVES["consistency"](state.networks, batch, spec)
        other = batch._replace(condition=batch.condition + 1)
        assert not torch.equal(losses, loop.OBJECTIVES["consistency"](state.networks, other, spec))
    final = Checkpoint.load(train(spec, pairs, tmp_path / "student", locate=lambda ref: upscaler.folder))
    assert final.spec.model.takes_image and final.lineage.ancestors[-1].objective == "superres"
