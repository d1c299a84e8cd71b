"""Threads of one process that share a batch: each does the forward and backward pass of its part on a core of its own.

Beside processes that do so (`torchrun`) they start at once, send no messages, and take the optimizer's step once. The
gradient is one tensor, of which weights' own are views: parts are added in one go, in their order, so that the same
number of parts gives the same bits, however threads take turns. That one tensor, which is summed, measured and clipped
at once, serves a single thread too, where weights are small and many.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import pairwise

import torch
from torch import Tensor, nn

from isocost.training.objectives import Batch

# A step has work that does not shrink with the batch (thousands of small operations, weights), which every part does.
SMALLEST_PART = 16


class Threads(AbstractContextManager["Threads"]):
    """At most `count` parts a batch, of `SMALLEST_PART` images or more, by as many threads; 1: by the caller's own.

    module: whole on a CPU, not sharded. Its weights' `grad` are overwritten at each step.
    """

    def __init__(self, module: nn.Module, count: int):
        self.count = count
        self._weights = [weight for weight in module.parameters() if weight.requires_grad]
        sizes = [weight.numel() for weight in self._weights]
        self._flat = [torch.zeros(sum(sizes)) for _ in range(count)]
        self._views = [[*map(_as, flat.split(sizes), self._weights)] for flat in self._flat]
        self._used = [False] * len(sizes)
        # The number of OpenMP's threads is a setting of each thread.
        self._pool = ThreadPoolExecutor(count, "part", initializer=torch.set_num_threads, initargs=(1,))

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def begin(self) -> None:
        """A step begins: gradients are 0."""
        for flat in self._flat:
            flat.zero_()

    def backward(self, losses_of: Callable[[Batch], Tensor], batch: Batch, scale: float) -> Tensor:
        """Add the gradients of `scale` x the sum of losses; returns the losses of all images, detached [B]."""

        def work(number: int, part: Batch) -> tuple[Tensor, list[bool]]:
            losses = losses_of(part)
            # Not `backward`, by which threads would add to the same `grad`.
            found = torch.autograd.grad(losses.sum() * scale, self._weights, allow_unused=True)
            views = [view for view, gradient in zip(self._views[number], found, strict=True) if gradient is not None]
            torch._foreach_add_(views, [gradient for gradient in found if gradient is not None])  # pyright: ignore
            return losses.detach(), [gradient is not None for gradient in found]

        call = map if self.count == 1 else self._pool.map
        done = list(call(work, range(self.count), self._parts(batch)))
        self._used = done[0][1]
        return torch.cat([losses for losses, _ in done])

    def _parts(self, batch: Batch) -> list[Batch]:
        images = len(batch.timesteps)
        count = max(1, min(self.count, images // SMALLEST_PART))
        bounds = [number * images // count for number in range(count + 1)]
        return [batch.part(slice(*bound)) for bound in pairwise(bounds)]

    @torch.no_grad()
    def settle(self) -> Tensor:
        """Add up the parts, and make them the weights' `grad`: views of what is returned, the whole gradient, flat."""
        whole, *others = self._flat
        for other in others:
            whole.add_(other)
        for weight, view, used in zip(self._weights, self._views[0], self._used, strict=True):
            weight.grad = view if used else None
        return whole


def _as(piece: Tensor, weight: Tensor) -> Tensor:
    """Laid out as its weight is, channels-last or not, as `backward` lays gradients out."""
    return piece.as_strided(weight.shape, weight.stride())
