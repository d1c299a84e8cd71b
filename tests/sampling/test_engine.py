from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from isocost.diffusion.denoiser import BindingNetwork
from isocost.diffusion.plans import evaluations_of, stitched
from isocost.diffusion.samplers import SAMPLERS
from isocost.errors import SpecError
from isocost.models.build import build
from isocost.recipes.scenes import micro_members
from isocost.sampling.engine import LeanNetwork, prepare, sample_latents
from isocost.specs import CheckpointRef, EngineSpec, Guidance, ModelSpec, NoiseSchedule, SamplingPlan, Stage

SHAPE = (4, 8, 8)
NETWORKS = ("diffusers", "lean")
SMALL, LARGE = (CheckpointRef(content_digest=name, images_seen=0) for name in ("small", "large"))


def plan(**changes) -> SamplingPlan:
    values = {
        "stages": (Stage(checkpoint=LARGE),),
        "schedule": NoiseSchedule(),
        "prediction": "v_prediction",
        "sampler": "ddim",
        "steps": 4,
        "guidance": Guidance(scale=7.5),
    }
    return SamplingPlan(**(values | changes))


def unet(member: int = 0) -> Any:
    torch.manual_seed(member)
    return build(micro_members(8, 16)[member])


def engine_of(network: str = "diffusers", **changes) -> EngineSpec:
    return EngineSpec.parse({"network": network, **changes})


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return {name: prepare(unet(), engine_of(name)) for name in NETWORKS}


@pytest.fixture(scope="module")
def contexts() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((65, 12, 64), dtype=np.float32)


def latents(network, contexts, numbers, engine, of=None) -> np.ndarray:
    """Latents of the prompts with these numbers, engine.batch at a time."""
    made = []
    for start in range(0, len(numbers), engine.batch):
        part = numbers[start : start + engine.batch]
        ids = [(f"prompt {number}", 0) for number in part]
        x, _ = sample_latents(network, of or plan(), contexts[part], contexts[64], ids, SHAPE, engine)
        made.append(x.numpy())
    return np.concatenate(made)


# --- the same bits, whatever the company -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [3, 16])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "unipc"])
def test_one_batch_size_gives_the_same_bits_in_any_order_and_padding(networks, contexts, name, sampler, batch):
    of, engine, numbers = plan(sampler=sampler), engine_of(name, batch=batch), list(range(15))
    whole = latents(networks[name], contexts, numbers, engine, of)
    shuffled = [int(n) for n in np.random.default_rng(1).permutation(15)]
    np.testing.assert_array_equal(latents(networks[name], contexts, shuffled, engine, of), whole[shuffled])
    np.testing.assert_array_equal(latents(networks[name], contexts, [5, 3, 11], engine, of), whole[[5, 3, 11]])


@pytest.mark.parametrize("guidance", [Guidance(scale=7.5, interval=(300, 800)), Guidance(scale=0.6, mode="cfg++")])
def test_other_guidance_keeps_its_bits_too(networks, contexts, guidance):
    of, engine = plan(guidance=guidance), engine_of("lean", batch=8)
    whole = latents(networks["lean"], contexts, list(range(8)), engine, of)
    np.testing.assert_array_equal(latents(networks["lean"], contexts, [7, 2], engine, of), whole[[7, 2]])


@pytest.mark.parametrize("name", NETWORKS)
def test_other_batch_sizes_agree_to_2e_4_at_guidance_7_5(networks, contexts, name):
    numbers = list(range(64))
    whole = latents(networks[name], contexts, numbers, engine_of(name))
    for batch in (1, 7):
        difference = np.abs(latents(networks[name], contexts, numbers, engine_of(name, batch=batch)) - whole).max()
        assert difference < 2e-4 * max(1.0, np.abs(whole).max())


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 10])
def test_the_lean_network_gives_the_same_latents_to_2e_4(networks, contexts, sampler, steps):
    of, numbers = plan(sampler=sampler, steps=steps), list(range(8))
    expected = latents(networks["diffusers"], contexts, numbers, engine_of(batch=8), of)
    ours = latents(networks["lean"], contexts, numbers, engine_of("lean", batch=8), of)
    assert np.abs(ours - expected).max() < 2e-4 * max(1.0, np.abs(expected).max())


def test_what_a_trajectory_repeats_is_computed_once(contexts, monkeypatch):
    network = prepare(unet(), engine_of("lean", batch=2))
    assert isinstance(network, LeanNetwork)
    made = {"keys_values": 0, "shifts": 0}
    for name in made:
        original = getattr(network.unet, name)

        def counted(*args, name=name, original=original):
            made[name] += 1
            return original(*args)

        monkeypatch.setattr(network.unet, name, counted)
    limited = plan(guidance=Guidance(scale=3, interval=(400, 800)), steps=6)
    latents(network, contexts, [0, 1, 2, 3], engine_of("lean", batch=2), limited)
    # Two trajectories, each with contexts of guided and of unguided steps; timesteps are those of the plan.
    assert made == {"keys_values": 4, "shifts": 6}


# --- evaluations, prompts, replicates --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_counted_evaluations_are_the_planned_ones(networks, contexts, name, sampler, steps, scale):
    of = plan(sampler=sampler, steps=steps, guidance=Guidance(scale=scale))
    engine = engine_of(name, batch=2)
    _, counted = sample_latents(networks[name], of, contexts[:1], contexts[64], [("a", 0)], SHAPE, engine)
    assert counted == evaluations_of(of)


