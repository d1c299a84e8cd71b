"""A study of the ways between captions, in the store of the tiny study: its member is trained already."""

from __future__ import annotations

import numpy as np
import pytest
from tests.study.conftest import tiny_study

from isocost.data.prompts import ways
from isocost.errors import SpecError
from isocost.sampling.generate import generate
from isocost.specs import Between, Evaluation, Grid, StudySpec
from isocost.study import run
from isocost.study.artifacts import prompts_of
from isocost.study.pipelines import load_pipeline
from isocost.study.store import Store

ALPHAS = (1.0, 0.5, 0.0)
METRICS = ("kid", "coherence", "attribute-coherence", "path-length", "detour", "largest-jump")


def study(**changes) -> StudySpec:
    fields = {"images": 24, "references": 64, "metrics": METRICS, "select_by": "kid", "keep_images": True}
    evaluation = Evaluation(**fields, between=Between(alphas=ALPHAS, **changes))
    return tiny_study(name="tiny-ways", grid=Grid(steps=(2,), guidance=(2.0,)), curve=None, evaluation=evaluation)


@pytest.fixture(scope="module")
def store(swept, tmp_path_factory) -> Store:
    import shutil

    found = Store(shutil.copytree(swept, tmp_path_factory.mktemp("ways") / "store"))
    before = {path: path.stat().st_mtime_ns for path in found.path.glob("checkpoints/**/*.safetensors")}
    run.sweep(study(), found, workers=1)
    assert {path: path.stat().st_mtime_ns for path in found.path.glob("checkpoints/**/*.safetensors")} == before
    return found


def images_of(store: Store) -> np.ndarray:
    (cell,) = run.opened(store).cells
    return np.concatenate([store.read_chunk(cell.sample_key, index).images for index in range(2)])[:24]


def test_ends_are_what_plain_sampling_draws_to_the_bit(store):
    trained = run.opened(store)
    (cell,) = trained.cells
    pipeline = load_pipeline(cell.key, trained.folders, trained.refs)
    images = images_of(store)
    for place, image in enumerate(images):
        way = trained.prompts.at(place)[0].way
        assert way is not None
        if way.weight in (0, 1):
            end = way.first if way.weight else way.second
            plain = generate(pipeline, cell.plan, cell.key.engine, [(way.first.id, end.text, 0)])
            assert np.array_equal(image, plain.images[0])
    first = trained.prompts.at(0)[0]
    assert first.id == prompts_of("scenes-val", trained.study.data).at(0)[0].id  # its very noise, too


def test_whole_ways_are_in_one_half(store):
    prompts = run.opened(store).prompts
    halves: dict[int, set[str]] = {}
    for place in range(24):
        way = prompts.at(place)[0].way
        halves.setdefault(way.number, set()).add(prompts.half(place))
    assert len(halves) == 8 and all(len(found) == 1 for found in halves.values())
    of_half = prompts.of_half("report")
    assert {of_half.at(place)[0].way.number for place in range(12)} == {1, 3, 5, 7}


def test_scores_are_over_ways(store):
    table = run.table(store)
    rows = table[(table["split"] == "all")].set_index("metric")
    assert rows.loc["coherence[scenes-clip-score]", "n"] == 8
    assert set(rows.index) >= {f"coherence/{alpha:g}[scenes-clip-score]" for alpha in ALPHAS} | {"attribute-coherence"}
    assert len(store.influence(rows.loc["detour[scenes-clip-score]", "score_key"])) == 8
    assert rows.loc["kid[scenes-clip-score]", "n"] == 24


def test_the_claim_reads_it(store):
    from isocost import api

    (verdict,) = api.claims(store.path, only=["C27"]).verdicts
    assert "two members" in verdict.missing or verdict.verdict  # one member: it says what lacks


def test_the_path_and_the_alphas_are_part_of_the_prompts():
    ends = prompts_of("scenes-val", tiny_study().data)
    digests = {ways(ends, between).promptset.digest for between in (Between(), Between(path="spherical"))}
    assert len(digests) == 2


def test_the_report_shows_ways(store, tmp_path):
    from isocost.reporting.from_store import write

    page = write(store, tmp_path).read_text()
    for words in ("Between two captions", "as Fig. 24", "Coherence by weight"):
        assert words in page
    assert (tmp_path / "figures" / "strip-ways.png").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": {"metrics": ("kid", "clip")}}, "'clip' asks for an image's one caption"),
        ({"evaluation": {"between": None}}, "set evaluation.between"),
        ({"evaluation": {"images": 25}}, "multiple of 6"),
        ({"evaluation": {"between": {"alphas": (1.0, 0.0)}}}, "fall from 1 to 0"),
        ({"evaluation": {"between": {"alphas": (0.0, 0.5, 1.0)}}}, "fall from 1 to 0"),
        ({"grid": {"best_of": (2,)}}, "best_of"),
    ],
)
def test_studies_that_cannot_be_are_refused_at_once(changes, message):
    fields = study().model_dump(mode="json")
    for part, update in changes.items():
        fields[part] |= update
    with pytest.raises(SpecError, match=message):
        run.check(StudySpec.parse(fields))


def test_the_command(store, tmp_path, monkeypatch):
    from PIL import Image

    from isocost import api
    from isocost.cli import main

    monkeypatch.chdir(tmp_path)
    a, b = "a red circle on a blue background", "two green stars on a white background"
    main(["interpolate", str(store.path), "--from", a, "--to", b, "--alphas", "1,.5,0", "--steps", "2"])
    strip = np.asarray(Image.open("interpolated.png"))
    images = api.interpolate(store.path, a, b, alphas=(1, 0.5, 0), steps=2)
    assert np.array_equal(strip, np.concatenate(list(images), axis=1))
    drawn = api.sample(store.path, [a], steps=2, guidance_scale=7.5)
    assert np.array_equal(images[0], drawn[0]) and not np.array_equal(images[0], images[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "a", "--to", "b", "--alphas", "1,x"], "expected numbers"),
        (["--from", "a", "--to", "b", "--alphas", "2,0"], "from 0 to 1"),
        (["--from", " ", "--to", "b"], "first prompt is empty"),
    ],
)
def test_bad_requests_are_refused(store, arguments, message, capsys):
    from isocost.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["interpolate", str(store.path), *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
