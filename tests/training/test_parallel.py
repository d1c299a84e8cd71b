"""Runs of 2 and 4 gloo processes beside one of a single process, with the same global batch.

Losses are equal to 1e-4, not bitwise: each rank sums the gradients of its own images and the ranks' sums are added up
after that, while one process adds them image by image; and floating-point sums depend on their order.

Processes are started three times, each time for many runs: most of the time goes into their imports.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from isocost.encoders.latents import LatentShards
from isocost.errors import SpecError, TrainingError
from isocost.models.build import blocks
from isocost.runlog import read_log
from isocost.specs import Optimizer
from isocost.training import loop, parallel, state
from isocost.training.loop import batches
from isocost.training.parallel import Layout, Ranks
from isocost.training.state import Checkpoint

SCRIPT = Path(__file__).parent / "ranks.py"
SLOW = "ISOCOST_SLOW" in os.environ
slow = pytest.mark.skipif(not SLOW, reason="takes minutes: ISOCOST_SLOW=1 runs it")
pytestmark = pytest.mark.timeout(1200)  # for a busy machine
IMAGES = 400
LAST = f"{IMAGES:09d}"


def torchrun(ranks: int, data: LatentShards, folder: Path, *runs: str, options: tuple[str, ...] = ()) -> int:
    """Exit status of ranks.py under torchrun, on one thread a rank."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options]
    command = [*launcher, str(SCRIPT), str(data.folder), str(folder), *runs]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    print(done.stdout, done.stderr[-4000:])
    return done.returncode


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills, for all of xdist's workers: runs of several processes are dear."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"ranks-{name}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_log(run)])


def ended(run: Path, world: int) -> list[str]:
    return [json.loads((run / f"rank-{rank}-of-{world}.json").read_text())["ended"] for rank in range(world)]


def asked(run: Path, world: int) -> list[list[int]]:
    """Indices of each step's images, all ranks together."""
    ranks = [json.loads((run / f"rank-{rank}-of-{world}.json").read_text())["asked"] for rank in range(world)]
    return [list(itertools.chain(*step)) for step in zip(*ranks, strict=True)]


def bytes_of(run: Path, name: str = LAST) -> list[bytes]:
    return [(run / "checkpoints" / name / file).read_bytes() for file in (state.EMA, state.RAW, state.OPTIMIZER)]


@pytest.fixture(scope="module")
def spec(data, make_spec):
    return lambda **changes: make_spec(
        data, **{"images": IMAGES, "checkpoints": (), "lr_schedule": {"warmup_images": 80}, **changes}
    )


@pytest.fixture(scope="module")
def one(data, spec, tmp_path_factory) -> Path:
    """The run of a single process."""
    return made_once(tmp_path_factory, "one", lambda folder: loop.train(spec(), data, folder, save_every_images=IMAGES))


@pytest.fixture(scope="module")
def four(data, tmp_path_factory) -> Path:
    """Runs of four ranks."""

    def make(folder: Path) -> None:
        more = ("plain", "hsdp") if SLOW else ()
        assert torchrun(4, data, folder, "half", "half-sharded", *more) == 0

    return made_once(tmp_path_factory, "four", make)


@pytest.fixture(scope="module")
def told(data, tmp_path_factory) -> Path:
    """A run of two ranks whose torchrun was told to stop while a checkpoint was written."""

    def make(folder: Path) -> None:
        assert torchrun(2, data, folder, "told-in-a-save") != 0

    return made_once(tmp_path_factory, "told", make)


@pytest.fixture(scope="module")
def two(data, four, request, tmp_path_factory) -> Path:
    """Runs of two ranks, some of which go on from what four ranks saved, or from where torchrun was told to stop. The
    last one has a rank killed."""
    told = (request.getfixturevalue("told") / "told-in-a-save",) if SLOW else ()

    def make(folder: Path) -> None:
        for begun in (four / "half", four / "half-sharded", *told):
            shutil.copytree(begun, folder / begun.name, ignore=shutil.ignore_patterns("rank-*"))
        broken = ("nan", "full-disk", "shrunk", "unreadable")
        gone_on = ("half:on", "half-sharded:on-sharded")
        more = ("fsdp", "muon", "told-in-a-save:plain") if SLOW else ()
        runs = ("plain", *gone_on, *broken, *more, "killed")
        assert torchrun(2, data, folder, *runs, options=("--max-restarts=3",)) == 0

    return made_once(tmp_path_factory, "two", make)


@slow
def test_four_ranks_learn_as_one_process(one, four):
    assert len(losses(one)) == 50
    np.testing.assert_allclose(losses(four / "plain"), losses(one), atol=1e-4, rtol=0)
    assert ended(four / "plain", 4) == ["whole"] * 4


