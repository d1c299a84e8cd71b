"""What a run's checkpoints come from, and what training them took in all."""

from __future__ import annotations

from collections.abc import Iterable

from isocost.models.cost import objective_flops
from isocost.specs import TrainSpec
from isocost.training.state import Ancestor, Checkpoint, Lineage


def lineage(spec: TrainSpec, parents: Iterable[Checkpoint], teacher_embeds: bool = False) -> Lineage:
    """Of a run that starts from, or learns from, other checkpoints; each ancestor once, the oldest first."""
    found: dict[str, Ancestor] = {}
    for parent in parents:
        for ancestor in (*(parent.lineage.ancestors if parent.lineage else ()), _as_ancestor(parent)):
            found.setdefault(ancestor.content_digest, ancestor)
    return Lineage(gflops_an_image(spec, teacher_embeds), tuple(found.values()))


def training_gflops(checkpoint: Checkpoint) -> tuple[float, float]:
    """What training took: this run's, and in all, with what it came from."""
    known = checkpoint.lineage
    own = (known.gflops_per_image if known else gflops_an_image(checkpoint.spec)) * checkpoint.images_seen
    return own, own + sum(ancestor.train_gflops for ancestor in (known.ancestors if known else ()))


def gflops_an_image(spec: TrainSpec, teacher_embeds: bool = False) -> float:
    """Of training on an image once."""
    size = (spec.data.latent_shape[1], spec.data.context_shape[0])
    return objective_flops(spec.model, spec, *size, teacher_embeds) / 1e9


def _as_ancestor(checkpoint: Checkpoint) -> Ancestor:
    ref, (own, _) = checkpoint.ref("ema"), training_gflops(checkpoint)
    spec = checkpoint.spec
    return Ancestor(ref.content_digest, ref.images_seen, spec.model.name, spec.objective, own)
