from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from tests.scoring.pictures import Means, pictures, write_folder

from isocost.data.shards import write_shards
from isocost.errors import DataError, SpecError
from isocost.scoring import evaluate, streaming
from isocost.scoring.agreement import clip_score
from isocost.scoring.evaluate import Against, score
from isocost.scoring.extractors import EXTRACTORS, Projected
from isocost.scoring.frechet import frechet
from isocost.scoring.kernels import kid
from isocost.scoring.measures import Defaults
from isocost.scoring.references import build, load_reference
from isocost.scoring.sets import ImageSet, open_set
from isocost.scoring.statistics import Reference
from isocost.specs import digest_of

REAL, MINE = pictures(300, seed=1), pictures(200)
MEANS = Defaults("means", None)


@pytest.fixture(autouse=True)
def extractors(monkeypatch):
    monkeypatch.setitem(EXTRACTORS, "means", lambda ref, device: Means())
    monkeypatch.setitem(EXTRACTORS, "other", lambda ref, device: Means("other", "cd" * 32))


def against(images=REAL, **kinds) -> Against:
    return Against(images=open_set(images, "real"), **kinds)


def halved(images: np.ndarray) -> np.ndarray:
    """Features as they are kept, in half precision."""
    return Means()(images).astype(np.float16).astype(np.float32)


# --- values ---


def test_scores_are_the_metrics_of_the_features():
    found = score([open_set(MINE, "mine")], against(), ["fd", "kid"], defaults=MEANS)
    reference = Reference.of(halved(REAL))
    for metric, function in (("fd", frechet), ("kid", kid)):
        expected, estimate = function(halved(MINE), reference), found.estimate(f"{metric}[means]")
        assert (estimate.value, estimate.stderr, estimate.n) == (expected.value, expected.stderr, 200)
    row = found.table.iloc[0]
    assert (row["generated"], row["reference_n"], row["extractor"]) == ("mine", 300, "means@abababababababab")
    assert found.environment["torch"]


def test_neither_batches_nor_shards_nor_files_move_a_bit(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "mine", MINE)
    samples = [{"__key__": path.stem, "png": path.read_bytes()} for path in sorted(folder.glob("*.png"))]
    write_shards(samples[::-1], tmp_path / "tars", "x", per_shard=33)
    (features,) = build(open_set(folder), [Means()])
    (tmp_path / "mine.safetensors").write_bytes(features.to_bytes())
    (real,) = build(open_set(REAL, "real"), [Means()])
    (tmp_path / "real.safetensors").write_bytes(real.to_bytes())
    whole = score([open_set(folder)], against(), ["fd", "kid"], defaults=MEANS)
    monkeypatch.setattr(streaming, "BATCH_BYTES", 10_000)
    built = Against([load_reference(tmp_path / "real.safetensors")])
    for source, other in (
        (folder, against()),
        (tmp_path / "tars", against()),
        (MINE, against()),
        (folder, built),
        (tmp_path / "mine.safetensors", against()),
        (tmp_path / "mine.safetensors", built),
    ):
        again = score([open_set(source)], other, ["fd[means]", "kid[means]"])
        for metric in ("fd", "kid"):
            one, two = whole.estimate(metric), again.estimate(metric)
            assert (one.value, one.stderr) == (two.value, two.stderr), (source, metric)
            assert np.array_equal(one.influence, two.influence)
        assert set(again.table["reference"]) == set(whole.table["reference"])


def test_a_projection_is_of_the_same_reference():
    found = score([open_set(MINE)], against(), ["fd[means-5]", "fd[means]"])
    assert len(set(found.table["reference"])) == 1
    assert found.estimate("fd[means-5]").value < found.estimate("fd[means]").value


def test_a_reference_of_a_projection_is_the_whole_ones():
    (built,) = build(open_set(REAL, "real"), [Projected(Means(), 5)])
    assert built.extractor == "means"
    found = score([open_set(MINE)], Against([built]), ["fd[means-5]", "fd[means-3]"])
    again = score([open_set(MINE)], against(), ["fd[means-5]", "fd[means-3]"])
    assert found.scored[0].as_row() == again.scored[0].as_row() and found.scored[1].as_row() == again.scored[1].as_row()


def test_too_few_images_are_flagged():
    found = score([open_set(MINE[:40])], against(), ["fd[means]"])
    assert not found.table["valid"].any() and found.estimate("fd").bias is None


