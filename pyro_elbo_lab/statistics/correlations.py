"""Errors of correlations, and spreads that depend on another parameter."""

import numpy as np
from scipy.stats import rankdata


def unit(draws: np.ndarray) -> np.ndarray:
    """Draws `(P, N)` or `(P, chain, draw)` as centered rows of length 1, `(P, N)`.

    Their products are correlations. 0 where a parameter does not vary.
    """
    flat = draws.reshape(len(draws), -1)
    centered = flat - flat.mean(1, keepdims=True)
    length = np.linalg.norm(centered, axis=1, keepdims=True)
    return np.divide(centered, length, out=np.zeros_like(centered), where=length > 0)


def largest_difference(
    a: np.ndarray, b: np.ndarray, own: np.ndarray, ess_a: np.ndarray, ess_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The largest difference of each parameter's correlations, and its standard error.

    Args:
        a: correlations with some parameters, `(P, A)`.
        b: the same on the other side.
        own: which of them are correlations of a parameter with itself, `(P, A)`.
        ess_a: effective sample sizes behind `a`, `(P,)`; the standard error of a correlation
            r of normal draws is (1 - r²)/√ESS.
        ess_b: those behind `b`.

    Returns:
        Both of shape `(P,)`, NaN where there is no other parameter.
    """
    difference = np.where(own, -1.0, np.abs(a - b))
    worst = difference.argmax(1)[:, None]
    size = np.take_along_axis(difference, worst, 1)[:, 0]
    errors = [
        (1 - np.take_along_axis(rho, worst, 1)[:, 0] ** 2) / np.sqrt(ess)
        for rho, ess in ((a, ess_a), (b, ess_b))
    ]
    alone = size < 0
    return np.where(alone, np.nan, size), np.where(alone, np.nan, np.hypot(*errors))


def governed_spread(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How closely the spread of any other parameter follows each parameter, and how.

    First the largest rank correlation, in absolute value, of a parameter with the distance of
    another one from its median. It is large for the parameter at the root of a funnel (Neal 2003;
    Betancourt & Girolami 2015) or along which another one bends, as in a banana, and zero, up to
    noise, for any normal distribution.

    Second, for that other parameter, the lower decile over the median of its distance, in the
    quarter of the draws where it is largest: at most 0.19 in a funnel, whose middle is densest
    everywhere, and large where the draws are in two branches.

    Both are 0 for a discrete parameter, and discrete ones are not followed: the spread of a
    binary one around its median is its value.

    Args:
        draws: `(draw, parameter)`, independent.

    >>> rng = np.random.default_rng(0)
    >>> x, noise = rng.normal(size=(2, 1000, 1))
    >>> funnel = np.hstack([x, np.exp(x) * noise])
    >>> banana = np.hstack([x**2 + noise / 2, x])
    >>> for draws in (funnel, banana):
    ...     strength, bend = governed_spread(draws)
    ...     strength[0].round(1), bend[0].round(1)
    (np.float64(0.7), np.float64(0.1))
    (np.float64(0.8), np.float64(0.7))
    """
    spread = np.abs(draws - np.median(draws, axis=0))
    found = unit(rankdata(draws, axis=0).T) @ unit(rankdata(spread, axis=0).T).T
    np.fill_diagonal(found, 0.0)
    discrete = np.array([len(np.unique(x)) <= len(x) / 4 for x in draws.T])
    found[discrete] = found[:, discrete] = 0.0
    governed = np.abs(found).argmax(1)
    strength = np.take_along_axis(found, governed[:, None], 1)[:, 0]
    order = np.where(strength > 0, -draws, draws).argsort(0)
    widest = np.take_along_axis(spread[:, governed], order[: len(draws) // 4], 0)
    low, middle = np.quantile(widest, (0.1, 0.5), axis=0)
    follows = (middle > 0) & (strength != 0)
    bend = np.divide(low, middle, out=np.zeros_like(low), where=follows)
    return np.abs(strength), bend
