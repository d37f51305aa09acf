"""A child's test score on the mother's schooling and IQ, not centered.

beta flat, sigma ~ HalfCauchy(2.5),  score_i ~ Normal(beta_1 + beta_2 hs_i + beta_3 iq_i, sigma).
"""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from tests.trust.posteriors.pieces import column, regress

NAME = "kidiq-kidscore_momhsiq"


def data(raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """1, whether the mother finished school, and her IQ, shape (434, 3); scores, shape (434,)."""
    schooling, iq = column(raw["mom_hs"]), column(raw["mom_iq"])
    return torch.stack([torch.ones_like(iq), schooling, iq], -1), column(raw["kid_score"])


def model(X: Tensor, y: Tensor) -> None:
    regress(X, y, dist.HalfCauchy(X.new_full((), 2.5)))
