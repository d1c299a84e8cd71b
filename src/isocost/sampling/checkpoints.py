"""What a checkpoint says of itself, and whether a plan can be run with it: checked before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isocost.diffusion.plans import evaluations_of, serving
from isocost.errors import SpecError
from isocost.specs import NoiseSchedule, Prediction, SamplingPlan, TrainSpec

DRAWS_NONE = "this checkpoint upscales images, it draws none from prompts: `isocost upscale`."


@dataclass(frozen=True)
class Traits:
    """What decides which plans a checkpoint can serve, and which others it can share a trajectory with.

    autoencoder, text_encoder: content digests. caption_dropout: None where unknown (other people's checkpoints).
    takes_image: whether a low-resolution image's latent lies beside the noise. objective: what it was trained by.
    embeds_guidance: whether it takes the guidance scale as an input. rounds_to: the steps that guided distillation has
    left it; None: any. between: whether it also starts between those.
    """

    schedule: NoiseSchedule
    prediction: Prediction
    latent_shape: tuple[int, int, int]
    autoencoder: str
    text_encoder: str
    caption_dropout: float | None
    takes_image: bool = False
    objective: str = "denoise"
    embeds_guidance: bool = False
    rounds_to: int | None = None
    between: bool = False

    @classmethod
    def of(cls, spec: TrainSpec) -> Traits:
        """Of the checkpoints that a training run makes."""
        data = spec.data
        return cls(
            schedule=spec.schedule,
            prediction=spec.prediction,
            latent_shape=data.latent_shape,
            autoencoder=data.autoencoder,
            text_encoder=data.text_encoder,
            caption_dropout=spec.caption_dropout,
            takes_image=spec.model.takes_image,
            objective=spec.objective,
            embeds_guidance=spec.model.guidance_dim is not None,
            rounds_to=spec.guided.steps if spec.guided else None,
            between=spec.guided.stochastic if spec.guided else False,
        )


# What the checkpoints of one trajectory have to share, and why they cannot go on where the other stopped.
SHARED = {
    "latent_shape": "latents of another shape",
    "autoencoder": "latents of another autoencoder",
    "text_encoder": "another text encoder",
    "takes_image": "one takes a low-resolution image, the other does not",
    "embeds_guidance": "one takes the guidance scale as an input, the other does not",
}


def check_checkpoints(plan: SamplingPlan, known: Mapping[str, Traits]) -> None:
    """Raise `SpecError` unless the plan can be run with its checkpoints; `known`: content digest -> traits.

    Refused: a checkpoint that is not known, one that predicts something else or was trained on another schedule than
    the plan says, stages or a guide with latents of another shape or autoencoder or another text encoder, and guidance
    by the empty prompt on a checkpoint that was trained without caption dropout.
    """
    digests = [checkpoint.content_digest for checkpoint in evaluations_of(plan)]
    for digest in digests:
        if digest not in known:
            raise SpecError(f"checkpoint {digest[:12]} of the plan is not known here.")
        traits, first = known[digest], known[digests[0]]
        for field in ("schedule", "prediction"):
            if getattr(traits, field) != getattr(plan, field):
                raise SpecError(
                    f"checkpoint {digest[:12]} was trained with {field} {_shown(getattr(traits, field))}; "
                    f"the plan says {_shown(getattr(plan, field))}."
                )
        for field, difference in SHARED.items():
            if getattr(traits, field) != getattr(first, field):
                raise SpecError(
                    f"checkpoints {digests[0][:12]} and {digest[:12]} cannot share a trajectory: {difference} "
                    f"({_shown(getattr(first, field))} and {_shown(getattr(traits, field))})."
                )
    for checkpoint in dict.fromkeys(serving(plan).values()):
        traits = known[checkpoint.content_digest]
        _require_its_guidance(plan, traits)
        require_empty_prompt(plan, traits.caption_dropout)
        _require_its_steps(plan, traits)


def _require_its_guidance(plan: SamplingPlan, traits: Traits) -> None:
    if traits.embeds_guidance != (plan.guidance.mode == "embedded"):
        has = "takes the guidance scale as an input" if traits.embeds_guidance else "does not embed guidance"
        wanted = "embedded" if traits.embeds_guidance else "cfg"
        raise SpecError(f"this checkpoint {has}: use guidance mode '{wanted}', not '{plan.guidance.mode}'.")


def _require_its_steps(plan: SamplingPlan, traits: Traits) -> None:
    """A round of guided distillation teaches jumps between the timesteps of one number of steps, and no others."""
    if traits.rounds_to is None:
        return
    taught = [("ddim", traits.rounds_to), *([("ddim_back", 2 * traits.rounds_to)] if traits.between else [])]
    if (plan.sampler, plan.steps) not in taught or plan.spacing != "trailing" or plan.eta:
        ways = " or ".join(f"{sampler} at {steps}" for sampler, steps in taught)
        raise SpecError(
            f"this checkpoint was distilled to {traits.rounds_to} steps: use {ways} steps, spacing 'trailing' and eta "
            f"0, not {plan.sampler} at {plan.steps}, spacing '{plan.spacing}' and eta {plan.eta:g}."
        )


def require_empty_prompt(plan: SamplingPlan, caption_dropout: float | None) -> None:
    """Raise `SpecError` where the plan is guided by the empty prompt, which this checkpoint never saw in training."""
    if plan.guidance.needs_empty_prompt and caption_dropout == 0:
        raise SpecError(
            f"guidance scale {plan.guidance.scale:g} needs a checkpoint trained with caption_dropout > 0; "
            "this one was trained with 0. Use scale 1, or train with caption_dropout 0.1."
        )


def _shown(value: object) -> str:
    """A value in a sentence: a digest by its beginning, a shape as 4x8x8."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)
