from __future__ import annotations

import subprocess
import sys

import pytest

from isocost.errors import SpecError
from isocost.models.build import build
from isocost.models.cost import parameters
from isocost.models.ladder import LADDERS, TABLE1, format_parameters, ladder, rows

# Counted by others with the published architecture, to the digits given; they round to every column of Table 1.
PARAMETERS = {
    64: "38.80M", 96: "83.40M", 128: "144.79M", 160: "222.98M", 192: "317.97M", 224: "429.76M", 256: "558.35M",
    288: "703.73M", 320: "865.91M", 512: "2.19B", 768: "4.90B",
}  # fmt: skip
NORM_COSTS = {
    64: 0.066, 96: 0.124, 128: 0.199, 160: 0.291, 192: 0.399, 224: 0.524, 256: 0.666, 288: 0.825, 320: 1, 512: 2.405,
    768: 5.216,
}  # fmt: skip


@pytest.fixture(scope="module")
def sd() -> dict[int, dict]:
    return {row["width"]: row for row in rows("sd")}


@pytest.fixture(scope="module")
def micro() -> dict[int, dict]:
    return {row["width"]: row for row in rows("micro")}


def test_all_eleven_parameter_counts(sd: dict[int, dict]) -> None:
    assert {width: row["params_m"] for width, row in sd.items()} == PARAMETERS


def test_parameter_counts_round_to_the_printed_ones(sd: dict[int, dict]) -> None:
    for row in sd.values():
        scale, unit = (1e9, "B") if row["paper_params"].endswith("B") else (1e6, "M")
        assert f"{row['params'] / scale:.0f}{unit}" == row["paper_params"]


def test_norm_costs(sd: dict[int, dict]) -> None:
    for width, row in sd.items():
        assert row["norm_cost"] == pytest.approx(NORM_COSTS[width], abs=6e-4)
        assert row["norm_cost"] == pytest.approx(row["paper_norm_cost"], abs=0.02, rel=0.015)


def test_gflops_near_the_printed_but_for_the_erratum(sd: dict[int, dict]) -> None:
    for width, row in sd.items():
        if width == 64:
            assert row["gflops"] / 2 == pytest.approx(row["paper_gflops"], rel=0.05)
            assert "25.3" in row["note"]
        else:
            assert row["gflops"] == pytest.approx(row["paper_gflops"], rel=0.03)
            assert row["note"] == ""


def test_table_1_norm_costs_follow_from_its_own_gflops() -> None:
    for row in TABLE1:
        assert (row.gflops / 789.3 == pytest.approx(row.norm_cost, abs=0.0051)) != bool(row.note)


def test_sd_768_holds_stable_diffusion_1_5() -> None:
    assert parameters(ladder("sd-768").reference) == 859_520_964


def test_micro_spans_twenty_times_in_flops_and_rises(micro: dict[int, dict]) -> None:
    gflops = [row["gflops"] for row in micro.values()]
    assert len(gflops) >= 5
    assert gflops == sorted(gflops)
    assert gflops[-1] / gflops[0] >= 20
    assert micro[32]["norm_cost"] == 1
    assert "paper_gflops" not in micro[32]


@pytest.mark.parametrize("name", LADDERS)
def test_members_build_and_differ_in_width_alone(name: str) -> None:
    members = ladder(name).members
    assert len({member.model_copy(update={"width": 1, "num_heads": 1}).digest for member in members}) == 1
    assert ladder(name).reference in members
    for member in (members[0], members[-1]):
        config = build(member, "meta").config
        if name.startswith("dit"):
            assert config["num_attention_heads"] * config["attention_head_dim"] == member.width
        else:
            assert config["block_out_channels"][0] == member.width


@pytest.mark.parametrize(("name", "channels"), [("dit", 64), ("dit-micro", 16)])
def test_heads_of_a_transformer_have_one_width(name: str, channels: int) -> None:
    assert {member.width / member.num_heads for member in ladder(name).members} == {channels}
    gflops = [row["gflops"] for row in rows(name)]
    assert gflops == sorted(gflops) and gflops[-1] / gflops[0] > 100


def test_format_parameters() -> None:
    assert [format_parameters(n) for n in (279_996, 38_800_580, 4_900_198_660)] == ["0.28M", "38.80M", "4.90B"]


def test_unknown_ladder() -> None:
    with pytest.raises(SpecError, match=r"unknown ladder 'mirco'\. Did you mean 'micro'"):
        rows("mirco")


def test_listing_ladders_imports_no_torch() -> None:
    code = "import sys, isocost.models.ladder; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
