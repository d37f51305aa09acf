"""Party identification in 2000 on eight covariates of the voter.

beta flat, sigma flat on the positive half,  party_i ~ Normal(x_i . beta, sigma).
"""

from typing import Any

import torch
from torch import Tensor

from tests.trust.posteriors.pieces import column, flat_regression

NAME = "nes2000-nes"
model = flat_regression


def data(raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Covariates, age as three indicators, shape (476, 9), and party, 1 to 7, shape (476,)."""
    age = column(raw["age_discrete"])
    X = [
        torch.ones_like(age),
        column(raw["real_ideo"]),
        column(raw["race_adj"]),
        *((age == group).to(age.dtype) for group in (2, 3, 4)),
        *(column(raw[name]) for name in ("educ1", "gender", "income")),
    ]
    return torch.stack(X, -1), column(raw["partyid7"])
