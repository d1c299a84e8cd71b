"""The exponential moving average of the weights: what is sampled from. Never swapped into the trained module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isocost import specs
from isocost.dtensors import like, local


def decay(ema: specs.Ema, images_seen: int, batch: int) -> float:
    """How much of the average survives a step: 0.5 ** (batch / half-life), `images_seen` counted with the step.

    The half-life is at most `rampup` x images seen (EDM2, arXiv 2312.02696, training loop).
    """
    halflife = float(ema.halflife_images)
    if ema.rampup is not None:
        halflife = min(halflife, ema.rampup * images_seen)
    return 0.5 ** (batch / halflife)


class Average:
    """An fp32 copy of a module's parameters that follows them. On a sharded module it holds the local shards."""

    def __init__(self, module: nn.Module, ema: specs.Ema):
        self.ema = ema
        self._parameters = [parameter for _, parameter in module.named_parameters()]
        self._names = [name for name, _ in module.named_parameters()]
        self._averages = [parameter.detach().clone().float() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, images_seen: int, batch: int) -> None:
        """Follow one step of `batch` images, after which `images_seen` were seen."""
        new = [local(parameter.detach()).float() for parameter in self._parameters]
        averages = [local(average) for average in self._averages]
        torch._foreach_lerp_(averages, new, 1 - decay(self.ema, images_seen, batch))  # pyright: ignore

    def state_dict(self) -> dict[str, Tensor]:
        """By parameter; sharded where parameters are."""
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """From whole tensors."""
        for name, average in self.state_dict().items():
            average.copy_(like(average, state[name]))
