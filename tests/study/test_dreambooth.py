"""A study of DreamBooth, small enough for a test: the tiny study's member is taught two objects, with adapters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.study.conftest import tiny_study

from isocost import api
from isocost.diffusion.noise import batch_noise
from isocost.encoders.text import load_text_encoder
from isocost.errors import DataError, SpecError
from isocost.specs import (
    EngineSpec,
    Evaluation,
    Grid,
    Lora,
    LrSchedule,
    Optimizer,
    Prior,
    StudySpec,
    Subject,
    Subjects,
    TrainSettings,
)
from isocost.study import dreambooth, tables
from isocost.study.executors import Processes
from isocost.study.status import status
from isocost.study.store import Store
from isocost.study.subjects import pictures_of, rare_token, shown

METRICS = ("similarity", "clip", "accuracy", "pres", "div", "kid")
PROMPTS = ("a {} on the left on a white background", "a {} at the top on a black background")


@pytest.fixture(scope="module")
def study(swept) -> StudySpec:
    pytest.importorskip("peft")
    tiny = tiny_study()
    return StudySpec(
        name="tiny-dreambooth",
        data=tiny.data,
        members=tiny.members,
        start_from=str(swept),
        train=TrainSettings(
            objective="dreambooth",
            prior=Prior(),
            lora=Lora(rank=2),
            images=16,
            batch=8,
            caption_dropout=0.1,
            optimizer=Optimizer(lr=0.05),
            lr_schedule=LrSchedule(kind="constant"),
        ),
        grid=Grid(steps=(2,), guidance=(2.0,)),
        evaluation=Evaluation(metrics=METRICS, select_by="similarity"),
        engine=EngineSpec(batch=8),
        dreambooth=Subjects(
            subjects=(Subject(name="house", noun="square"), Subject(name="target", noun="circle")),
            prompts=PROMPTS,
            images=2,
            pictures=3,
            class_images=4,
        ),
    )


@pytest.fixture(scope="module")
def store(study, tmp_path_factory) -> Store:
    found = Store(tmp_path_factory.mktemp("dreambooth"))
    api.sweep(study, found.path, workers=1)
    return found


def test_a_cell_is_a_member_and_what_it_was_stands_beside(store):
    table, frames = tables.table(store), tables.frames(store)
    assert set(table["member"]) == {"c8"} and set(table["objective"]) == {"dreambooth"}
    assert sorted(set(frames["frame"])) == ["c8 pictures alone", "c8 untuned"]
    families = {metric.partition("[")[0] for metric in table["metric"]}
    assert families == set(METRICS) == {metric.partition("[")[0] for metric in frames["metric"]}
    assert set(table["split"]) == {"selection", "report", "all"} and set(table["n"]) == {2}
    row = table[(table["split"] == "all") & table["metric"].str.startswith("similarity")].iloc[0]
    assert len(store.influence(row["score_key"])) == 2 and row["stderr"] >= 0


def test_fidelity_is_the_mean_over_pairs_of_images_and_pictures(store, study):
    from isocost.scoring.extractors import load_extractor

    opened, tunings = dreambooth.opened(store)
    group = next(one for one in dreambooth.groups(opened, tunings) if one.how == dreambooth.PRESERVED)
    see, values = load_extractor("scenes-clip-score"), []
    for checkpoint, one in zip(group.checkpoints, opened.subjects, strict=True):
        images = dreambooth.images_of(opened, dreambooth.subject_sets(opened, checkpoint, one)[0])
        ours, theirs = see(images), see(one.pictures)
        values.append(np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a in ours for b in theirs]))
    table = tables.table(store)
    row = table[(table["split"] == "all") & table["metric"].str.startswith("similarity")].iloc[0]
    assert row["value"] == pytest.approx(np.mean(values), rel=1e-5)


def test_a_second_sweep_makes_nothing_and_needs_no_start(store, study, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in store.path.glob("[cds]*/**/*.*")}
    moved = study.model_copy(update={"start_from": study.start_from})
    api.sweep(moved, store.path, workers=1)
    assert {path: path.stat().st_mtime_ns for path in store.path.glob("[cds]*/**/*.*")} == before
    assert status(store).finished


def test_images_of_the_class_are_reused_when_it_goes_on(store, study):
    """A tuning that is lost is made again from the images of the class that are there."""
    import shutil

    images = {path: path.stat().st_mtime_ns for path in store.path.glob("chunks/**/*.safetensors")}
    _, tunings = dreambooth.opened(store)
    lost = store.path / "checkpoints" / tunings[0].run.spec.digest
    kept = (lost / "checkpoints" / "000000016" / "ema.safetensors").read_bytes()
    shutil.rmtree(lost)
    dreambooth.train(study, store, Processes(1))
    assert (lost / "checkpoints" / "000000016" / "ema.safetensors").read_bytes() == kept
    assert {path: path.stat().st_mtime_ns for path in store.path.glob("chunks/**/*.safetensors")} == images


def test_both_tunings_start_from_the_member_and_see_the_same_pictures(store, swept):
    opened, tunings = dreambooth.opened(store)
    assert [one.name for one in tunings] == ["c8-house", "c8-house-alone", "c8-target", "c8-target-alone"]
    (start,) = opened.starts.values()
    assert {one.run.spec.start_from for one in tunings} == {start.ref}
    assert {one.run.spec.prior.weight for one in tunings} == {0.0, 1.0}  # type: ignore[union-attr]
    assert tunings[0].data == tunings[1].data and tunings[0].run.spec.data.instances == 3


def test_the_report_has_the_papers_figure_and_the_table_it_lacks(store, tmp_path):
    page = api.report(store.path, tmp_path).read_text()
    for words in ("DreamBooth", "as Fig. 6", "tuned, its prior preserved", "by size"):
        assert words in page
    assert {"strip-subject-house.png", "dreambooth-similarity.png"} <= {
        p.name for p in (tmp_path / "figures").iterdir()
    }


def test_adapters_and_the_whole_export_draw_the_same_in_diffusers(store, tmp_path):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    opened, tunings = dreambooth.opened(store)
    (start,) = opened.starts.values()
    prompt = tunings[0].shown.captions[0]
    whole = api.export(store.path, tmp_path / "whole", member="c8-house")
    base = api.export(start.folder, tmp_path / "base")
    adapters = api.export(store.path, tmp_path / "lora", member="c8-house", lora=True)

    def drawn(folder, lora=None):
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        if lora is not None:
            pipeline.load_lora_weights(lora)
        latents = torch.from_numpy(batch_noise([(prompt, 0)], "x_T", (4, 8, 8)))
        how = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": latents, "output_type": "np"}
        return pipeline([prompt], negative_prompt=[""], **how).images

    found = drawn(whole)
    assert np.abs(found - drawn(base, adapters)).max() < 1e-3
    assert np.abs(found - drawn(base)).max() > 1e-3  # it has learnt something
    ours = api.sample(store.path, [prompt], member="c8-house", steps=4, guidance_scale=3.0, spacing="leading")
    assert np.abs(found - ours / 255.0).max() < 0.5 / 255 + 1e-3
    with pytest.raises(SpecError, match="no adapters to write"):
        api.export(start.folder, tmp_path / "none", lora=True)


# --- bad input ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dreambooth": None}, "give both, or neither"),
        ({"start_from": None}, "name its store in start_from"),
        ({"start_from": "nowhere"}, "is no store"),
        ({"grid": {"steps": (2, 4)}}, "one plan"),
        ({"evaluation": {"metrics": ("similarity", "fd")}}, "'fd' is none of DreamBooth's"),
        ({"train": {"lora": {"rank": 99}}}, "rank 99 is above the width"),
        ({"dreambooth": {"token": "two words"}}, "has to be one word"),
        ({"dreambooth": {"token": " "}}, "prompt of the subject is that of its class"),
        ({"dreambooth": {"prompts": ("a house", "a {}")}}, "where the subject stands"),
        ({"dreambooth": {"subjects": [{"name": "hause", "noun": "square"}, {"name": "face", "noun": "circle"}]}},
         "hause.*Did you mean 'house'"),
        ({"dreambooth": {"subjects": [{"name": "house", "noun": " "}, {"name": "face", "noun": "circle"}]}},
         "that of its class"),
    ],
)  # fmt: skip
def test_studies_that_cannot_be_are_refused_at_once(study, changes, message):
    fields = study.model_dump(mode="json")
    for part, update in changes.items():
        fields[part] = {**fields[part], **update} if isinstance(update, dict) else update
    with pytest.raises(SpecError, match=message):
        dreambooth.check(StudySpec.parse(fields))


def _pictures(folder, sizes):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}.png")
    return Subject(name="mine", noun="square", pictures=(str(folder),))


def test_one_picture_only_is_refused(study, tmp_path):
    with pytest.raises(DataError, match=r"1 picture of mine.*Give 3 to 6"):
        pictures_of(_pictures(tmp_path / "one", [(40, 40)]), study)


def test_pictures_of_different_sizes_become_squares_of_one(study, tmp_path):
    found = pictures_of(_pictures(tmp_path / "sizes", [(40, 60), (90, 33), (8, 8)]), study)
    assert found.shape == (3, 32, 32, 3)


def test_pictures_are_chosen_by_subject(study, tmp_path):
    subject = _pictures(tmp_path / "many", [(40, 40)] * 4)
    for number in range(4):
        (tmp_path / "many" / f"{number}.json").write_text(f'{{"subject": "{("mine", "other")[number % 2]}"}}')
    assert len(pictures_of(subject, study)) == 2
    with pytest.raises(SpecError, match=r"minee.*Did you mean 'mine'"):
        pictures_of(subject.model_copy(update={"name": "minee"}), study)


def test_the_token_is_one_that_no_caption_has(study):
    encoder = load_text_encoder("scenes-clip-condition")
    token = rare_token(encoder, ["a red circle on a blue background"])
    assert len(encoder.tokenizer.tokenize(token)) == 1
    assert rare_token(encoder, [f"a {token}"]) != token
    one = shown(study, token)[0]
    assert set(one.captions) == {f"a {token} square"} and one.of_class.at(3)[0].text == "a square"
    assert one.plain[0] == "a square on the left on a white background"
    assert one.asked(0) == {"place": "left", "background": "white"}
    own = study.model_copy(update={"dreambooth": study.dreambooth.model_copy(update={"prompt": None})})
    captioned = shown(own, token)[0]
    assert len(set(captioned.captions)) > 1 and all(f"a {token} square " in text for text in captioned.captions)
    assert captioned.of_class.at(1)[0].text == captioned.plain[1]
