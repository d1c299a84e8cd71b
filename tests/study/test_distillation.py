"""Studies that distil the tiny study's member: an LCM student, and guided distillation with a round after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.study.conftest import tiny_study

from isocost import api
from isocost.analysis.cells import best_guidance
from isocost.analysis.distillation import gains, speed_ups, students, undistilled
from isocost.diffusion.noise import batch_noise
from isocost.errors import DataError, IsocostError, SpecError
from isocost.specs import Consistency, Evaluation, Grid, Guided, StudySpec
from isocost.study import run
from isocost.study.store import Store
from isocost.study.tables import metric_label, table
from isocost.study.upkeep import prune
from isocost.training.state import Checkpoint

LCM = {"samplers": ("lcm",), "spacing": "lcm"}


def distilling(swept, objective="consistency", **changes) -> StudySpec:
    tiny = tiny_study()
    how = {"consistency": Consistency(guidance=(1.0, 3.0))} if objective == "consistency" else {"guided": Guided()}
    return tiny.model_copy(
        update={
            "name": f"tiny-{objective}",
            "members": tuple(model.model_copy(update={"guidance_dim": 16}) for model in tiny.members),
            "start_from": str(swept),
            "train": tiny.train.model_copy(
                update={"objective": objective, "images": 64, "checkpoints": (32,), "caption_dropout": 0.0, **how}
            ),
            "grid": Grid(steps=(2, 4), guidance=(1.0, 2.0), **LCM),
            "extra_grids": (Grid(steps=(2, 4, 8), guidance=(1.0, 2.0), undistilled=True),),
            "curve": Grid(steps=(4,), guidance=(2.0,), **LCM),
            "evaluation": Evaluation(images=16, references=64, fd_dims=4, metrics=("fd", "kid")),
        }
        | changes
    )


@pytest.fixture(scope="module")
def study(swept) -> StudySpec:
    return distilling(swept)


@pytest.fixture(scope="module")
def store(study, tmp_path_factory) -> Store:
    store = Store(tmp_path_factory.mktemp("consistency"))
    run.sweep(study, store, workers=1)
    return store


def test_students_and_what_they_were_stand_in_one_table_with_their_costs(store, swept):
    found = table(store).drop_duplicates(["sample_key", "curve"])
    cells = found[~found["curve"].astype(bool)]
    after, before = (cells[cells["objective"] == name] for name in ("consistency", "denoise"))
    assert len(after) == 4 and len(before) == 6 and set(cells["member"]) == {"c8"}
    assert (after["evaluations"] == after["steps"]).all()
    guided = before["guidance_scale"] != 1
    assert (before.loc[guided, "evaluations"] == 2 * before.loc[guided, "steps"]).all()
    assert set(after["guidance_mode"]) == {"embedded"} and set(before["guidance_mode"]) == {"cfg"}
    teacher = before["train_gflops"].iloc[0]
    assert teacher == before["total_train_gflops"].iloc[0]
    np.testing.assert_allclose(after["total_train_gflops"], after["train_gflops"] + teacher)
    # 64 images of three passes and three evaluations (teacher twice, average) against 256 of three passes
    assert after["train_gflops"].iloc[0] / teacher == pytest.approx(64 * 6 / (256 * 3), rel=0.05)
    curve = found[found["curve"].astype(bool)]
    assert sorted(curve["images_seen"]) == [32, 64] and set(curve["objective"]) == {"consistency"}
    base = table(Store(swept))
    same = base[(base["steps"] == 2) & (base["guidance_scale"] == 2)]["sample_key"]
    assert set(before["sample_key"]) & set(same)  # the same cells as in the study that trained them


def test_the_lineage_is_in_the_checkpoint(store, swept):
    final = [one for one in run.opened(store).checkpoints if not one.undistilled][-1]
    (ancestor,) = Checkpoint.load(final.folder).lineage.ancestors
    teacher = next(one for one in run.opened(Store(swept)).checkpoints if one.ref.images_seen == 256)
    assert ancestor.content_digest == teacher.ref.content_digest and ancestor.objective == "denoise"


def test_gains_and_speed_ups_are_paired_on_what_the_other_half_chose(store):
    frame = table(store)
    metric = metric_label(store, "fd")
    cells = best_guidance(frame, metric)
    assert students(cells)["steps"].tolist() == [2, 4] and undistilled(cells)["steps"].tolist() == [2, 4, 8]
    for gain in gains(cells, store.influence):
        assert gain.gain == pytest.approx(gain.other["value"] - gain.student["value"])
        a, b = (store.influence(cell["score_keys"][0]) for cell in (gain.other, gain.student))
        apart = a - b
        n = gain.student["n"]
        variance = apart[:n].var(ddof=1) / n + (apart[n:].var(ddof=1) / (len(apart) - n) if len(apart) > n else 0)
        assert gain.half_width == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-4)
    (speed_up,) = speed_ups(cells, store.influence)
    assert speed_up.steps == 4 and set(speed_up.ties) <= {2, 4, 8} and "c8 distilled, 4 steps" in speed_up.sentence


def test_claims_find_both(store):
    judged = {verdict.id: verdict for verdict in api.claims(store.path, only=("C21", "C25")).verdicts}
    assert "two members" in judged["C21"].missing  # one member is too few, and that is all that is missing


def test_the_report_has_the_papers_figures(store, tmp_path):
    from isocost.reporting.from_store import write

    page = write(store, tmp_path).read_text()
    for words in ("as Fig. 13, left", "as Fig. 13, right", "checkpoints kept", "c8 distilled", "as Fig. 20"):
        assert words in page
    made = {path.name for path in (tmp_path / "figures").glob("*.png")}
    assert {"fig13-by-size.png", "fig13-by-cost.png", "strip-distilled-equal-cost.png"} <= made


def test_the_export_draws_the_same_image_in_diffusers_with_lcm_scheduler(store, tmp_path, monkeypatch):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    from isocost.diffusion.denoiser import guidance_embedding

    folder = api.export(store.path, tmp_path / "exported")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline.scheduler).__name__ == "LCMScheduler"
    scales = torch.tensor([1.0, 1.5, 8.0])
    theirs = pipeline.get_guidance_scale_embedding(scales - 1, embedding_dim=16)
    torch.testing.assert_close(guidance_embedding(scales, 16), theirs, rtol=0, atol=0)
    prompts = ["a large red circle on a blue background", "two small green stars"]
    how = {"sampler": "lcm", "spacing": "lcm", "steps": 4, "guidance_scale": 2.0}
    ours = api.sample(store.path, prompts, **how)
    ids = [(text, 0) for text in prompts]
    latents = torch.from_numpy(batch_noise(ids, "x_T", (4, 8, 8)))
    steps = iter(range(4))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_lcm.randn_tensor",
        lambda *args, **kwargs: torch.from_numpy(batch_noise(ids, ("step", next(steps)), (4, 8, 8))),
    )
    made = pipeline(prompts, num_inference_steps=4, guidance_scale=2.0, latents=latents, output_type="np")
    assert np.abs(made.images - ours / 255.0).max() < 0.5 / 255 + 1e-3
    card = (folder / "README.md").read_text()
    assert "is embedded, for scales 1 to 3" in card and "with what it came from: c8 by 'denoise'" in card


def test_upkeep_keeps_what_cells_were_drawn_by(store):
    assert not any("starts" in path for path in prune(store, dry_run=True)["would remove"])


def test_a_round_after_stage_1_is_held_against_what_came_first(swept, tmp_path):
    few = {"grid": Grid(steps=(2,), guidance=(2.0,)), "curve": None}
    before = (Grid(steps=(2,), guidance=(2.0,), undistilled=True),)
    first, second = Store(tmp_path / "stage-1"), Store(tmp_path / "round")
    train = distilling(swept, "guided").train.model_copy(update={"images": 32, "checkpoints": ()})
    run.sweep(distilling(swept, "guided", train=train, extra_grids=before, **few), first, workers=1)
    rounds = train.model_copy(update={"guided": Guided(steps=2, stochastic=True)})
    both = (*before, Grid(samplers=("ddim_back",), steps=(4,), guidance=(2.0,)))
    study = distilling(first.path, "guided", train=rounds, extra_grids=both, **few)
    found = run.sweep(study, second, workers=1).drop_duplicates("sample_key")
    assert found.set_index("objective")["sampler"].value_counts().to_dict() == {"ddim": 2, "ddim_back": 1}
    plain = found[found["objective"] == "denoise"].iloc[0]
    assert plain["images_seen"] == 256 and plain["total_train_gflops"] == plain["train_gflops"]
    student = found[found["objective"] == "guided"].iloc[0]
    lineage = Checkpoint.load(run.opened(second).checkpoints[0].folder).lineage
    assert [one.objective for one in lineage.ancestors] == ["denoise", "guided"]
    in_all = student["train_gflops"] + sum(one.train_gflops for one in lineage.ancestors)
    assert student["total_train_gflops"] == pytest.approx(in_all)
    with pytest.raises(SpecError, match="distilled to 2 steps: use ddim at 2 or ddim_back at 4 steps"):
        api.sample(second.path, ["a red circle"], steps=4, guidance_scale=2.0)
    late = distilling(second.path, "guided", train=train.model_copy(update={"guided": Guided(steps=4)}),
                      **(few | {"grid": Grid(steps=(4,))}), extra_grids=())  # fmt: skip
    with pytest.raises((DataError, IsocostError), match="takes 2 steps: the next round has 1, not 4"):
        run.train(late, Store(tmp_path / "late"), workers=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_from": None}, "needs teachers: name the store"),
        ({"train": {"consistency": None}}, "objective 'consistency' goes with settings `consistency`"),
        ({"curve": {"undistilled": True}}, "is of a study that distils them, and no curve"),
        (
            {"grid": {"mode": "cfg++", "guidance": [0.5], "samplers": ["ddim"]}},
            "takes the guidance scale as an input: use guidance mode",
        ),
        ({"grid": {"interval": [0, 500]}}, "a scale that a checkpoint embeds is in every evaluation"),
    ],
)
def test_studies_that_cannot_be_are_refused_at_once(study, changes, message):
    fields = study.model_dump(mode="json")
    for part, update in changes.items():
        fields[part] = (fields[part] | update) if isinstance(update, dict) else update
    with pytest.raises(SpecError, match=message):
        run.check(StudySpec.parse(fields))


def test_members_that_embed_no_guidance_are_refused(study):
    plain = study.model_copy(update={"members": tiny_study().members})
    with pytest.raises(SpecError, match="give its members a guidance_dim"):
        run.check(plain)
    codi = study.train.model_copy(update={"consistency": Consistency(setting="codi")})
    with pytest.raises(SpecError, match="distils no guidance: leave it out"):
        run.check(study.model_copy(update={"train": codi}))