def test_features_of_files_are_taken_as_they_are(tmp_path):
    np.savez(tmp_path / "mine.npz", Means()(MINE).astype(np.float64))
    np.savez(tmp_path / "real.npz", Means()(REAL).astype(np.float64))
    built = Against([load_reference(tmp_path / "real.npz")])
    found = score([open_set(tmp_path / "mine.npz")], built, ["fd"])
    expected = frechet(Means()(MINE).astype(np.float64), Reference.of(Means()(REAL)))
    assert found.metrics == ("fd[features]",) and found.estimate("fd").value == expected.value
    assert found.table["extractor"][0] == "features" and not found.notices


# --- several sets ---


def test_sets_of_the_same_names_are_compared_image_by_image(tmp_path):
    worse = np.clip(MINE.astype(int) + 2, 0, 255).astype(np.uint8)
    sets = [open_set(write_folder(tmp_path / name, images)) for name, images in (("a", MINE), ("b", worse))]
    found = score(sets, against(), ["kid[means]"])
    assert found.ranking[1].paired
    apart = score([sets[0], open_set(write_folder(tmp_path / "c", worse, prefix="x"))], against(), ["kid[means]"])
    assert not apart.ranking[1].paired and apart.ranking[1].stderr > 2 * found.ranking[1].stderr


# --- captions ---


def test_captions_come_from_the_images_else_from_the_reference(tmp_path):
    captions = [f"caption {'abc'[index % 3] * (index % 7)}" for index in range(60)]
    real = write_folder(tmp_path / "real", REAL[:60], captions)
    mine = write_folder(tmp_path / "mine", MINE[:50])
    found = score([open_set(mine)], Against(images=open_set(real)), ["clip[means]"])
    assert found.estimate("clip").value == clip_score(halved(MINE[:50]), Means().text(captions[:50])).value
    (mine / "007.txt").write_text("another caption")
    other = score([open_set(mine)], Against(images=open_set(real)), ["clip[means]"])
    assert other.estimate("clip").value != found.estimate("clip").value
    with pytest.raises(DataError, match=r"000\.png has no caption"):
        score([open_set(mine)], Against(), ["clip[means]"])


def test_captions_that_are_cut_are_counted(tmp_path):
    captions = ["short"] * 7 + ["a caption of more letters than the text tower reads"] * 3
    mine = write_folder(tmp_path / "mine", MINE[:10], captions)
    found = score([open_set(mine)], Against(), ["clip[means]"])
    assert found.notices == ("mine: means reads only the beginning of 3 of 10 captions.",)


# --- pairs ---


def test_pairs_are_matched_by_name_and_never_resized(tmp_path):
    from isocost.scoring.paired import PAIRED

    mine, real = write_folder(tmp_path / "mine", MINE[:9]), write_folder(tmp_path / "real", REAL[:12])
    found = score([open_set(mine)], Against(images=open_set(real)), ["psnr", "ssim", "similarity[means]"])
    for metric in ("psnr", "ssim"):
        expected = PAIRED[metric](MINE[:9], REAL[:9]).mean()
        assert found.estimate(metric).value == pytest.approx(expected, rel=1e-12)
    assert found.estimate("similarity").n == 9
    Image.fromarray(REAL[0]).resize((20, 20)).save(real / "004.png")
    with pytest.raises(DataError, match=r"004\.png is 16 x 16 pixels, its target 20 x 20 pixels"):
        score([open_set(mine)], Against(images=open_set(real)), ["psnr"])
    with pytest.raises(SpecError, match="give a folder of targets"):
        score([open_set(mine)], Against(), ["psnr"])


# --- what does not fit ---


class Chosen(ImageSet):
    """Images of a named protocol."""

    name, protocol = "chosen", "chosen@12"

    def __len__(self) -> int:
        return 50

    def read(self, index: int):
        return open_set(REAL).read(index)


def test_a_protocol_is_carried_and_its_count_is_compared():
    found = score([open_set(MINE, "mine")], Against(images=Chosen()), ["kid[means]"])
    assert found.table["protocol"][0] == "chosen@12"
    assert found.notices == ("mine: 200 images, and chosen@12 is of 50.",)


def test_the_reference_is_by_the_extractor_that_is_asked_for():
    (real,) = build(open_set(REAL, "real"), [Means()])
    with pytest.raises(SpecError, match=r"no reference by other \(there is one by means@abababababababab\)"):
        score([open_set(MINE)], Against([real]), ["kid[other]"])
    with pytest.raises(SpecError, match="no reference by means: give a folder of images"):
        score([open_set(MINE)], Against(), ["kid[means]"])


