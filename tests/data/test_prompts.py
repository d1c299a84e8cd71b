from __future__ import annotations

import pytest

from isocost.data.prompts import listed, prompt_list
from isocost.errors import SpecError
from isocost.specs import DataSource, SceneOptions

SCENES = DataSource(images=4, scenes=SceneOptions(groups=1))


def test_scenes_are_endless_and_halved_by_parity():
    prompts = prompt_list("scenes-val", SCENES)
    assert prompts.period is None
    first, replicate = prompts.at(0)
    assert replicate == 0 and first.attributes["background"] in first.text
    assert [prompts.half(place) for place in range(3)] == ["selection", "report", "selection"]
    assert len({prompts.at(place)[0].id for place in range(50)}) == 50


def test_a_list_goes_round_with_new_replicates_in_the_same_half():
    prompts = listed("three", ["a", "b", "c"])
    assert [(prompts.at(p)[0].text, prompts.at(p)[1]) for p in range(5)] == [
        ("a", 0), ("b", 0), ("c", 0), ("a", 1), ("b", 1),
    ]  # fmt: skip
    assert [prompts.half(p) for p in range(6)] == ["selection", "report", "selection"] * 2


@pytest.mark.parametrize("prompts", [prompt_list("scenes-val", SCENES), listed("five", list("abcde"))])
def test_halves_hold_the_places_of_the_whole_list_in_order(prompts):
    for split in ("selection", "report"):
        half = prompts.of_half(split)
        places = [place for place in range(20) if prompts.half(place) == split]
        assert [half.whole_place(place) for place in range(len(places))] == places
        assert [half.at(place) for place in range(len(places))] == [prompts.at(place) for place in places]
        assert {half.half(place) for place in range(8)} == {split}
        assert half.promptset.split == split
    assert prompts.of_half("all") == prompts


def test_a_half_has_its_own_period_and_is_not_empty():
    five = listed("five", list("abcde"))
    assert (five.of_half("selection").period, five.of_half("report").period) == (3, 2)
    with pytest.raises(SpecError, match="no prompt in its report half"):
        listed("one", ["a"]).of_half("report")


def test_the_papers_lists_ship():
    assert prompt_list("paper-fig1", SCENES).period == 9
    assert "raccoon" in prompt_list("paper-fig7", SCENES).at(0)[0].text


def test_the_digest_follows_the_texts_and_the_options(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a cat\n\na dog\n")
    mine = prompt_list(str(path), SCENES)
    assert mine.period == 2
    path.write_text("a cat\na cow\n")
    assert prompt_list(str(path), SCENES).promptset != mine.promptset
    two = SCENES.model_copy(update={"scenes": SceneOptions(groups=2)})
    assert prompt_list("scenes-val", two).promptset != prompt_list("scenes-val", SCENES).promptset


def test_wrong_names_and_empty_lists(tmp_path):
    with pytest.raises(SpecError, match="Did you mean 'paper-fig"):
        prompt_list("paper-fig", SCENES)
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(SpecError, match="empty"):
        prompt_list(str(tmp_path / "none.txt"), SCENES)
    with pytest.raises(SpecError, match=r"data\.val"):
        prompt_list("val", SCENES)
