"""Monte Carlo errors of many scalar quantities at once, chain by chain.

Every function takes draws of P quantities, shape `(P, chain, draw)`, and returns `(P,)`. ArviZ
computes the same numbers (a test holds the two against each other) one quantity at a time, which
takes minutes for 10⁵ of them.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy import fft, special, stats

_TAILS = (0.05, 0.95)


class Mixing(NamedTuple):
    """Effective sample size and R-hat of the mean, both from split chains."""

    ess: np.ndarray
    r_hat: np.ndarray


def mixing(draws: np.ndarray) -> Mixing:
    """Effective sample size and R-hat of the mean of each quantity.

    Chains are cut in halves. The autocorrelations of all of them together are summed up to the
    first pair whose sum is negative, and made monotone (Geyer 1992; Vehtari, Gelman, Simpson,
    Carpenter & Bürkner 2021, sections 3.1 and 3.2). A quantity that does not vary has as many
    effective draws as draws, and R-hat 1.

    >>> rng = np.random.default_rng(0)
    >>> found = mixing(rng.normal(size=(1, 4, 1000)))
    >>> bool(3500 < found.ess[0] < 4500), round(float(found.r_hat[0]), 2)
    (True, 1.0)
    """
    return _mixing(_split(draws))


def rank_mixing(draws: np.ndarray) -> Mixing:
    """The lesser of bulk and tail effective sample size, and the rank-normalized R-hat.

    Those of Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021, section 4): the R-hat is the
    larger one of normal scores of the ranks and of distances from the median, the tails are below
    the 5 % and above the 95 % quantile. R-hat is NaN where nothing varies, and both are for fewer
    than 4 draws.

    >>> found = rank_mixing(np.random.default_rng(0).normal(size=(1, 4, 1000)))
    >>> bool(3000 < found.ess[0] < 4500), round(float(found.r_hat[0]), 2)
    (True, 1.0)
    """
    x = _split(draws)
    if x.shape[2] < 2:
        unknown = np.full(len(x), np.nan)
        return Mixing(unknown, unknown)
    middle = np.median(x, axis=(1, 2), keepdims=True)
    bulk, spread = (_mixing(_normal_scores(y)) for y in (x, np.abs(x - middle)))
    ends = np.quantile(draws, _TAILS, axis=(1, 2), keepdims=True)
    tails = [_mixing((x <= end).astype(float)).ess for end in ends]
    varies = np.ptp(x, axis=(1, 2)) > 0
    return Mixing(
        ess=np.minimum.reduce([bulk.ess, *tails]),
        r_hat=np.where(varies, np.maximum(bulk.r_hat, spread.r_hat), np.nan),
    )


def _split(draws: np.ndarray) -> np.ndarray:
    half = draws.shape[2] // 2
    return np.concatenate([draws[..., :half], draws[..., -half:]], axis=1)


def _normal_scores(x: np.ndarray) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    ranks = stats.rankdata(flat, axis=1)
    return special.ndtri((ranks - 3 / 8) / (flat.shape[1] + 1 / 4)).reshape(x.shape)


def _mixing(x: np.ndarray) -> Mixing:
    """R-hat of chains that have been cut in halves."""
    num_chains, n = x.shape[1:]
    means = x.mean(-1)
    autocovariance = _autocovariance(x - means[..., None])
    within = autocovariance[:, 0] * n / (n - 1)
    total = autocovariance[:, 0] + means.var(1, ddof=1)
    varies = total > 0
    safe_total, safe_within = np.where(varies, total, 1.0), np.where(within > 0, within, 1.0)
    rho = 1 - (within[:, None] - autocovariance) / safe_total[:, None]
    rho[:, 0] = 1.0
    tau = np.maximum(_integrated_time(rho), 1 / math.log10(num_chains * n))
    r_hat = np.sqrt(safe_total / safe_within)
    return Mixing(
        ess=np.where(varies, num_chains * n / tau, float(num_chains * n)),
        r_hat=np.where(varies, np.where(within > 0, r_hat, np.inf), 1.0),
    )


def _autocovariance(centered: np.ndarray) -> np.ndarray:
    """The mean over chains of the autocovariance at each lag, `(P, draw)`."""
    n = centered.shape[2]
    size = fft.next_fast_len(2 * n, real=True)
    power = np.abs(fft.rfft(centered, size, axis=-1)) ** 2
    return fft.irfft(power.mean(1), size, axis=-1)[:, :n] / n


def _integrated_time(rho: np.ndarray) -> np.ndarray:
    """1 + 2 Σ rho_t over Geyer's initial monotone sequence; `rho` has shape (P, lag)."""
    num_pairs = max((rho.shape[1] - 1) // 2, 1)
    even, odd = rho[:, 0 : 2 * num_pairs : 2], rho[:, 1 : 2 * num_pairs : 2]
    pairs = even + odd
    negative = pairs < 0
    negative[:, -1] = True  # where the sequence ends if nothing else ends it
    end = negative.argmax(1)
    counted = np.arange(num_pairs) < end[:, None]
    monotone = np.minimum.accumulate(pairs, axis=1)
    last_even = np.maximum(np.take_along_axis(even, end[:, None], 1)[:, 0], 0.0)
    return -1 + 2 * np.where(counted, monotone, 0.0).sum(1) + last_even
