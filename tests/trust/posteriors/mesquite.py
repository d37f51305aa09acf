"""Logarithm of the weight of mesquite leaves on logarithms of seven measures, some collinear.

beta flat, sigma flat on the positive half,  log weight_i ~ Normal(x_i . beta, sigma).
"""

from typing import Any

import torch
from torch import Tensor

from tests.trust.posteriors.pieces import column, flat_regression

NAME = "mesquite-logmesquite_logvas"
model = flat_regression


def data(raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Covariates of the 46 bushes, shape (46, 7), and the logarithm of weight, shape (46,)."""
    diam1, diam2, canopy_height, total_height, density = (
        column(raw[name]).log()
        for name in ("diam1", "diam2", "canopy_height", "total_height", "density")
    )
    X = [
        torch.ones_like(diam1),
        diam1 + diam2 + canopy_height,
        diam1 + diam2,
        diam1 - diam2,
        total_height,
        density,
        column(raw["group"]),
    ]
    return torch.stack(X, -1), column(raw["weight"]).log()
