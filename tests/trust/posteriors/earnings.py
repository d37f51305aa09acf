"""Logarithm of earnings on height, not centered: intercept and slope correlate at -0.998.

beta flat, sigma flat on the positive half,  log earn_i ~ Normal(beta_1 + beta_2 height_i, sigma).
"""

from typing import Any

import torch
from torch import Tensor

from tests.trust.posteriors.pieces import column, flat_regression

NAME = "earnings-logearn_height"
model = flat_regression


def data(raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """1 and height, shape (1192, 2), and the logarithm of earnings, shape (1192,)."""
    height = column(raw["height"])
    return torch.stack([torch.ones_like(height), height], -1), column(raw["earn"]).log()
