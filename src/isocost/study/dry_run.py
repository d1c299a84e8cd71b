"""What training a study will take, from its spec alone: no data, encoder's weights or hub is looked at."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isocost.encoders import own
from isocost.encoders.weights import ASSETS
from isocost.errors import SpecError
from isocost.models.budget import Hardware, TrainingCost, training_costs
from isocost.specs import StudySpec

# Of Stable Diffusion's encoders, taken where the study's are not on this machine.
ASSUMED_FACTOR, ASSUMED_TOKENS = 8, 77


@dataclass(frozen=True)
class DryRun:
    """The cost of every member at one seed, the hardware and inputs that it is for, and what was assumed."""

    study: str
    members: tuple[TrainingCost, ...]
    seeds: int
    latent_size: int
    context_length: int
    hardware: Hardware
    assumptions: tuple[str, ...]

    @property
    def totals(self) -> dict[str, float]:
        """Over members and seeds."""
        names = ("flops", "gpu_hours", "days", "disk_bytes")
        return {name: self.seeds * sum(getattr(member, name) for member in self.members) for name in names}

    def as_dict(self) -> dict[str, Any]:
        members = [
            asdict(member) | {"memory": asdict(member.memory) | {"total": member.memory.total}}
            for member in self.members
        ]
        return asdict(self) | {"members": members, "totals": self.totals}


def dry_run(study: StudySpec, hardware: Hardware) -> DryRun:
    """Raises `SpecError` for a study without members or with some that cannot be built, and for a batch that does not
    split over the GPUs."""
    if not study.members or study.train is None:
        raise SpecError(f"{study.name}: no members, so there is nothing to train.")
    latent_size, of_latents = latent_size_of(study)
    context_length, of_text = context_length_of(study)
    costs = training_costs(study.members, study.train, latent_size, context_length, hardware)
    speed = f"{hardware.mfu:.0%} of {hardware.peak_tflops:g} TFLOP/s a GPU go into the model's own FLOPs"
    assumptions = (speed, *(line for line in (of_latents, of_text) if line))
    return DryRun(study.name, tuple(costs), len(study.seeds), latent_size, context_length, hardware, assumptions)


def latent_size_of(study: StudySpec) -> tuple[int, str | None]:
    """Side of the latents, and what was assumed for it."""
    data = study.data
    if data.autoencoder == "own":
        return own.latent_shape(data)[1], None
    config = _config(data.autoencoder, "vae")
    if config is None:
        said = f"latents {ASSUMED_FACTOR} times smaller than images: {data.autoencoder} is not on this machine"
        return data.resolution // ASSUMED_FACTOR, said
    return data.resolution // 2 ** (len(config["block_out_channels"]) - 1), None


def context_length_of(study: StudySpec) -> tuple[int, str | None]:
    """Tokens of a caption, and what was assumed for it."""
    data = study.data
    if data.text_encoder == "own" and data.encoder_training is not None:
        return data.encoder_training.context_length, None
    config = _config(data.text_encoder, "text_encoder")
    if config is None:
        return ASSUMED_TOKENS, f"{ASSUMED_TOKENS} tokens a caption: {data.text_encoder} is not on this machine"
    return int(config.get("text_config", config)["max_position_embeddings"]), None


def _config(ref: str, subfolder: str) -> dict[str, Any] | None:
    """config.json of a shipped encoder or one in a folder; None of any other."""
    for folder in (ASSETS / ref, Path(ref).expanduser()):
        for place in (folder / "config.json", folder / subfolder / "config.json"):
            if place.is_file():
                return json.loads(place.read_text())
    return None
