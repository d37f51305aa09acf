"""Modes of a reference that an approximation never visits."""

import numpy as np

MIN_MASS = 0.05
"""Smallest share of the reference that counts as a mode."""

_NUM_BINS = 64
_SMOOTHING = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
_VALLEY = 0.5
"""Highest density of a valley, relative to the lower of the peaks that it parts."""
_Z = 4.0
_MOST_TIES = 0.5
"""Share of equal draws that a discrete parameter has, whose histogram shows valleys everywhere."""
_VISITED = 0.05
"""Least mass, relative to the reference's, that counts as a visit."""


def missed_modes(
    draws: np.ndarray, reference: np.ndarray, share_independent: np.ndarray
) -> np.ndarray:
    """Return, for each parameter, the share of the reference in a mode that is never visited.

    A mode is what lies beyond a valley of the reference's histogram: a place where its density is
    below half that of the lower of the two peaks that it parts, by more than four standard errors,
    with at least 5 % of the reference beyond it. It is never visited if the draws have less than a
    twentieth of that share there, but do have draws on this side of the valley. Mass beyond the
    draws without such a valley is a matter of spread. 0 where there is no such mode, or
    the parameter is discrete.

    Args:
        draws: of the approximation, sorted, `(P, N)`.
        reference: sorted, `(P, M)`.
        share_independent: effective over actual number of reference draws, `(P,)`.

    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(1, 4000))
    >>> two = np.where(rng.uniform(size=(1, 4000)) < 0.3, -4, 4) + z
    >>> z, two = np.sort(z), np.sort(two)
    >>> missed_modes(z + 4, two, np.ones(1)).round(1), missed_modes(z / 3, z, np.ones(1))
    (array([0.3]), array([0.]))
    """
    last = reference.shape[1] - 1
    low, high = reference[:, round(0.001 * last)], reference[:, round(0.999 * last)]
    ours, theirs = (_histogram(x, low, high) for x in (draws, reference))
    scale = np.minimum(share_independent, 1.0) * reference.shape[1]
    sides = [_beyond(a, b, scale) for a, b in ((ours, theirs), (ours[:, ::-1], theirs[:, ::-1]))]
    return np.where(discrete(reference), 0.0, np.maximum(*sides))


def discrete(draws: np.ndarray) -> np.ndarray:
    """Whether parameters are discrete, `(P,)`: by the ties among sorted draws `(P, N)`."""
    return (np.diff(draws, axis=1) == 0).mean(1) > _MOST_TIES


def _histogram(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Shares of the draws in equal bins, (P, bins); those outside count to the outermost."""
    step = np.where(high > low, high - low, 1.0)[:, None] / _NUM_BINS
    bins = np.clip((x - low[:, None]) / step, 0, _NUM_BINS - 1).astype(int)
    flat = bins + _NUM_BINS * np.arange(len(x))[:, None]
    return (
        np.bincount(flat.ravel(), minlength=x.shape[0] * _NUM_BINS).reshape(len(x), -1) / x.shape[1]
    )


def _beyond(ours: np.ndarray, theirs: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The largest share of the reference right of a valley where we have nothing."""
    padded = np.pad(theirs, ((0, 0), (2, 2)), mode="edge")
    smooth = sum(w * padded[:, i : i + _NUM_BINS] for i, w in enumerate(_SMOOTHING))
    left_peak = np.maximum.accumulate(np.where(ours > 0, smooth, 0.0), axis=1)
    right_peak = np.maximum.accumulate(smooth[:, ::-1], axis=1)[:, ::-1]
    peak = np.minimum(left_peak, right_peak)
    noise = np.sqrt(peak / scale[:, None])
    is_valley = (smooth < _VALLEY * peak) & (peak - smooth > _Z * noise)
    mass = np.cumsum(theirs[:, ::-1], axis=1)[:, ::-1]
    visits = np.cumsum(ours[:, ::-1], axis=1)[:, ::-1]
    missed = is_valley & (mass >= MIN_MASS) & (visits < _VISITED * mass)
    deepest = np.where(missed, smooth, np.inf).argmin(1)[:, None]
    return np.take_along_axis(np.where(missed, mass, 0.0), deepest, 1)[:, 0]
