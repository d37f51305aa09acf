"""Eight schools, non-centered; the program is that of `models`.

posteriordb's draws are of theta = mu + tau z, not of z.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from models.eight_schools import model as model
from tests.trust.posteriors.pieces import column

NAME = "eight_schools-eight_schools_noncentered"


def data(raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Estimated effects and their standard errors, each shape (8,)."""
    return column(raw["y"]), column(raw["sigma"])


def latents(draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """z beside mu, tau and theta."""
    z = (draws["theta"] - draws["mu"][..., None]) / draws["tau"][..., None]
    return {**draws, "z": z}
