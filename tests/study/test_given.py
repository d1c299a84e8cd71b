"""Other people's checkpoints in a sweep: tiny folders in the layout of Stable Diffusion, random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tests.sampling.test_folders import SD_BETAS, pipeline
from tests.study.conftest import tiny_study

from isocost.cli import main
from isocost.errors import DataError, SpecError
from isocost.sampling.folders import open_folder
from isocost.sampling.generate import generate
from isocost.specs import DataSource, Evaluation, Grid, Guidance, SceneOptions, Stitch, StudySpec
from isocost.study import run
from isocost.study.checks import check_checkpoints_of
from isocost.study.costs import decoder_flops, text_flops
from isocost.study.status import status
from isocost.study.store import Store

ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def write_folder(path: Path, **scheduler) -> Path:
    of = DDIMScheduler(**{**SD_BETAS, "clip_sample": False, "set_alpha_to_one": True, **scheduler})
    pipeline(of).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Two unlike pipelines: `first`, as version 1 (epsilon, leading), and `terminal` (v-prediction, zero SNR)."""
    here = tmp_path_factory.mktemp("given")
    write_folder(here / "first")
    write_folder(here / "terminal", **ZERO_SNR)
    return here


def given_study(folders: Path, **changes) -> StudySpec:
    values = {
        "name": "given",
        "data": DataSource(resolution=32, images=64, scenes=SceneOptions(groups=1)),
        "checkpoints": (str(folders / "first"), str(folders / "terminal")),
        "grid": Grid(steps=(2, 3), guidance=(1.0, 3.0)),
        "evaluation": Evaluation(images=16, references=64, fd_dims=4, metrics=("fd", "clip"), keep_images=True),
        "engine": tiny_study().engine.model_copy(update={"batch": 8}),
    }
    return StudySpec(**(values | changes))


@pytest.fixture(scope="module")
def swept_given(folders, tmp_path_factory) -> Store:
    place = tmp_path_factory.mktemp("store")
    study = place / "study.yaml"
    study.write_text(given_study(folders).to_yaml())
    main(["sweep", str(study), "--store", str(place / "store"), "--workers", "1", "--json"])
    return Store(place / "store")


def test_a_sweep_without_training(swept_given):
    table = run.table(swept_given)
    assert set(table["member"]) == {"first", "terminal"}
    assert table["sample_key"].nunique() == 2 * 2 * 2
    assert table["value"].notna().all() and table["train_gflops"].isna().all()
    assert set(zip(table["member"], table["spacing"], strict=True)) == {("first", "leading"), ("terminal", "trailing")}
    assert status(swept_given).finished


def test_images_are_those_of_the_folder_s_own_plan(swept_given, folders):
    trained = run.opened(swept_given)
    for cell in trained.cells:
        folder = open_folder(folders / cell.member)
        plan = folder.plan("ddim", cell.plan.steps, Guidance(scale=cell.plan.guidance.scale))
        assert cell.plan == plan
    cell = next(one for one in trained.cells if one.member == "terminal" and one.guided)
    prompts = [trained.prompts.at(place)[0] for place in range(8)]
    engine = cell.key.engine
    asked = [(prompt.id, prompt.text, 0) for prompt in prompts]
    images = generate(open_folder(folders / "terminal").pipeline(engine), cell.plan, engine, asked).images
    stored = swept_given.read_chunk(cell.key.digest, 0).images
    assert stored is not None and stored.tobytes() == images.tobytes()


def test_costs_are_of_its_own_parts(swept_given, folders):
    folder = open_folder(folders / "first")
    unet = folder.forward_flops(16)
    for row in swept_given.expansion()["cells"]:
        counted = {evaluations for evaluations, _ in swept_given.chunk_costs(row["sample_key"])}
        guided = row["guidance_scale"] != 1
        assert counted == {row["evaluations"]} == {row["steps"] * (1 + guided)}
        parts = text_flops(folder.text_encoder) * (1 + guided) + decoder_flops(folder.autoencoder, (8, 8))
        assert row["gflops_per_image"] == pytest.approx((row["evaluations"] * unet + parts) / 1e9)
        assert (row["paper_cost"], row["params"]) == (row["steps"], folder.parameters())  # norm. cost 1: the largest


def test_the_commands_that_answer_know_them(swept_given, tmp_path, capsys):
    main(["plan", str(swept_given.path), "--budget", "3", "--member", "terminal"])
    assert "use terminal with DDIM" in capsys.readouterr().out
    main(["report", str(swept_given.path), "--out", str(tmp_path)])
    assert "terminal" in (tmp_path / "report.html").read_text()