def test_replicates_and_prompts_differ(networks, contexts):
    same = np.repeat(contexts[:1], 3, axis=0)
    ids = [("a", 0), ("a", 1), ("b", 0)]
    x, _ = sample_latents(networks["diffusers"], plan(), same, contexts[64], ids, SHAPE, engine_of(batch=3))
    assert len({row.numpy().tobytes() for row in x}) == 3


# --- several checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family() -> dict[str, dict[str, Any]]:
    """By engine, the networks of two checkpoints of one family."""
    return {
        name: {ref.content_digest: prepare(unet(member), engine_of(name)) for member, ref in enumerate((SMALL, LARGE))}
        for name in NETWORKS
    }


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("early", "late"), [(SMALL, LARGE), (LARGE, SMALL)])
def test_the_ends_of_a_stitched_plan_are_the_checkpoints_alone_to_the_bit(family, contexts, name, early, late):
    engine, numbers = engine_of(name, batch=3), [0, 1, 2]

    def drawn(stages):
        return latents(family[name], contexts, numbers, engine, plan(stages=stages, steps=8))

    alone = {ref: drawn((Stage(checkpoint=ref),)) for ref in (early, late)}
    np.testing.assert_array_equal(drawn(stitched(early, late, 0.0)), alone[late])
    np.testing.assert_array_equal(drawn(stitched(early, late, 1.0)), alone[early])
    between = [drawn(stitched(early, late, share)) for share in (0.25, 0.5, 0.75)]
    assert len({images.tobytes() for images in [*between, *alone.values()]}) == 5


def test_evaluations_are_told_apart(family, contexts):
    for guidance in (Guidance(scale=3), Guidance(scale=3, mode="autoguidance", guide=SMALL)):
        of = plan(stages=stitched(SMALL, LARGE, 0.25), steps=8, guidance=guidance)
        _, counted = sample_latents(
            family["lean"], of, contexts[:1], contexts[64], [("a", 0)], SHAPE, engine_of("lean", batch=1)
        )
        assert counted == evaluations_of(of)
    assert counted == {SMALL: 2 + 2 + 6, LARGE: 6}


def test_autoguidance_by_the_checkpoint_itself_is_no_guidance(family, contexts):
    own = plan(guidance=Guidance(scale=3, mode="autoguidance", guide=LARGE))
    engine = engine_of(batch=2)
    np.testing.assert_allclose(
        latents(family["diffusers"], contexts, [0, 1], engine, own),
        latents(family["diffusers"], contexts, [0, 1], engine, plan(guidance=Guidance())),
        atol=1e-5,
    )


def test_a_checkpoint_that_was_not_loaded(family, contexts):
    other = CheckpointRef(content_digest="f" * 64, images_seen=0)
    with pytest.raises(SpecError, match="checkpoint ffffffffffff, which was not loaded"):
        latents(family["lean"], contexts, [0], engine_of("lean"), plan(stages=(Stage(checkpoint=other),)))


# --- devices, dtypes, compilation ------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there():
    with pytest.raises(SpecError, match="no GPU"):
        prepare(unet(), EngineSpec(device="cuda"))


@pytest.mark.parametrize("name", NETWORKS)
def test_bf16_stays_near_fp32(networks, contexts, name):
    fp32 = latents(networks[name], contexts, [0, 1], engine_of(name, batch=2))
    engine = engine_of(name, batch=2, dtype="bf16")
    bf16 = latents(prepare(unet(), engine), contexts, [0, 1], engine)
    assert bf16.dtype == np.float32
    difference = np.abs(bf16 - fp32).mean()
    assert 0 < difference < 0.2 * np.abs(fp32).mean()


def test_bf16_is_of_the_weights_where_the_processor_would_imitate_its_arithmetic(monkeypatch):
    engine = engine_of("lean", dtype="bf16")
    for capability, dtype in (("AVX2", torch.float32), ("AVX512", torch.bfloat16)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        network = prepare(unet(), engine)
        assert isinstance(network, LeanNetwork)
        weight = network.unet.conv_in.conv.weight
        assert weight.dtype == dtype
        assert torch.equal(weight.bfloat16(), unet().conv_in.weight.bfloat16())
        assert torch.equal(weight.float(), weight.bfloat16().float())


def test_a_compiled_engine_captures_the_whole_network(networks, contexts, monkeypatch):
    # The graph is captured as for a compiled engine, and run as it is: kernels would take minutes to compile.
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **options: compile(module, backend=count, **options))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    engine = engine_of("lean", batch=2, compiled=True)
    of = plan(steps=4, guidance=Guidance(scale=3, interval=(400, 800)))
    ours = latents(prepare(unet(), engine), contexts, [0, 1], engine, of)
    assert len(graphs) == 2  # of guided and of unguided batches
    expected = latents(networks["lean"], contexts, [0, 1], engine_of("lean", batch=2), of)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_transformer_runs_its_own_forward_pass_under_either_engine(network):
    torch.manual_seed(0)
    module = build(ModelSpec(family="dit-micro", width=32, context_dim=8, num_heads=2))
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    x, timesteps, context = torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), torch.randn(2, 3, 8)
    prepared = prepare(module, engine_of(network))
    assert not isinstance(prepared, BindingNetwork)
    with torch.inference_mode():
        assert torch.equal(prepared(x, timesteps, context), module(x, timesteps, context).sample)
