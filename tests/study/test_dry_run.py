"""What training would take, told without data, weights or a hub."""

from __future__ import annotations

import json

import pytest

from isocost import api
from isocost.cli import main
from isocost.errors import SpecError
from isocost.models.budget import Hardware, training_cost
from isocost.recipes.scenes import micro_members
from isocost.specs import DataSource, EncoderTraining, StudySpec, TrainSettings
from isocost.study.dry_run import dry_run


def study(**data) -> StudySpec:
    return StudySpec(
        name="dry",
        data=DataSource(**({"kind": "scenes", "resolution": 32, "images": 64} | data)),
        members=micro_members(8),
        train=TrainSettings(images=256, batch=32, caption_dropout=0.1),
        seeds=(0, 1),
    )


@pytest.mark.parametrize(
    ("data", "size", "length", "assumed"),
    [
        ({}, 8, 24, []),
        ({"resolution": 64}, 16, 24, []),
        (
            {"autoencoder": "own", "text_encoder": "own", "resolution": 64,
             "encoder_training": EncoderTraining(autoencoder_images=1, clip_images=1, context_length=13)},
            16, 13, [],
        ),
        (
            {"autoencoder": "nobody/vae", "text_encoder": "nobody/clip", "resolution": 64},
            8, 77, ["8 times smaller than images: nobody/vae", "77 tokens a caption: nobody/clip"],
        ),
    ],
    ids=["shipped", "larger", "own", "hub"],
)  # fmt: skip
def test_shapes_without_weights(data, size, length, assumed):
    found = dry_run(study(**data), Hardware())
    assert (found.latent_size, found.context_length) == (size, length)
    assert found.members == (training_cost(micro_members(8)[0], study().train, size, length, Hardware()),)
    speed, *others = found.assumptions
    assert "40% of 989 TFLOP/s" in speed
    assert len(others) == len(assumed) and all(said in line for said, line in zip(assumed, others, strict=True))


def test_an_encoder_in_a_folder(tmp_path):
    for subfolder, config in (
        ("vae", {"block_out_channels": [8, 8]}),
        ("text_encoder", {"max_position_embeddings": 9}),
    ):
        (tmp_path / subfolder).mkdir()
        (tmp_path / subfolder / "config.json").write_text(json.dumps(config))
    found = dry_run(study(autoencoder=str(tmp_path), text_encoder=str(tmp_path)), Hardware())
    assert (found.latent_size, found.context_length) == (16, 9)


def test_totals_are_over_members_and_seeds():
    found = dry_run(study(), Hardware())
    (member,) = found.members
    assert found.totals["gpu_hours"] == 2 * member.gpu_hours and found.totals["disk_bytes"] == 2 * member.disk_bytes


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    api.dry_run(study(), gpus=4)
    assert not list(tmp_path.iterdir())


def test_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(study().to_yaml())
    flags = ["--gpus", "4", "--sharding", "fsdp", "--mfu", "0.5", "--peak-tflops", "312", "--checkpoint-activations"]
    main(["train", "my.yaml", "--dry-run", *flags, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["hardware"]["spread"] == {
        "sharding": "fsdp", "ranks": 4, "shard_ranks": 8, "checkpoint_activations": True
    }  # fmt: skip
    (member,) = told["members"]
    assert member["memory"]["total"] == sum(value for part, value in member["memory"].items() if part != "total")
    main(["train", "my.yaml", "--dry-run", *flags])
    shown = capsys.readouterr().out
    assert "4 GPU(s), fsdp, activations recomputed" in shown and "50% of 312 TFLOP/s" in shown
    assert "in all: " in shown and [path.name for path in tmp_path.iterdir()] == ["my.yaml"]


def test_a_batch_that_does_not_split():
    with pytest.raises(SpecError, match="does not split over 5 GPUs"):
        api.dry_run(study(), gpus=5)
