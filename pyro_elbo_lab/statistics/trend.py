"""Whether a loss was still falling when training ended."""

import math

import numpy as np

_NUM_BATCHES = 20
MIN_STEPS = 2 * _NUM_BATCHES
"""Fewest losses that show a trend."""


def late_fall(losses: np.ndarray) -> tuple[float, float]:
    """The nats by which the loss fell over the last half of its steps, and the error.

    The means of 20 batches of consecutive steps are fitted by a straight line; the fall is minus
    its slope times the length. Batches take up the autocorrelation of the losses, as in the method
    of batch means. A converged run shows no trend (Dhaka, Catalina, Andersen, Magnusson, Huggins &
    Vehtari 2020, "Robust, accurate stochastic optimization for variational inference").

    Args:
        losses: in nats, shape `(num_steps,)`.

    Returns:
        Both NaN for fewer than 40 steps, or where half of the losses are not finite.

    >>> rng = np.random.default_rng(0)
    >>> fall, error = late_fall(5 - 0.002 * np.arange(1000) + rng.normal(size=1000))
    >>> round(fall), error < 0.3
    (1, True)
    """
    late = np.asarray(losses, np.float64)[len(losses) // 2 :]
    if len(losses) < MIN_STEPS or np.isfinite(late).mean() < 0.5:
        return math.nan, math.nan
    batches = np.array_split(late, _NUM_BATCHES)
    y = np.array([np.mean(batch[np.isfinite(batch)]) for batch in batches])
    x = np.arange(_NUM_BATCHES) - (_NUM_BATCHES - 1) / 2
    slope = x @ y / (x @ x)
    residual = y - y.mean() - slope * x
    error = math.sqrt(residual @ residual / (_NUM_BATCHES - 2) / (x @ x))
    return float(-slope * _NUM_BATCHES), float(error * _NUM_BATCHES)
