"""A study of super-resolution, small enough for a test: one member that starts from the tiny study's, two budgets."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tests.study.conftest import tiny_study

from isocost.data.pairs import enlarged
from isocost.encoders.autoencoder import load_autoencoder
from isocost.errors import SpecError, StoreError
from isocost.scoring.lowres import LowResolution
from isocost.scoring.paired import psnr
from isocost.specs import DataSource, Evaluation, Grid, LrSchedule, StudySpec, TrainSettings
from isocost.study import run, tables
from isocost.study.store import Store
from isocost.study.superres import start_folder
from isocost.training.state import Checkpoint

METRICS = ("kid[scenes-clip-score]", "psnr", "ssim")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(2):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        coarse.resize((72, 72), Image.Resampling.BICUBIC).save(folder / f"photo-{number}.png")
    return folder


@pytest.fixture(scope="module")
def study(photographs, swept) -> StudySpec:
    tiny = tiny_study()
    return StudySpec(
        name="tiny-sr",
        data=DataSource(kind="images", resolution=64, images=24, train=(str(photographs),), degradation="stablesr"),
        members=tuple(model.conditioned for model in tiny.members),
        start_from=str(swept),
        train=TrainSettings(
            images=16,
            batch=8,
            objective="superres",
            lr_schedule=LrSchedule(kind="constant"),
            caption_dropout=0.0,
            checkpoints=(8,),
        ),
        grid=Grid(steps=(1, 2)),
        curve=Grid(steps=(2,)),
        evaluation=Evaluation(
            prompts=f"sr-64:{photographs}", images=12, metrics=METRICS, select_by=METRICS[0], keep_images=True
        ),
        engine=tiny.engine.model_copy(update={"batch": 8}),
    )


@pytest.fixture(scope="module")
def store(study, tmp_path_factory) -> Store:
    store = Store(tmp_path_factory.mktemp("sr"))
    run.sweep(study, store, workers=1)
    return store


def test_every_cell_is_scored_against_its_targets(store, study):
    table = run.table(store)
    assert set(table["metric"]) == set(METRICS) and set(table["objective"]) == {"superres"}
    assert sorted(table.loc[~table["curve"].astype(bool), "steps"].unique()) == [1, 2]
    assert sorted(table.loc[table["curve"].astype(bool), "images_seen"].unique()) == [8, 16]
    trained = run.opened(store)
    assert trained.pairs is not None
    pairs = LowResolution(trained.pairs)
    keys = [trained.prompts.at(place)[0].text for place in range(12)]
    row = table[(table["metric"] == "psnr") & (table["split"] == "all") & (table["steps"] == 1)].iloc[0]
    images = np.concatenate([store.read_chunk(row["sample_key"], index).images for index in range(2)])[:12]
    assert row["value"] == pytest.approx(psnr(images, pairs.high(keys)).mean(), rel=1e-6)
    assert row["gflops_per_image"] > 0 and row["evaluations"] == 1


def test_bicubic_and_autoencoder_frame_the_table(store):
    trained, frames = run.opened(store), tables.frames(store)
    assert trained.pairs is not None
    pairs = LowResolution(trained.pairs)
    keys = [trained.prompts.at(place)[0].text for place in range(12)]
    targets = pairs.high(keys)
    autoencoder = load_autoencoder("scenes-vae")
    expected = {
        "bicubic": np.stack([enlarged(low) for low in pairs.low(keys)]),
        "autoencoder": autoencoder.decode(autoencoder.encode(targets)),
    }
    whole = frames[(frames["split"] == "all") & (frames["metric"] == "psnr")].set_index("frame")
    for name, images in expected.items():
        assert whole.loc[name, "value"] == pytest.approx(psnr(images, targets).mean(), rel=1e-6)
        assert len(store.influence(whole.loc[name, "score_key"])) == 12
    assert set(frames["metric"]) == set(METRICS)


def test_members_start_from_the_other_studys_members(store, study, swept):
    spec = run.opened(store).checkpoints[-1]
    trained = Checkpoint.load(spec.folder).spec
    assert trained.start_from is not None
    base = run.opened(Store(swept)).checkpoints
    finals = [one.ref for one in base if one.ref.images_seen == 256]
    assert trained.start_from in finals
    assert Checkpoint.load(start_folder(store.path, trained.start_from)).ref("ema") == trained.start_from


def test_a_second_sweep_makes_nothing_and_needs_no_start(store, study, monkeypatch, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in store.path.glob("c*/**/*.*")}
    moved = study.model_copy(update={"start_from": str(tmp_path / "gone")})
    assert moved.digest == study.digest
    run.sweep(moved, store, workers=1)
    assert {path: path.stat().st_mtime_ns for path in store.path.glob("c*/**/*.*")} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"degradation": None}}, "give both, or neither"),
        ({"data": {"resolution": 32}}, "crops of 64 pixels, and members are trained at data.resolution 32"),
        ({"grid": {"guidance": (1.0, 2.0)}}, "caption_dropout"),
        ({"evaluation": {"prompts": "scenes-val"}}, "unknown protocol 'scenes-val'"),
    ],
)
def test_studies_that_cannot_be_are_refused_at_once(study, changes, message):
    fields = study.model_dump(mode="json")
    for part, update in changes.items():
        fields[part] |= update
    with pytest.raises(SpecError, match=message):
        run.check(StudySpec.parse(fields))


def test_members_that_take_no_image_are_refused(study):
    narrow = study.model_copy(update={"members": tiny_study().members})
    with pytest.raises(SpecError, match="twice as many in as out"):
        run.check(narrow)


def test_a_start_that_is_not_there_is_named(study, tmp_path, swept):
    other = study.model_copy(update={"seeds": (5,)})
    with pytest.raises(SpecError, match="has no member c8 of seed 5 to start from"):
        run.train(other, Store(tmp_path / "a"), workers=1)
    nowhere = study.model_copy(update={"start_from": str(tmp_path / "nowhere")})
    with pytest.raises((SpecError, StoreError), match="nowhere"):
        run.train(nowhere, Store(tmp_path / "b"), workers=1)


def test_the_report_has_floor_ceiling_and_the_papers_figures(store, tmp_path):
    from isocost.reporting.from_store import write

    page = write(store, tmp_path).read_text()
    for words in ("Super-resolution", "bicubic", "autoencoder alone", "as Fig. 4", "Crops by size"):
        assert words in page
    made = {path.name for path in (tmp_path / "figures").glob("*.png")}
    assert {"sr-compute-kid.png", "sr-few-steps-psnr.png", "strip-crops-most-steps.png"} <= made


def test_upkeep_keeps_the_frames(store, tmp_path):
    from isocost.study import upkeep

    frames = {row["sample_key"] for row in store.expansion()["frames"]}
    assert not any(key in path for key in frames for path in upkeep.prune(store, dry_run=True)["would remove"])
    assert not upkeep.verify(store)["corrupt"]
    upkeep.publish(store, tmp_path)
    assert {key for key in frames if key in (tmp_path / "frames.json").read_text()} == frames


def test_floor_and_ceiling_stand_first_in_the_table_of_cells(store):
    from isocost import api

    cells = api.cells(store.path)
    assert cells["member"].tolist()[:2] == ["bicubic", "autoencoder"] and set(cells["member"][2:]) == {"c8"}
    assert cells["psnr"].notna().all() and cells["steps"].notna().sum() == len(cells) - 2
