"""Distances between draws of many scalar parameters, in units of the reference's sd.

Every function takes draws of P parameters, shape ``(P, chain, draw)``, and returns ``(P,)``.
"""

import numpy as np
from arviz_stats.base import array_stats

INTERVAL = 0.9
"""Probability of the central interval whose coverage is compared."""


def distances(draws: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """Return how ``draws`` differ from ``reference``, and Monte Carlo errors.

    Keys, all free of units: ``mean_error`` (difference of means over the reference sd),
    ``sd_ratio``, ``wasserstein`` (1-Wasserstein distance over the reference sd), ``coverage``
    (share of the reference inside the draws' central 90 % interval); ``mean_error_mcse`` and
    ``sd_ratio_mcse`` combine the Monte Carlo standard errors of both sides.

    >>> rng = np.random.default_rng(0)
    >>> result = distances(1 + 2 * rng.normal(size=(1, 1, 4000)), rng.normal(size=(1, 4, 1000)))
    >>> [round(float(result[key][0]), 1) for key in ("mean_error", "sd_ratio", "wasserstein")]
    [1.0, 2.0, 1.2]
    """
    z, r = standardised(draws, reference), standardised(reference, reference)
    return {
        "mean_error": _mean(z),
        "mean_error_mcse": np.hypot(_mcse(z, "mean"), _mcse(r, "mean")),
        "sd_ratio": _sd(z),
        "sd_ratio_mcse": np.hypot(_mcse(z, "sd"), _sd(z) * _mcse(r, "sd")),
        "wasserstein": wasserstein(z, r),
        "coverage": coverage(z, r),
    }


def noise_floors(reference: np.ndarray) -> dict[str, np.ndarray]:
    """Return the distance from perfect agreement that two halves of the reference show."""
    first, second = halves(standardised(reference, reference))
    coverages = coverage(first, second), coverage(second, first)
    return {
        "mean_error_floor": np.abs(_mean(first) - _mean(second)),
        "sd_ratio_floor": np.abs(_sd(first) - _sd(second)),
        "wasserstein_floor": wasserstein(first, second),
        "coverage_floor": np.abs(np.subtract(coverages, INTERVAL)).max(0),
    }


def weighted_moments(
    draws: np.ndarray, reference: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return mean error and sd ratio of ``draws`` under ``weights``, and their standard errors.

    ``weights`` has shape ``(chain * draw,)`` and sums to one. The standard errors are those of
    self-normalised importance sampling, √Σ w²(f - E_w f)², combined with the reference's.
    """
    z, r = standardised(draws, reference), standardised(reference, reference)
    flat = z.reshape(len(z), -1)
    mean = flat @ weights
    square = (flat - mean[:, None]) ** 2
    variance = square @ weights
    sd = np.sqrt(variance)
    mean_se = np.sqrt(square @ weights**2)
    variance_se = np.sqrt((square - variance[:, None]) ** 2 @ weights**2)
    sd_se = np.divide(variance_se, 2 * sd, out=np.zeros_like(sd), where=sd > 0)
    return {
        "mean_error_weighted": mean,
        "mean_error_weighted_mcse": np.hypot(mean_se, _mcse(r, "mean")),
        "sd_ratio_weighted": sd,
        "sd_ratio_weighted_mcse": np.hypot(sd_se, sd * _mcse(r, "sd")),
    }


def standardised(draws: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return ``draws`` minus the mean of ``reference``, over its sd."""
    return (draws - _mean(reference)[:, None, None]) / _sd(reference)[:, None, None]


def halves(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split into even and odd chains, or a single chain into its first and last draws.

    Chains are independent of one another, so their halves also show what poor mixing adds.
    """
    if draws.shape[1] > 1:
        return draws[:, ::2], draws[:, 1::2]
    middle = draws.shape[2] // 2
    return draws[..., :middle], draws[..., middle:]


def is_constant(draws: np.ndarray, eps: float) -> np.ndarray:
    """Whether each parameter varies no more than rounding does at precision ``eps``."""
    return np.ptp(draws, axis=(1, 2)) <= 16 * eps * np.abs(draws).max((1, 2))


def wasserstein(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ∫ |F_a⁻¹(p) - F_b⁻¹(p)| dp, exact for the two empirical distributions.

    Both quantile functions are steps, and the steps of all parameters lie at the same
    probabilities, so one grid serves them all.
    """
    a, b = (np.sort(x.reshape(len(x), -1), axis=1) for x in (a, b))
    n, m = a.shape[1], b.shape[1]
    # Probabilities in units of 1/(n m), as integers: the steps of both sides, without rounding.
    steps = np.union1d(np.arange(n) * m, np.arange(m) * n)
    widths = np.diff(np.append(steps, n * m)) / (n * m)
    return np.abs(a[:, steps // m] - b[:, steps // n]) @ widths


def coverage(draws: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the share of ``reference`` inside the central 90 % interval of ``draws``."""
    tails = (1 - INTERVAL) / 2, (1 + INTERVAL) / 2
    low, high = np.quantile(draws, tails, axis=(1, 2))[..., None, None]
    return ((low <= reference) & (reference <= high)).mean((1, 2))


def _mean(draws: np.ndarray) -> np.ndarray:
    return draws.mean((1, 2))


def _sd(draws: np.ndarray) -> np.ndarray:
    return draws.std((1, 2), ddof=1)


def _mcse(draws: np.ndarray, method: str) -> np.ndarray:
    """Return the Monte Carlo standard error, 0 where the draws do not vary."""
    with np.errstate(invalid="ignore"):
        errors = array_stats.mcse(draws, chain_axis=1, draw_axis=2, method=method)
    return np.where(_sd(draws) > 0, np.reshape(errors, len(draws)), 0.0)