def test_a_folder_that_moved_is_the_same_checkpoint(swept_given, folders, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in swept_given.path.glob("chunks/*/*/*")}
    for name in ("first", "terminal"):
        shutil.copytree(folders / name, tmp_path / name)
    study = given_study(tmp_path)
    assert study.digest == given_study(folders).digest
    run.sweep(study, swept_given, workers=1)
    assert {path: path.stat().st_mtime_ns for path in swept_given.path.glob("chunks/*/*/*")} == before


def test_weights_that_changed_under_a_sweep_are_refused(folders, tmp_path):
    from isocost.study.artifacts import EncoderRefs, given_checkpoints
    from isocost.study.grid import expand
    from isocost.study.pipelines import load_pipeline

    shutil.copytree(folders / "first", tmp_path / "first")
    study = given_study(folders, checkpoints=(str(tmp_path / "first"),))
    checkpoints = given_checkpoints(study)
    cell = expand(study, checkpoints, {}, run.strip_prompts(study).promptset)[0]
    shutil.rmtree(tmp_path / "first")
    other = pipeline(DDIMScheduler(**SD_BETAS, clip_sample=False))
    other.unet.conv_in.bias.data += 1
    other.save_pretrained(tmp_path / "first")
    refs = EncoderRefs("scenes-vae", "scenes-clip-condition", "scenes-clip-score", "scenes-attributes")
    with pytest.raises(DataError, match="put that one back, or run the sweep again"):
        load_pipeline(cell.key, {cell.checkpoint.content_digest: tmp_path / "first"}, refs)


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ("c8", "first", "c8 was trained with prediction v_prediction; the plan says epsilon"),
        ("first", "terminal", "first was trained with schedule"),
    ],
)
def test_unlike_checkpoints_share_no_trajectory(folders, first, then, message):
    mixed = {"members": tiny_study().members, "train": tiny_study().train}
    grid = Grid(steps=(4,), stitch=Stitch(first=first, then=then))
    with pytest.raises(SpecError, match=message):
        check_checkpoints_of(given_study(folders, grid=grid, **mixed))


def test_members_and_a_checkpoint_of_other_encoders(folders, tmp_path):
    """With one schedule and one prediction the encoders still differ."""
    write_folder(tmp_path / "alike", prediction_type="v_prediction")
    mixed = {"members": tiny_study().members, "train": tiny_study().train, "checkpoints": (str(tmp_path / "alike"),)}
    for grid in (
        Grid(steps=(4,), stitch=Stitch(first="c8", then="alike")),
        Grid(steps=(4,), guidance=(2.0,), mode="autoguidance", guide="alike", members=("c8",)),
    ):
        with pytest.raises(SpecError, match="cannot share a trajectory: latents of another autoencoder"):
            check_checkpoints_of(given_study(folders, grid=grid, **mixed))


def test_guidance_is_allowed_where_caption_dropout_is_not_known(folders):
    check_checkpoints_of(given_study(folders, grid=Grid(guidance=(7.5,))))


def test_what_a_study_of_checkpoints_needs(folders, tmp_path):
    with pytest.raises(SpecError, match="nothing to sample"):
        StudySpec.parse({"name": "none", "data": {"images": 8}})
    with pytest.raises(SpecError, match="`train` is missing"):
        StudySpec.parse({"name": "none", "data": {"images": 8}, "members": [tiny_study().members[0].model_dump()]})
    twice = given_study(folders, checkpoints=(str(folders / "first"), str(folders / "first")))
    with pytest.raises(SpecError, match="of its own"):
        run.sweep(twice, Store(tmp_path / "store"), workers=1)
    broken = tmp_path / "broken"
    shutil.copytree(folders / "first", broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match="not a readable safetensors file"):
        run.sweep(given_study(folders, checkpoints=(str(broken),)), Store(tmp_path / "store"), workers=1)
    assert not (tmp_path / "store" / "study.yaml").exists()


def test_references_from_a_folder_of_pictures(folders, pictures, tmp_path):
    """Held-out pictures judge; there is nothing to train on, and none is asked for."""
    data = DataSource(kind="images", resolution=16, val=pictures.val)
    evaluation = Evaluation(prompts="val", images=8, references=6, fd_dims=2, metrics=("kid",), select_by="kid")
    study = given_study(folders, data=data, evaluation=evaluation, grid=Grid(steps=(2,)))
    table = run.sweep(study, Store(tmp_path / "store"), workers=1)
    assert np.isfinite(table["value"].astype(float)).all() and set(table["member"]) == {"first", "terminal"}