@pytest.mark.parametrize("layout", ["plain", pytest.param("fsdp", marks=slow)])
def test_two_ranks_learn_as_one_process(one, two, layout):
    assert len(losses(one)) == 50 and ended(two / layout, 2) == ["whole"] * 2
    np.testing.assert_allclose(losses(two / layout), losses(one), atol=1e-4, rtol=0)
    for name in ("grad_norm", "loss_by_timestep"):
        both = ([line[name] for line in read_log(run)] for run in (two / layout, one))
        for here, there in zip(*both, strict=True):
            np.testing.assert_allclose(np.array(here, float), np.array(there, float), atol=1e-3)


@slow
def test_sharded_copies_and_recomputed_activations(one, four):
    np.testing.assert_allclose(losses(four / "hsdp"), losses(one)[:5], atol=1e-4, rtol=0)


@slow
def test_muon_on_sharded_matrices(data, spec, two, tmp_path):
    loop.train(spec(images=40, optimizer=Optimizer(kind="muon", lr=3e-3)), data, tmp_path)
    np.testing.assert_allclose(losses(two / "muon"), losses(tmp_path), atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", ["plain", pytest.param("fsdp", marks=slow)])
def test_a_final_checkpoint_is_the_same_folder_however_it_was_trained(one, two, layout):
    checkpoint = Checkpoint.load(two / layout / "checkpoints" / LAST)
    assert checkpoint.full
    checkpoint.verify()
    weights = checkpoint.weights()
    for name, tensor in Checkpoint.load(one / "checkpoints" / LAST).weights().items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-3, rtol=1e-3)
    assert not checkpoint.network().training
    kinds = {path.suffix for path in checkpoint.folder.rglob("*")}
    assert kinds <= {".safetensors", ".json", ".yaml", ""}


def test_a_run_goes_on_with_fewer_ranks_and_sees_every_image_once_an_epoch(data, one, two, four, tmp_path):
    """Four ranks, one of which is told to stop; then two, likewise; then one process, to the end."""
    assert ended(four / "half", 4) == ["SystemExit: 143"] * 4
    run = Path(shutil.copytree(two / "half", tmp_path / "half"))
    assert ended(run, 2) == ["SystemExit: 143"] * 2
    seen = [*asked(four / "half", 4), *asked(run, 2)]

    class Recorded(LatentShards):
        def latents(self, indices):
            seen.append([int(index) for index in indices])
            return super().latents(indices)

    loop.train(Checkpoint.load(next(iter(state.checkpoints(run)))).spec, Recorded(data.folder), run)
    np.testing.assert_allclose(losses(run), losses(one), atol=1e-4, rtol=0)
    assert [len(step) for step in seen] == [8] * 50
    in_order = list(itertools.chain(*seen))
    for begin in range(0, IMAGES, len(data)):
        assert Counter(in_order[begin : begin + len(data)]) == Counter(range(len(data)))


def test_shards_of_four_ranks_are_read_by_two_and_by_one(data, spec, one, four, two, tmp_path):
    saved = four / "half-sharded"
    (folder,) = state.checkpoints(saved)
    assert len(list((folder / state.SHARDS).glob("*.safetensors"))) == 4
    assert ended(two / "half-sharded", 2) == ["SystemExit: 143"] * 2
    np.testing.assert_allclose(losses(two / "half-sharded"), losses(one)[:6], atol=1e-4, rtol=0)
    run = shutil.copytree(saved, tmp_path / "one")
    loop.train(spec(), data, run)
    np.testing.assert_allclose(losses(run), losses(one), atol=1e-4, rtol=0)


def test_nan_on_one_rank_stops_all_with_the_same_words(two):
    first, second = ended(two / "nan", 2)
    assert first == second
    assert "after 40 images the loss is nan (not finite on rank 1)" in first and "000000032" in first
    assert "Lower optimizer.lr" in first and len(losses(two / "nan")) == 5


def test_a_full_disk_of_one_rank_stops_all_and_leaves_the_checkpoint_before(two):
    run = two / "full-disk"
    first, second = ended(run, 2)
    assert first == second
    assert "rank 1 of 2:" in first and "No space left" in first and "make room" in first
    (kept,) = state.checkpoints(run)
    assert kept.name == "000000016" and [path.name for path in kept.parent.iterdir()] == [kept.name]
    Checkpoint.load(kept).verify()


def test_data_that_one_rank_cannot_read_stops_all_with_the_same_words(two):
    for run, words in (("shrunk", "latents-00000.safetensors"), ("unreadable", "latents-00007.safetensors: damaged")):
        first, second = ended(two / run, 2)
        assert first == second and first.startswith("DataError: rank 1 of 2:") and words in first
    (kept,) = state.checkpoints(two / "unreadable")
    assert kept.name == "000000016"
    Checkpoint.load(kept).verify()


