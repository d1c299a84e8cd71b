"""Threads that share a batch beside one thread: the same losses and gradients, up to the order of sums."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from isocost.errors import SpecError, TrainingError
from isocost.models.build import build
from isocost.runlog import read_log
from isocost.specs import Consistency, Guided, ModelSpec, Prior, TrainSettings
from isocost.study import artifacts, together
from isocost.study.executors import Processes
from isocost.study.grid import Run
from isocost.study.store import Store
from isocost.study.together import AS_SPECIFIED, Training
from isocost.training import loop, state
from isocost.training.lean import LeanForward
from isocost.training.loop import train
from isocost.training.objectives import OBJECTIVES, Batch, Networks
from isocost.training.parallel import Layout, Ranks
from isocost.training.state import Checkpoint
from isocost.training.threads import SMALLEST_PART, Threads

BATCH = 3 * SMALLEST_PART + 1


def settings(objective: str) -> TrainSettings:
    how = {
        "dreambooth": {"prior": Prior(weight=0.5)},
        "consistency": {"consistency": Consistency()},
        "guided": {"guided": Guided()},
    }
    return TrainSettings(images=8, batch=8, caption_dropout=0.0, objective=objective, **how.get(objective, {}))


def batch_of(objective: str) -> Batch:
    """Of as many images as the empty caption has tokens, which is not to be cut with them."""
    rng = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    distilled = objective in ("consistency", "guided")
    return Batch(
        latents=draw(BATCH, 4, 4, 4),
        contexts=draw(BATCH, BATCH, 8),
        noise=draw(BATCH, 4, 4, 4),
        timesteps=torch.randint(1000, (BATCH,), generator=rng),
        condition=draw(BATCH, 4, 4, 4) if objective == "superres" else None,
        scales=draw(BATCH).abs() + 1 if distilled else None,
        null_context=draw(BATCH, 8) if distilled else None,
        weights=draw(BATCH) if objective == "dreambooth" else None,
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradients_of_parts_add_up_to_those_of_the_batch(objective):
    batch, how = batch_of(objective), settings(objective)
    torch.manual_seed(0)
    dims = {"guidance_dim": 8 if batch.scales is not None else None, "in_channels": 8 if objective == "superres" else 4}
    member = ModelSpec(family="micro", width=4, context_dim=8, num_heads=2, out_channels=4, **dims)
    unet = build(member, "cpu").to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    network, teacher = LeanForward(unet), build(member.model_copy(update={"guidance_dim": None}), "cpu")
    networks = (
        Networks(network, LeanForward(teacher), LeanForward(copy.deepcopy(unet)))
        if batch.scales is not None
        else network
    )

    def losses_of(part: Batch) -> torch.Tensor:
        return OBJECTIVES[objective](networks, part, how)

    (losses_of(batch).sum() / BATCH).backward()
    whole = {name: weight.grad.clone() for name, weight in unet.named_parameters()}
    with Threads(unet, 2) as threads:
        threads.begin()
        losses = [threads.backward(losses_of, batch.part(part), 1 / BATCH) for part in (slice(0, 33), slice(33, BATCH))]
        flat = threads.settle()
    torch.testing.assert_close(torch.cat(losses), losses_of(batch).detach(), rtol=1e-4, atol=1e-5)
    for name, weight in unet.named_parameters():
        torch.testing.assert_close(weight.grad, whole[name], rtol=1e-3, atol=1e-6, msg=name)
        assert weight.grad.stride() == weight.stride()
    unet.conv_in.weight.grad.zero_()
    assert (flat == 0).sum() >= unet.conv_in.weight.numel()  # they are views of it


def test_a_weight_that_no_loss_reaches_has_no_gradient():
    used, idle = weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    batch = Batch(*(torch.ones(2 * SMALLEST_PART) for _ in range(4)))
    with Threads(torch.nn.ParameterList(weights), 2) as threads:
        losses = threads.backward(lambda part: part.latents * used.sum(), batch, 0.5)
        threads.settle()
    assert losses.tolist() == [2.0] * len(losses) and idle.grad is None
    torch.testing.assert_close(used.grad, torch.full((2,), float(SMALLEST_PART)))


@pytest.fixture(scope="module")
def spec(data, make_spec):
    return make_spec(data, batch=32, images=160, checkpoints=(), accumulation=1)


@pytest.fixture(scope="module")
def shared(data, spec, tmp_path_factory):
    """A run of two threads."""
    folder = tmp_path_factory.mktemp("shared")
    train(spec, data, folder, threads=2)
    return folder


def weights_of(run):
    return (run / "checkpoints" / "000000160" / state.RAW).read_bytes()


def test_a_run_is_that_of_one_thread_up_to_rounding(data, spec, shared, tmp_path):
    train(spec, data, tmp_path)
    runs = [read_log(folder) for folder in (shared, tmp_path)]
    for name in ("loss", "grad_norm"):
        two, one = (np.array([line[name] for line in lines]) for lines in runs)
        np.testing.assert_allclose(two, one, atol=1e-5, rtol=1e-4)
    weights, own = (Checkpoint.load(run / "checkpoints" / "000000160").weights() for run in (shared, tmp_path))
    assert weights_of(shared) != weights_of(tmp_path)
    for name, tensor in own.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_run_that_went_on_has_the_bits_of_one_that_was_not_disturbed(data, spec, shared, tmp_path):
    def stop(line) -> None:
        if line["images_seen"] == 96:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(spec, data, tmp_path, threads=2, save_every_images=64, progress=stop)
    train(spec, data, tmp_path, threads=2)
    assert weights_of(tmp_path) == weights_of(shared)


def test_nan_in_one_part_stops_the_run(data, spec, tmp_path, monkeypatch):
    real, calls = loop.OBJECTIVES["denoise"], []

    def broken(network, batch, settings):
        assert len(batch.timesteps) == 16 and torch.get_num_threads() == 1
        calls.append(1)
        return real(network, batch, settings) * (float("nan") if len(calls) == 6 else 1)

    monkeypatch.setitem(loop.OBJECTIVES, "denoise", broken)
    with pytest.raises(TrainingError, match="after 64 images the loss is nan"):
        train(spec, data, tmp_path, threads=2)


class Noted(Processes):
    """Processes that only note what they are to do."""

    def run(self, function, tasks, **_) -> None:
        assert function is together.train_member
        self.__dict__["threads"] = [task.arguments[-1].threads for task in tasks]


@pytest.mark.parametrize("members, threads", [(1, 4), (2, 2), (3, 1), (4, 1), (9, 1)])
def test_a_study_of_few_members_gives_each_several_threads(members, threads, spec, tmp_path, monkeypatch):
    runs = [Run(spec.model, seed, spec) for seed in range(members)]
    done = []  # what was trained before does not change how the rest is trained
    monkeypatch.setattr(artifacts.loop, "is_finished", lambda folder, spec: done.append(1) or len(done) < members)
    executor = Noted(4)
    artifacts.train_runs(runs, Store(tmp_path), SimpleNamespace(folder=tmp_path), executor)  # pyright: ignore
    assert executor.threads == [threads]  # pyright: ignore[reportAttributeAccessIssue]


def test_threads_of_a_sharded_run_are_refused(data, spec, tmp_path):
    for device, layout in (("cpu", Layout(compile_blocks=True)), ("cuda", Layout())):
        with pytest.raises(SpecError, match="whole members on a CPU: leave `threads` at 1"):
            train(spec, data, tmp_path, threads=2, device=device, layout=layout)


@pytest.mark.parametrize("training", [Training(Ranks(device="cuda")), Training(layout=Layout("fsdp"))])
def test_threads_are_for_whole_members_on_a_cpu(training):
    assert artifacts._threads(1, Processes(4), training) == 1 < artifacts._threads(1, Processes(4), AS_SPECIFIED)


def test_a_member_is_trained_with_the_threads_it_is_given(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(together, "open_data", lambda *_: None)
    monkeypatch.setattr(together.loop, "train", lambda *_, **how: given.update(how))
    together.train_member("spec", tmp_path, tmp_path / "checkpoints" / "run", Training(threads=3))  # pyright: ignore
    assert given["threads"] == 3
