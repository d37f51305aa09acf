"""Draws whose distances from each other are known in closed form."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

SITES = ["north", "south"]


def tree(
    mu: np.ndarray,
    theta: np.ndarray | None = None,
    log_weight: np.ndarray | None = None,
    **attrs: Any,
) -> xr.DataTree:
    """A DataTree of ``mu`` (chain, draw) and ``theta`` (chain, draw, 2)."""
    posterior: dict[str, Any] = {"mu": (("chain", "draw"), mu)}
    if theta is not None:
        posterior["theta"] = (("chain", "draw", "site"), theta)
    coords: Mapping[str, Any] = {} if theta is None else {"site": SITES}
    groups = {"posterior": xr.Dataset(posterior, coords)}
    if log_weight is not None:
        groups["sample_stats"] = xr.Dataset({"log_weight": (("chain", "draw"), log_weight)})
    result = xr.DataTree.from_dict(groups)
    result.attrs.update(attrs)
    return result


def standard_normal(seed: int, num_draws: int = 1000, **attrs: Any) -> xr.DataTree:
    """Four chains of independent draws of mu, theta[north], theta[south] ~ Normal(0, 1)."""
    z = np.random.default_rng(seed).normal(size=(4, num_draws, 3))
    return tree(z[..., 0], z[..., 1:], **attrs)


def normal(seed: int, shift: float = 0.0, scale: float = 1.0, num_draws: int = 4000) -> xr.DataTree:
    """Draws of a guide Normal(shift, scale) for :func:`standard_normal`, with log-weights."""
    z = np.random.default_rng(seed).normal(size=(1, num_draws, 3))
    x = shift + scale * z
    log_weight = (z**2 / 2 - x**2 / 2 + (np.log(scale) if scale else 0.0)).sum(-1)
    return tree(x[..., 0], x[..., 1:], log_weight)
