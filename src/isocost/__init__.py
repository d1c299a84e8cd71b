"""isocost: scaling studies of latent diffusion models. Which model, sampler, steps and guidance for a budget?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from isocost.api import (
        adaptive_search,
        build_reference,
        check,
        claims,
        data_filter,
        data_info,
        encode,
        env,
        export,
        interpolate,
        ladder,
        laws,
        load_reference,
        load_study,
        plan,
        planner,
        quickstart,
        ray_cluster,
        recipe,
        report,
        reproduce,
        reproduction_cost,
        sample,
        score,
        serve,
        status,
        sweep,
        sweep_shard,
        table,
        train,
        upscale,
        variance,
    )

__all__ = [
    "adaptive_search",
    "build_reference",
    "check",
    "claims",
    "data_filter",
    "data_info",
    "encode",
    "env",
    "export",
    "interpolate",
    "ladder",
    "laws",
    "load_reference",
    "load_study",
    "plan",
    "planner",
    "quickstart",
    "ray_cluster",
    "recipe",
    "report",
    "reproduce",
    "reproduction_cost",
    "sample",
    "score",
    "serve",
    "status",
    "sweep",
    "sweep_shard",
    "table",
    "train",
    "upscale",
    "variance",
]


def __getattr__(name: str) -> Any:
    """Load `isocost.api` when one of its names is first used: `import isocost` stays instant."""
    if name in __all__:
        from isocost import api

        return getattr(api, name)
    raise AttributeError(f"module 'isocost' has no attribute '{name}'")