@slow
def test_torchrun_told_to_stop_in_a_save_leaves_it_whole(told):
    run = told / "told-in-a-save"
    assert ended(run, 2) == ["SystemExit: 143"] * 2
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
    assert "000000160" in [path.name for path in state.checkpoints(run)]
    for folder in state.checkpoints(run):
        Checkpoint.load(folder).verify()


@pytest.mark.parametrize("run", ["killed", pytest.param("told-in-a-save", marks=slow)])
def test_a_run_that_went_on_is_the_run_that_was_not_disturbed(two, run):
    assert bytes_of(two / run) == bytes_of(two / "plain")
    assert [line["images_seen"] for line in read_log(two / run)] == list(range(8, IMAGES + 1, 8))


# ------------------------------------------------------------------------------------------------- without processes


@pytest.mark.parametrize("world", [2, 4])
def test_shares_are_slices_of_the_batch_and_differ(data, spec, world):
    settings = spec()
    begun = loop.start(settings)
    (everything,) = batches(begun, settings, data)
    shares = [next(batches(begun, settings, data, Ranks(rank, world))) for rank in range(world)]
    for field in ("latents", "contexts", "noise", "timesteps"):
        together = torch.cat([getattr(share, field) for share in shares])
        assert torch.equal(together, getattr(everything, field))
    for one, other in itertools.combinations(shares, 2):
        assert not torch.equal(one.noise, other.noise) and not torch.equal(one.latents, other.latents)


def test_a_batch_that_does_not_split_is_refused(data, spec, tmp_path):
    with pytest.raises(SpecError, match=r"batch 8 in 1 parts does not split over 3 ranks"):
        parallel.check(Layout(), Ranks(world=3), 8, 1)
    with pytest.raises(SpecError, match="sharding 'fsdp' is for several ranks: start them with torchrun"):
        loop.train(spec(), data, tmp_path, layout=Layout(sharding="fsdp"))


def meet(monkeypatch, fails: Callable[[int, int], bool]) -> list[list[int]]:
    """Two ranks, as threads, join a group. `fails`: (rank, attempt) -> whether it finds no connection. Attempts by
    rank."""
    store, attempts = dist.HashStore(), [[], []]  # pyright: ignore[reportPrivateImportUsage]

    def connect(backend, store, rank, world_size, timeout) -> None:
        attempts[rank].append(len(attempts[rank]))
        if fails(rank, attempts[rank][-1]):
            raise RuntimeError("Gloo connectFullMesh failed")

    here = threading.local()
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, here.rank, 2)]))
    monkeypatch.setattr(dist, "init_process_group", connect)
    monkeypatch.setattr(parallel, "_set_pg_timeout", lambda _: None)

    def join(rank: int) -> None:
        here.rank = rank
        parallel._join("gloo")

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(join, rank) for rank in range(2)]:
            done.result()
    return attempts


def test_ranks_of_which_one_could_not_connect_try_again_together(monkeypatch):
    assert meet(monkeypatch, lambda rank, attempt: False) == [[0], [0]]
    assert meet(monkeypatch, lambda rank, attempt: attempt == rank) == [[0, 1, 2], [0, 1, 2]]
    with pytest.raises(
        TrainingError, match="no connection between the 2 ranks, tried 5 times: rank 1: Gloo connectFullMesh"
    ):
        meet(monkeypatch, lambda rank, attempt: rank == 1)


def test_recomputed_activations_change_no_bit(data, spec, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    runs = {}
    for layout in (Layout(compile_blocks=True), Layout(compile_blocks=True, checkpoint_activations=True)):
        run = tmp_path / str(layout.checkpoint_activations)
        loop.train(spec(images=24), data, run, layout=layout)
        runs[run] = load_file(run / "checkpoints" / "000000024" / state.RAW)
    plain, again = runs.values()
    assert all(torch.equal(plain[name], again[name]) for name in plain) and plain.keys() == again.keys()


def test_compiled_blocks_keep_the_names_of_weights(data, spec, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward: compiled.append(forward) or forward)
    loop.train(spec(images=8), data, tmp_path, layout=Layout(compile_blocks=True))
    assert len(compiled) == len(list(blocks(loop.start(spec()).module))) > 5
    assert Checkpoint.load(tmp_path / "checkpoints" / "000000008").network() is not None


def test_saving_aside_leaves_the_same_checkpoints(data, spec, tmp_path):
    for aside in (False, True):
        loop.train(spec(images=64), data, tmp_path / str(aside), save_every_images=8, keep_last=9, save_aside=aside)
    for folder in state.checkpoints(tmp_path / "True"):
        assert bytes_of(tmp_path / "True", folder.name) == bytes_of(tmp_path / "False", folder.name)