def test_features_that_do_not_say_what_made_them(tmp_path):
    np.savez(tmp_path / "mine.npz", Means()(MINE))
    untold = open_set(tmp_path / "mine.npz")
    with pytest.raises(SpecError, match=r"mine\.npz does not say which extractor made its features"):
        score([untold], against(), ["kid"])
    assert score([untold], against(), ["kid[means]"]).estimate("kid").n == 200
    np.savez(tmp_path / "real.npz", Means()(REAL))
    trusted = Against([load_reference(tmp_path / "real.npz")])
    found = score([open_set(MINE)], trusted, ["kid[means]"])
    assert found.notices == ("real.npz does not say which extractor made it: taken as means.",)
    with pytest.raises(SpecError, match=r"real\.npz does not say which of means and other made it"):
        score([open_set(MINE)], trusted, ["kid[means]", "kid[other]"])


def test_features_of_two_extractors_are_refused(tmp_path):
    (mine,), (real,) = build(open_set(MINE), [Means()]), build(open_set(REAL, "real"), [Means("other", "cd" * 32)])
    (tmp_path / "mine.safetensors").write_bytes(mine.to_bytes())
    with pytest.raises(SpecError, match="by means@abababababababab and by other@cdcdcdcdcdcdcdcd cannot be compared"):
        score([open_set(tmp_path / "mine.safetensors")], Against([real]), ["kid"])
    with pytest.raises(DataError, match=r"neither images nor other@cdcdcdcdcdcdcdcd are at hand"):
        score([open_set(tmp_path / "mine.safetensors")], against(), ["kid[other]"])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.where(np.arange(200)[:, None] == 7, np.nan, Means()(MINE)), r"mine, fd\[features\]: .*1 image rows \(7\)"),
        (Means()(MINE)[:, :5], r"mine, fd\[features\]: features have 5 dims, the reference has 24"),
        (Means()(MINE)[:1], "mine: 1 image, and a score needs at least 2"),
    ],
)
def test_bad_features_name_their_set_and_metric(features, message):
    (real,) = build(open_set(REAL, "real"), [Means()])
    untold = load_untold(real)
    with pytest.raises(DataError, match=message):
        score([open_set(features, "mine")], Against([untold]), ["fd[features]"])


def load_untold(reference):
    from dataclasses import replace

    return replace(reference, extractor="", extractor_digest="")


def test_one_image_is_not_scored(tmp_path):
    with pytest.raises(DataError, match="one: 1 image, and a score needs at least 2"):
        score([open_set(write_folder(tmp_path / "one", MINE[:1]))], against(), ["kid[means]"])


def test_what_cannot_be_read_is_named_or_left_out_and_said(tmp_path):
    mine = write_folder(tmp_path / "mine", MINE[:20])
    (mine / "011.png").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"011\.png: not an image"):
        score([open_set(mine)], against(), ["kid[means]"])
    found = score([open_set(mine)], against(), ["kid[means]"], skip_unreadable=True)
    assert found.estimate("kid").n == 19 and "011" not in found.scored[0].keys
    assert found.notices[0].startswith("mine: 1 images cannot be read and are left out: ")
    kept = np.delete(MINE[:20], 11, axis=0)
    assert found.estimate("kid").value == score([open_set(kept)], against(), ["kid[means]"]).estimate("kid").value


def test_lossy_files_are_mentioned(tmp_path):
    mine = write_folder(tmp_path / "mine", MINE[:5])
    Image.fromarray(MINE[5]).save(mine / "x.jpg")
    found = score([open_set(mine)], against(), ["kid[means]"])
    assert found.notices == ("mine: 1 of 6 images are JPEG: its losses count as the model's.",)


def test_progress_tells_what_is_read():
    said: list[tuple] = []
    progress = lambda stage, done, total, note="": said.append((stage, done, total))  # noqa: E731
    score([open_set(MINE, "mine")], against(), ["kid[means]"], progress=progress)
    assert ("read references", 300, 300) in said and ("read mine", 200, 200) in said and said[-1] == ("score", 1, 1)


def test_two_metrics_of_an_extractor_read_the_images_once(monkeypatch):
    calls: list[int] = []
    real = evaluate.extract

    def counted(*args, **kwargs):
        calls.append(len(args[1]))
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluate, "extract", counted)
    score([open_set(MINE)], against(), ["kid[means]", "fd[means]", "fd[means-4]", "kid[other]"])
    assert calls == [2]


def test_the_digest_of_a_reference_is_of_its_pixels():
    found = score([open_set(MINE)], against(), ["kid[means]"])
    (real,) = build(open_set(REAL, "under another name"), [Means()])
    assert found.table["reference"][0] == real.digest != digest_of([])
