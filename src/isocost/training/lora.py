"""Low-rank adapters (LoRA, arXiv 2106.09685): a run that trains two thin matrices beside each of some layers.

The adapters are `peft`'s. A checkpoint has three things of such a run: the averaged weights with the adapters merged
in, under the network's own names, so that whoever samples need not know of adapters; the averaged adapters, to go on
from and to export; and, while it can be resumed from, all that is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from isocost.errors import SpecError
from isocost.specs import Lora

ADAPTER = "default"  # peft's name of the only one
BASE = ".base_layer."
WHOSE = (".lora_A.", ".lora_B.")


def attach(module: nn.Module, lora: Lora, seed: int) -> None:
    """Put adapters beside the layers that `lora.targets` name, in place, and freeze all else; they change nothing yet.

    Raises `SpecError` where peft is not installed, no layer is named so, one is not linear, or the rank is above the
    width of one.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise SpecError("train.lora needs peft: pip install 'isocost[lora]'.") from None
    check(module, lora)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.scale * lora.rank, target_modules=list(lora.targets))  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def targets(module: nn.Module, lora: Lora) -> Iterator[tuple[str, nn.Module]]:
    """The layers of a network without adapters that get one, by name."""
    for name, layer in module.named_modules():
        if any(name == target or name.endswith(f".{target}") for target in lora.targets):
            yield name, layer


def check(module: nn.Module, lora: Lora) -> None:
    found = list(targets(module, lora))
    for target in lora.targets:
        if not any(name == target or name.endswith(f".{target}") for name, _ in found):
            raise SpecError(f"train.lora.targets: no layer of this member ends in '{target}'.")
    for name, layer in found:
        if not isinstance(layer, nn.Linear):
            raise SpecError(f"train.lora.targets: {name} is a {type(layer).__name__}; adapters are of linear layers.")
        width = min(layer.in_features, layer.out_features)
        if lora.rank > width:
            raise SpecError(
                f"train.lora.rank {lora.rank} is above the width of {name}, {layer.in_features} to "
                f"{layer.out_features}: an adapter of rank {width} can say all; give less."
            )


def is_adapter(name: str) -> bool:
    return any(part in name for part in WHOSE)


def adapters_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of a network's weights that are adapters, by layer: `LAYER.lora_A.weight` [r, in], `.lora_B.` [out, r]."""
    return {name.replace(f".{ADAPTER}.", "."): value for name, value in weights.items() if is_adapter(name)}


def inner_name(name: str) -> str:
    """A name of `adapters_of` as the trained module has it."""
    return name.removesuffix(".weight") + f".{ADAPTER}.weight"


def merged(weights: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """Weights of a network with adapters, as those of one without: W + scale B A, under the layers' own names."""
    found = {name.replace(BASE, "."): value for name, value in weights.items() if not is_adapter(name)}
    adapters = adapters_of(weights)
    for name, down in adapters.items():
        layer, part, _ = name.partition(".lora_A.")
        if part:
            up = adapters[f"{layer}.lora_B.weight"]
            found[f"{layer}.weight"] = found[f"{layer}.weight"] + lora.scale * (up @ down)
    return found


def exported(adapters: dict[str, Tensor], lora: Lora) -> dict[str, Any]:
    """The adapters of a UNet as `pipeline.load_lora_weights` takes them: `unet.LAYER.lora_A.weight`, ...

    A loader that is not told otherwise scales by 1, so the scale goes into B.
    """
    return {
        f"unet.{name}": (lora.scale * value if ".lora_B." in name else value).contiguous()
        for name, value in adapters.items()
    }
