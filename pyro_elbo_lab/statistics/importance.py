"""What the log-weights of an approximation say: ELBO, PSIS k-hat, evidence."""

import math
from dataclasses import dataclass

import numpy as np
from arviz_stats.base import array_stats

__all__ = [
    "FEWEST_DRAWS",
    "ImportanceDiagnostics",
    "check_number",
    "diagnose",
    "k_hat",
    "tail_size",
]

FEWEST_DRAWS = 25
"""Five values in the tail."""

NO_TAIL = 1e-3
"""Log-weights that span less than this have no tail to fit: weights equal within 0.1 %."""


@dataclass(frozen=True)
class ImportanceDiagnostics:
    """Summary of S independent log-weights log p(x, z) - log q(z), in nats where it has units.

    `k_hat` is the shape of the generalized Pareto distribution fitted to the largest weights;
    `k_hat_threshold` is the largest value at which S draws suffice. `weights` are Pareto
    smoothed and sum to one, `weight_ess` is their effective number, 1 / Σ w². `log_evidence` is
    NaN unless `k_hat` is at most the threshold.
    """

    k_hat: float
    k_hat_threshold: float
    elbo: float
    elbo_se: float
    log_evidence: float
    log_evidence_se: float
    weight_ess: float
    weights: np.ndarray


def diagnose(log_weights: np.ndarray) -> ImportanceDiagnostics:
    """The diagnostics of independent log-weights of shape `(S,)`.

    The tail fit and the smoothing are those of Pareto smoothed importance sampling (Vehtari,
    Simpson, Gelman, Yao & Gabry 2024, JMLR 25(72)), whose threshold min(1 - 1/log10 S, 0.7)
    falls with fewer draws. The ELBO is the mean log-weight (Yao, Vehtari, Simpson & Gelman 2018
    use its k-hat to judge variational inference), log p(x) is estimated by the logarithm of the
    mean smoothed weight, and its standard error is √(1/ESS - 1/S).

    Raises:
        ValueError: if a log-weight is NaN or +∞, or none is finite.

    >>> rng = np.random.default_rng(0)
    >>> result = diagnose(0.7 * rng.exponential(size=100_000))  # weights with Pareto shape 0.7
    >>> round(result.k_hat, 1), round(result.elbo, 1)
    (0.7, 0.7)
    """
    log_w = np.asarray(log_weights, dtype=np.float64)
    if np.isnan(log_w).any() or not np.isfinite(log_w.max()):
        wrong = np.count_nonzero(np.isnan(log_w) | (log_w == np.inf))
        raise ValueError(
            f"{wrong} of {log_w.size} log-weights are NaN or +inf, or all are -inf; model and "
            "guide must give finite log densities at the guide's draws"
        )
    smoothed, k_hat = _pareto_smoothed(log_w)
    weights = np.exp(smoothed - smoothed.max())
    mean_weight = weights.mean()
    ess = weights.sum() ** 2 / np.sum(weights**2)
    threshold = min(1 - 1 / math.log10(log_w.size), 0.7)
    believable = k_hat <= threshold
    elbo = float(log_w.mean())
    return ImportanceDiagnostics(
        k_hat=k_hat,
        k_hat_threshold=threshold,
        elbo=elbo,
        elbo_se=float(log_w.std(ddof=1)) / math.sqrt(log_w.size) if elbo > -math.inf else math.nan,
        log_evidence=smoothed.max() + math.log(mean_weight) if believable else math.nan,
        log_evidence_se=_evidence_se(ess, log_w.size) if believable else math.nan,
        weight_ess=float(ess),
        weights=weights / weights.sum(),
    )


def k_hat(log_weights: np.ndarray) -> np.ndarray:
    """The tail shape of importance weights, cell by cell.

    The Pareto shape of the largest weights (Vehtari, Simpson, Gelman, Yao and Gabry 2024, Pareto
    smoothed importance sampling, JMLR 25(72)). Weights serve where it is at most
    min(1 - 1/log10 S, 0.7), S being the number of draws.

    Args:
        log_weights: log p - log q of independent draws, shape (chain, draw, *cells), in nats.

    Returns:
        Of shape (*cells); 0 where all weights are equal.

    Raises:
        ValueError: fewer than two dimensions or 25 draws; log-weights that are NaN or +∞.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> tails = rng.exponential([0.2, 0.7], size=(1, 100_000, 2))  # their Pareto shapes
        >>> np.abs(k_hat(tails) - [0.2, 0.7]) < 0.1
        array([ True,  True])
    """
    log_w = np.asarray(log_weights)
    if log_w.ndim < 2:
        raise ValueError(f"log_weights has shape {log_w.shape}, expected (chain, draw, *cells)")
    flat = log_w.reshape(log_w.shape[0] * log_w.shape[1], -1)
    check_number(len(flat))
    return np.array([diagnose(cell).k_hat for cell in flat.T]).reshape(log_w.shape[2:])


def check_number(num_draws: int) -> None:
    """Refuse a tail of fewer than five values.

    Raises:
        ValueError: fewer than 25 draws.
    """
    if num_draws < FEWEST_DRAWS:
        raise ValueError(f"k-hat needs at least {FEWEST_DRAWS} draws, got {num_draws}")


def _pareto_smoothed(log_w: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed log-weights, on the scale of `log_w`, and k-hat.

    Weights whose largest values coincide are bounded and have no tail: they come back as they
    are, with k-hat 0.
    """
    tail = np.sort(log_w)[-tail_size(log_w.size) :]
    if tail[-1] - tail[0] < NO_TAIL:
        return log_w, 0.0
    # ArviZ takes log-likelihoods, whose negatives are the log-weights, and normalizes its result.
    normalized, k_hat = array_stats.psislw(-log_w)
    if not np.isfinite(k_hat):
        return log_w, math.inf
    # Smoothing leaves the weights below the tail as they were, which gives the scale back.
    middle = np.argsort(log_w)[log_w.size // 2]
    if not np.isfinite(log_w[middle]):
        return log_w, float(k_hat)
    return normalized + (log_w[middle] - normalized[middle]), float(k_hat)


def tail_size(num_draws: int) -> int:
    """Number of largest weights that the fit uses (Vehtari et al. 2024, section 6)."""
    return int(3 * math.sqrt(num_draws)) if num_draws > 225 else num_draws // 5


def _evidence_se(ess: float, num_draws: int) -> float:
    return math.sqrt(max(1 / ess - 1 / num_draws, 0.0))
