from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from isocost.errors import DataError, SpecError, TrainingError
from isocost.processes import only_trainer
from isocost.runlog import images_seen, read_log
from isocost.specs import Ema, LrSchedule, ModelSpec, NoiseSchedule, Optimizer
from isocost.training import loop, state
from isocost.training.loop import batches, learning_rate, train
from isocost.training.state import Checkpoint

FILES = ("ema.safetensors", "raw.safetensors", "optimizer.safetensors")


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def log(folder: Path) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read_log(folder)]


@pytest.fixture(scope="module")
def whole(data, make_spec, tmp_path_factory) -> Path:
    """The run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(make_spec(data), data, folder, save_every_images=32)
    return folder


def stop_at(images: int):
    """A progress callback that interrupts the process as Ctrl-C or a scheduler does."""

    def callback(line):
        if line["images_seen"] == images:
            os.kill(os.getpid(), signal.SIGTERM)

    return callback


def test_a_stopped_and_resumed_run_is_the_same_run(data, make_spec, whole, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        train(make_spec(data), data, tmp_path, progress=stop_at(40), save_every_images=32)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert [path.name for path in state.checkpoints(tmp_path)] == ["000000032", "000000040"]
    final = train(make_spec(data), data, tmp_path, save_every_images=24)
    assert contents(final) == contents(whole / "checkpoints" / "000000096")
    assert log(tmp_path) == log(whole) and len(log(whole)) == 12
    sessions = [json.loads(line) for line in (tmp_path / "sessions.jsonl").read_text().splitlines()]
    assert [(line["images_seen"], line["ranks"], line["sharding"]) for line in sessions] == [
        (0, 1, "none"),
        (40, 1, "none"),
    ]
    assert sessions[0]["environment"]["torch"] == torch.__version__


def test_muon_resumes_to_the_same_bits_too(data, make_spec, tmp_path):
    spec = make_spec(data, optimizer=Optimizer(kind="muon", lr=3e-3))
    final = train(spec, data, tmp_path / "whole")
    with pytest.raises(SystemExit):
        train(spec, data, tmp_path / "stopped", progress=stop_at(40))
    assert contents(train(spec, data, tmp_path / "stopped")) == contents(final)
    kept = load_file(final / "optimizer.safetensors")
    assert {name.rpartition(".")[2] for name in kept} == {"momentum", "step", "exp_avg", "exp_avg_sq"}
    assert "conv_in.weight.exp_avg" in kept and "mid_block.resnets.0.conv1.weight.momentum" in kept


def test_calling_again_after_the_end_changes_nothing(data, make_spec, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}
    assert train(make_spec(data), data, whole).name == "000000096"
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}


CHILD = """
import sys
sys.path.insert(0, {tests!r})
import torch
from conftest import tiny_spec
from isocost.encoders.latents import LatentShards
from isocost.training.loop import train
torch.set_num_threads({threads})
data = LatentShards({data!r})
def report(line):
    print(line["images_seen"], flush=True)
