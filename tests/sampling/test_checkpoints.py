from __future__ import annotations

from dataclasses import replace

import pytest

from isocost.diffusion.plans import stitched
from isocost.errors import SpecError
from isocost.recipes.scenes import micro_members
from isocost.sampling.checkpoints import Traits, check_checkpoints, require_empty_prompt
from isocost.specs import CheckpointRef, DataSpec, Guidance, NoiseSchedule, SamplingPlan, Stage, TrainSpec

SMALL, LARGE, GUIDE = (CheckpointRef(content_digest=letter * 64, images_seen=64) for letter in "abc")
TRAITS = Traits(
    schedule=NoiseSchedule(),
    prediction="v_prediction",
    latent_shape=(4, 8, 8),
    autoencoder="d" * 64,
    text_encoder="e" * 64,
    caption_dropout=0.1,
)
AUTO = Guidance(scale=2, mode="autoguidance", guide=GUIDE)


def plan(**changes) -> SamplingPlan:
    values = {
        "stages": stitched(SMALL, LARGE, 0.5),
        "schedule": NoiseSchedule(),
        "prediction": "v_prediction",
        "sampler": "ddim",
        "steps": 4,
        "guidance": Guidance(scale=3),
    }
    return SamplingPlan(**(values | changes))


def known(**of_large) -> dict[str, Traits]:
    return {
        SMALL.content_digest: TRAITS,
        LARGE.content_digest: replace(TRAITS, **of_large),
        GUIDE.content_digest: TRAITS,
    }


def test_checkpoints_of_one_family_share_a_trajectory():
    check_checkpoints(plan(), known())
    check_checkpoints(plan(guidance=AUTO), known())


@pytest.mark.parametrize(
    ("traits", "message"),
    [
        ({"latent_shape": (4, 16, 16)}, r"share a trajectory: latents of another shape \(4x8x8 and 4x16x16\)"),
        ({"autoencoder": "f" * 64}, r"latents of another autoencoder \(d{12} and f{12}\)"),
        ({"text_encoder": "f" * 64}, r"another text encoder \(e{12} and f{12}\)"),
        ({"prediction": "epsilon"}, "b{12} was trained with prediction epsilon; the plan says v_prediction"),
        ({"schedule": NoiseSchedule(zero_terminal_snr=True)}, "was trained with schedule kind='scaled_linear'"),
        ({"caption_dropout": 0.0}, r"guidance scale 3 needs a checkpoint trained with caption_dropout > 0"),
    ],
)
def test_checkpoints_that_do_not_fit(traits, message):
    with pytest.raises(SpecError, match=message):
        check_checkpoints(plan(), known(**traits))


def test_a_guide_of_another_shape():
    digest = GUIDE.content_digest
    with pytest.raises(SpecError, match="latents of another shape"):
        check_checkpoints(plan(guidance=AUTO), known() | {digest: replace(TRAITS, latent_shape=(4, 16, 16))})


def test_only_what_the_plan_calls_has_to_fit():
    # A stage too short for a step, and a guide at scale 1, are never evaluated.
    unfit = known(latent_shape=(4, 16, 16))
    check_checkpoints(plan(stages=stitched(SMALL, LARGE, 0.99)), unfit)
    del unfit[GUIDE.content_digest]
    check_checkpoints(plan(stages=stitched(SMALL, LARGE, 1.0), guidance=AUTO.model_copy(update={"scale": 1.0})), unfit)


def test_a_checkpoint_that_nobody_knows():
    with pytest.raises(SpecError, match=r"checkpoint b{12} of the plan is not known"):
        check_checkpoints(plan(), {SMALL.content_digest: TRAITS})


@pytest.mark.parametrize(
    "guidance", [Guidance(), AUTO, Guidance(scale=1), Guidance(scale=1, interval=(0, 500))], ids=str
)
def test_guidance_without_the_empty_prompt_takes_no_caption_dropout(guidance):
    check_checkpoints(plan(guidance=guidance), known(caption_dropout=0.0))


@pytest.mark.parametrize("guidance", [Guidance(scale=2), Guidance(scale=0), Guidance(scale=1, mode="cfg++")], ids=str)
def test_caption_dropout(guidance):
    of = plan(guidance=guidance)
    with pytest.raises(SpecError, match="or train with caption_dropout"):
        require_empty_prompt(of, 0.0)
    require_empty_prompt(of, 0.1)
    require_empty_prompt(of, None)  # other people's checkpoints


def test_traits_of_a_training_run():
    data = DataSpec(
        digest_of_shards="0" * 64,
        images=64,
        resolution=32,
        latent_shape=(4, 8, 8),
        context_shape=(32, 64),
        autoencoder="d" * 64,
        text_encoder="e" * 64,
    )
    spec = TrainSpec(model=micro_members(8)[0], data=data, images=64, batch=64, caption_dropout=0.1)
    assert Traits.of(spec) == TRAITS
    check_checkpoints(plan(stages=(Stage(checkpoint=SMALL),)), {SMALL.content_digest: Traits.of(spec)})
