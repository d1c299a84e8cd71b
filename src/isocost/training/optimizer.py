"""A run's optimizer: which weights Muon has, and the peak rate of each that AdamW has."""

from __future__ import annotations

import torch
from torch import nn

from isocost.models.build import build, is_hidden_matrix, is_matrix
from isocost.optim import MuonAdamW
from isocost.specs import ModelSpec, Optimizer


def make_optimizer(module: nn.Module, model: ModelSpec, chosen: Optimizer) -> torch.optim.Optimizer:
    """AdamW, on all weights or beside Muon; `module` is what `model` builds, sharded or not."""
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    muon = {name for name, weight in weights.items() if chosen.kind == "muon" and is_hidden_matrix(name, weight)}
    scaled = wide(model) - muon if chosen.lr_scaling == "width" else set()
    optimizer = MuonAdamW(
        [weight for name, weight in weights.items() if name in muon],
        [weight for name, weight in weights.items() if name not in muon | scaled],
        muon_lr=chosen.muon_lr,
        lr=chosen.lr,
        betas=(chosen.beta1, chosen.beta2),
        eps=chosen.eps,
        weight_decay=chosen.weight_decay,
        fused=True,
    )
    if scaled:
        assert chosen.base_width is not None
        lr = chosen.lr * chosen.base_width / model.width
        group = {"params": [weights[name] for name in weights if name in scaled], "lr": lr, "initial_lr": lr}
        optimizer.add_param_group({**group, "momentum": None})
    return optimizer


def wide(model: ModelSpec) -> set[str]:
    """Names of the weights whose fan-in grows with width: it is larger in the member of twice the width.

    These are what muP (Tensor Programs V, arXiv 2203.03466, Table 3) calls hidden and output weights, whose rate under
    Adam goes as 1 / width. Input weights (of the latent and the text) and vectors keep theirs. A UNet has as many
    sinusoids of the timestep as channels, so the layer that reads them counts as hidden; a DiT has 256 always.
    """
    double = build(model.model_copy(update={"width": 2 * model.width}), "meta")
    fan_in = {name: weight[0].numel() for name, weight in double.named_parameters() if is_matrix(name, weight)}
    return {
        name
        for name, weight in build(model, "meta").named_parameters()
        if is_matrix(name, weight) and fan_in[name] > weight[0].numel()
    }