train(tiny_spec(data), data, {run!r}, save_every_images=16, progress=report)
"""


def test_killed_at_any_moment_it_resumes_to_the_same_bits(data, make_spec, whole, tmp_path):
    code = CHILD.format(
        tests=str(Path(__file__).parent), data=str(data.folder), run=str(tmp_path), threads=torch.get_num_threads()
    )
    rng = random.Random(os.getpid())
    last_line = rng.choice(range(16, 96, 8))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == last_line:
            time.sleep(rng.random() * 0.05)  # somewhere within a step, a save, or a rename
            child.kill()
    assert child.wait() == -signal.SIGKILL
    final = train(make_spec(data), data, tmp_path, save_every_images=32)
    assert contents(final) == contents(whole / "checkpoints" / "000000096")
    assert log(tmp_path) == log(whole)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_corrupt_state_is_named_and_passed_over(data, make_spec, whole, tmp_path):
    with pytest.raises(SystemExit):
        train(make_spec(data), data, tmp_path, progress=stop_at(64), save_every_images=16, keep_last=3)
    damaged = tmp_path / "checkpoints" / "000000064" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (tmp_path / "checkpoints" / "000000048" / "state.json").write_text("{")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        final = train(make_spec(data), data, tmp_path, save_every_images=16)
    said = " ".join(str(warning.message) for warning in caught)
    assert "000000064/optimizer.safetensors: damaged" in said and "000000048/state.json: damaged" in said
    assert contents(final) == contents(whole / "checkpoints" / "000000096") and log(tmp_path) == log(whole)


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("images", [32, 96])
def test_a_corrupt_checkpoint_that_scores_hang_on_is_an_error_until_it_is_deleted_and_made_again(
    data, make_spec, whole, tmp_path, images
):
    spec = make_spec(data)
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    damaged = run / "checkpoints" / f"{images:09d}"
    flip_last_byte(damaged / "ema.safetensors")
    message = rf"{images:09d}/ema\.safetensors: damaged.* delete {damaged} and run the same command again"
    with pytest.raises(DataError, match=message):
        loop.is_finished(run, spec)
    with pytest.raises(DataError, match=message):
        train(spec, data, run)
    others = {path: path.stat().st_mtime_ns for path in run.glob("checkpoints/*/*") if path.parent != damaged}
    shutil.rmtree(damaged)
    assert not loop.is_finished(run, spec)
    train(spec, data, run, save_every_images=32)
    assert loop.is_finished(run, spec) and images_seen(run) == 96 and log(run) == log(whole)
    for kept in loop.kept_checkpoints(run, spec):
        assert (kept / "ema.safetensors").read_bytes() == (
            whole / "checkpoints" / kept.name / "ema.safetensors"
        ).read_bytes()
    assert others.items() <= {path: path.stat().st_mtime_ns for path in run.glob("checkpoints/*/*")}.items()
    assert not (run / loop.REPLAY).exists()


def test_a_stopped_replay_goes_on(data, make_spec, whole, tmp_path):
    spec = make_spec(data)
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints" / "000000032")
    seen = []
    with pytest.raises(SystemExit):
        train(spec, data, run, progress=stop_at(16))
    train(spec, data, run, progress=lambda line: seen.append(line["images_seen"]))
    assert seen == [24, 32]
    assert loop.is_finished(run, spec)


def test_looking_on_reads_no_weights(data, make_spec, whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    flip_last_byte(run / "checkpoints" / "000000096" / "ema.safetensors")
    assert images_seen(run) == 96 and len(loop.kept_checkpoints(run, make_spec(data))) == 2


def test_retention(data, make_spec, whole, tmp_path):
    spec = make_spec(data, checkpoints=(16, 48, 96))
    train(spec, data, tmp_path, save_every_images=8, keep_last=2)
    held = {path.name: sorted(file.name for file in path.iterdir()) for path in state.checkpoints(tmp_path)}
    stripped, full = ["ema.safetensors", "spec.yaml", "state.json"], sorted([*FILES, "spec.yaml", "state.json"])
    assert held == {"000000016": stripped, "000000048": stripped, "000000088": full, "000000096": full}
    assert loop.is_finished(tmp_path, spec) and images_seen(tmp_path) == 96
    assert [path.name for path in loop.kept_checkpoints(tmp_path, spec)] == ["000000016", "000000048", "000000096"]
    early = Checkpoint.load(tmp_path / "checkpoints" / "000000016")
    assert early.network("ema") is not None
    with pytest.raises(DataError, match=r"raw\.safetensors: missing: only the EMA weights"):
        early.weights("raw")


def test_looking_on_at_a_run_that_has_not_begun(data, make_spec, tmp_path):
    assert not loop.is_finished(tmp_path, make_spec(data)) and images_seen(tmp_path) == 0
    with pytest.raises(DataError, match="no checkpoint at 32 images seen"):
        loop.kept_checkpoints(tmp_path, make_spec(data))


def test_accumulation_equals_the_big_batch_up_to_rounding(data, make_spec, tmp_path):
    runs = [
        train(
            make_spec(data, accumulation=parts, images=32, checkpoints=()),
            data,
            tmp_path / str(parts),
            save_every_images=32,
        )
        for parts in (1, 4)
    ]
    losses = [[line["loss"] for line in log(run.parents[1])] for run in runs]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    one, four = (Checkpoint.load(run).weights("raw") for run in runs)
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-3, atol=1e-4)


def test_training_learns(data, make_spec, tmp_path):
    spec = make_spec(data, images=640, batch=32, checkpoints=(), lr_schedule=LrSchedule(), caption_dropout=0.1)
    train(spec, data, tmp_path, save_every_images=640)
    losses = [line["loss"] for line in log(tmp_path)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])


def test_global_random_state_is_neither_used_nor_moved(data, make_spec, whole, tmp_path):
    torch.manual_seed(123)
    np.random.seed(5)
    before = torch.get_rng_state()
    final = train(make_spec(data), data, tmp_path, save_every_images=96)
    assert torch.equal(before, torch.get_rng_state())
    assert contents(final) == contents(whole / "checkpoints" / "000000096")


def test_batches(data, make_spec):
    """Caption dropout's share, uniform timesteps, standard normal noise, and the order of the epoch."""
    spec = make_spec(data, images=40_000, batch=4000, checkpoints=())
    run = loop.start(spec)
    (batch,) = batches(run, spec, data)
    null = torch.from_numpy(data.null_context)
    dropped = (batch.contexts == null).all(dim=(1, 2)).float().mean()
    assert abs(dropped - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert abs(batch.noise.mean()) < 0.02 and abs(batch.noise.std() - 1) < 0.02
    counts = np.histogram(batch.timesteps, bins=10, range=(0, 1000))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 28  # chi squared, 9 degrees of freedom, p = 0.001
    assert batch.timesteps.min() >= 0 and batch.timesteps.max() <= 999
    run.images_seen = 4000
    (later,) = batches(run, spec, data)
    assert not torch.equal(later.noise, batch.noise) and not torch.equal(later.timesteps, batch.timesteps)

    small = make_spec(data, batch=40, images=80, checkpoints=(), caption_dropout=0)
    run.images_seen = 40
    (epoch,) = batches(run, small, data)
    every = data.latents(range(40))
    assert sorted(map(bytes, epoch.latents.numpy())) == sorted(map(bytes, every))
    pairs = dict(zip(map(bytes, every), map(bytes, data.contexts(range(40))), strict=True))
    assert all(pairs[bytes(x)] == bytes(c) for x, c in zip(epoch.latents.numpy(), epoch.contexts.numpy(), strict=True))


def test_micro_batches_are_slices_of_the_batch(data, make_spec):
    run = loop.start(make_spec(data))
    (whole,) = batches(run, make_spec(data), data)
    parts = list(batches(run, make_spec(data, accumulation=4), data))
    for field in ("latents", "contexts", "noise", "timesteps"):
        torch.testing.assert_close(torch.cat([getattr(p, field) for p in parts]), getattr(whole, field), rtol=0, atol=0)


def test_learning_rate_against_torch():
    schedule, steps, batch = LrSchedule(warmup_images=40), 50, 8
    parameter = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=45 * 2)  # in half steps
    rates = [learning_rate(schedule, 0.3, (step + 0.5) * batch, steps * batch) for step in range(steps)]
    np.testing.assert_allclose(rates[:5], 0.3 * (np.arange(5) + 0.5) / 5)
    for rate in rates[5:]:
        optimizer.step()
        cosine.step()
        assert rate == pytest.approx(cosine.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        cosine.step()
    assert learning_rate(LrSchedule(kind="constant"), 0.3, 390, 400) == 0.3


def test_the_rate_is_a_function_of_images_not_of_the_batch():
    schedule = LrSchedule(warmup_images=64)
    fine = np.mean([learning_rate(schedule, 1.0, 512 + 8 * k + 4, 4096) for k in range(8)])
    assert learning_rate(schedule, 1.0, 512 + 32, 4096) == pytest.approx(fine, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_state(
    data, make_spec, tmp_path, monkeypatch, value
):
    real = loop.OBJECTIVES["denoise"]
    calls = []

    def broken(network, batch, settings):
        calls.append(1)
        return real(network, batch, settings) * (value if len(calls) == 6 else 1)

    monkeypatch.setitem(loop.OBJECTIVES, "denoise", broken)
    with pytest.raises(
        TrainingError, match=r"after 40 images the loss is (nan|inf).*last good checkpoint is .*000000032"
    ):
        train(make_spec(data), data, tmp_path, save_every_images=32)
    good = Checkpoint.load(tmp_path / "checkpoints" / "000000032").weights("raw")
    assert all(torch.isfinite(tensor).all() for tensor in good.values()) and len(read_log(tmp_path)) == 5


def test_a_full_disk_leaves_the_previous_checkpoint(data, make_spec, whole, tmp_path, monkeypatch):
    real, saves = state.save_file, []

    def full(tensors, path):
        saves.append(path)
        if len(saves) == 5:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", full)
        with pytest.raises(TrainingError, match=r"000000064: the checkpoint could not be saved.*No space left"):
            train(make_spec(data), data, tmp_path, save_every_images=32)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000032"]
    final = train(make_spec(data), data, tmp_path, save_every_images=32)
    assert contents(final) == contents(whole / "checkpoints" / "000000096") and log(tmp_path) == log(whole)


def test_data_that_does_not_fit_is_refused(data, make_spec, make_data, tmp_path):
    wrong_model = ModelSpec(family="micro", width=4, context_dim=16, num_heads=2)
    with pytest.raises(DataError, match="8 wide, the model's context_dim is 16"):
        train(make_spec(data, model=wrong_model), data, tmp_path)
    wrong_channels = ModelSpec(family="micro", width=4, context_dim=8, num_heads=2, in_channels=8, out_channels=8)
    with pytest.raises(DataError, match="latents have 4 channels, the model 8"):
        train(make_spec(data, model=wrong_channels), data, tmp_path)
    other = make_data(tmp_path / "other", images=41)
    with pytest.raises(DataError, match=r"not the data of the spec \(digest_of_shards, images differ\)"):
        train(make_spec(data), other, tmp_path)
    with pytest.raises(SpecError, match=r"unknown objective 'denoize'\. Did you mean 'denoise'"):
        train(make_spec(data, objective="denoize"), data, tmp_path)
    zero = NoiseSchedule(zero_terminal_snr=True)
    with pytest.raises(SpecError, match="v_prediction"):
        train(make_spec(data, schedule=zero, prediction="epsilon"), data, tmp_path)


def test_one_folder_one_run(data, make_spec, whole, tmp_path):
    with pytest.raises(TrainingError, match="a checkpoint of another spec"):
        train(make_spec(data, seed=4), data, whole)
    with only_trainer(tmp_path), pytest.raises(TrainingError, match="another process is training here"):
        train(make_spec(data), data, tmp_path)


def test_fine_tuning_starts_from_a_checkpoint(data, make_spec, whole, tmp_path):
    first = Checkpoint.load(whole / "checkpoints" / "000000096")
    spec = make_spec(data, start_from=first.ref("ema"))
    begun = loop.start(spec, "cpu", lambda ref: first.folder)
    for name, tensor in first.weights("ema").items():
        assert torch.equal(begun.module.state_dict()[name], tensor)
    with pytest.raises(SpecError, match="pass `locate`"):
        train(spec, data, tmp_path)
    with pytest.raises(DataError, match="not the checkpoint that start_from names"):
        train(spec, data, tmp_path, locate=lambda ref: whole / "checkpoints" / "000000064")


def test_bf16_trains_close_to_fp32(data, make_spec, whole, tmp_path):
    train(make_spec(data, precision="bf16"), data, tmp_path, save_every_images=96)
    half, single = ([line["loss"] for line in log(folder)] for folder in (tmp_path, whole))
    assert half != single
    np.testing.assert_allclose(half[:4], single[:4], rtol=0.05)


def test_the_log_is_the_truth_on_disk(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["images_seen"] for line in lines] == list(range(8, 97, 8))
    assert set(lines[0]) == {"images_seen", "loss", "lr", "grad_norm", "loss_by_timestep", "seconds"}
    assert lines[0]["lr"] == pytest.approx(3e-3 * 4 / 24)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_ema_follows_the_raw_weights(data, make_spec, tmp_path):
    """Against a replay of EDM2's rule on the raw weights of every step."""
    ema = Ema(halflife_images=40, rampup=0.5)
    spec = make_spec(data, ema=ema, images=48, checkpoints=())
    train(spec, data, tmp_path, save_every_images=8, keep_last=99)
    replay = {k: v.double() for k, v in state_dict_at_start(spec).items()}
    for folder in state.checkpoints(tmp_path):
        checkpoint = Checkpoint.load(folder)
        kept = 0.5 ** (8 / min(40, 0.5 * checkpoint.images_seen))
        replay = {k: kept * replay[k] + (1 - kept) * v.double() for k, v in checkpoint.weights("raw").items()}
        for name, tensor in checkpoint.weights("ema").items():
            torch.testing.assert_close(tensor.double(), replay[name], rtol=1e-5, atol=1e-6)


def state_dict_at_start(spec) -> dict[str, torch.Tensor]:
    return loop.start(spec).module.state_dict()
