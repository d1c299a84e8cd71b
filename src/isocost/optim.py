"""Muon for hidden matrices and AdamW for all else, as one optimizer with one state, which can be saved and restored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isocost.dtensors import like, whole

PARTS = ("step", "exp_avg", "exp_avg_sq", "momentum")  # what AdamW, or Muon, keeps of a parameter


class MuonAdamW(torch.optim.AdamW):
    """Muon (Jordan et al., kellerjordan.github.io/posts/muon, 2024) on `matrices`, AdamW on `rest`.

    Muon is momentum whose update is orthogonalised. It is for weights of two axes or more between hidden features, the
    later axes taken together; what is next to pixels or latents, and vectors, belong to AdamW. Every group has
    `initial_lr`, its peak: a schedule sets `lr` to a share of it. `adamw`: further arguments of AdamW. A matrix that is
    sharded over ranks is orthogonalised whole, on every rank.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        rest: Iterable[Tensor],
        *,
        muon_lr: float,
        lr: float,
        momentum: float = 0.95,
        **adamw: Any,
    ):
        groups = [
            {"params": list(rest), "lr": lr, "initial_lr": lr, "momentum": None},
            {"params": list(matrices), "lr": muon_lr, "initial_lr": muon_lr, "momentum": momentum},
        ]
        super().__init__([group for group in groups if group["params"]], lr=lr, **adamw)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        every = self.param_groups
        self.param_groups = [group for group in every if group["momentum"] is None]
        try:
            super().step()
        finally:
            self.param_groups = every
        for group in every:
            if group["momentum"] is not None:
                for weight in group["params"]:
                    _muon_step(weight, self.state[weight], group["lr"], group["momentum"])


def _muon_step(weight: Tensor, state: dict[str, Tensor], lr: float, momentum: float) -> None:
    if weight.grad is None:
        return
    if "momentum" not in state:
        state["momentum"] = torch.zeros_like(weight)
    average = state["momentum"].mul_(momentum).add_(weight.grad)
    update = orthogonalised(whole(weight.grad + momentum * average).flatten(1))
    gain = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
    weight.sub_(like(weight, update.view(weight.shape)), alpha=lr * gain)


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix [m, n] with its singular values brought near 1 (0.7 to 1.2), by five Newton-Schulz steps of Muon's."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if tall else x


def moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `PARAMETER.PART`: names, so that it does not hang on parameters' order.

    On the parameters' device, and sharded where they are.
    """
    return {
        f"{name}.{part}": tensor.detach().contiguous()
        for name, parameter in module.named_parameters()
        for part, tensor in optimizer.state[parameter].items()
    }


def load_moments(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `moments` gave, bit for bit, from whole tensors: a sharded parameter takes its shard of them."""
    for name, parameter in module.named_parameters():
        of_this = {part: tensors[f"{name}.{part}"] for part in PARTS if f"{name}.{part}" in tensors}
        optimizer.state[parameter] = {part: empty_moment(parameter, part, optimizer) for part in of_this}
        for part, moment in optimizer.state[parameter].items():
            moment.copy_(like(moment, of_this[part]))


def empty_moment(parameter: Tensor, part: str, optimizer: torch.optim.Optimizer) -> Tensor:
    """Where a part of a parameter's state is to lie, as the optimizer would have made it: in its memory layout."""
    if part != "step":
        return torch.empty_like(parameter).detach()
    return torch.empty((), device=parameter.device if optimizer.defaults.get("fused") else "cpu")
