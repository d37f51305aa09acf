"""Bounds of log p(x) from log-weights of a guide's draws and of a posterior's, row by row.

Everything here is numpy. The side of a row says what it is in expectation: a "lower" or an "upper"
bound of log p(x), or an "estimate", which is neither.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from arviz_stats.base import array_stats
from scipy.special import logsumexp

from pyro_elbo_lab.statistics.importance import diagnose

LADDER = (1, 10, 100, 1000)
"""Numbers of draws K of the importance-weighted bounds."""

LEAST_GROUPS = 20
"""Fewest independent groups of K draws from which a standard error is taken."""

LEAST_ESS = 100
"""Fewest effective draws of a reference whose mean log-weight is believed."""


_NEGLIGIBLE = 0.01
"""Share of a posterior that a guide may miss: log p(x) changes by a hundredth of a nat."""

_ROUNDING = 1e-3
"""By how much larger a log-weight must be to count as larger."""


@dataclass(frozen=True)
class Row:
    """One line of the table of bounds: see `evidence`."""

    name: str
    side: str
    num_draws: int
    value: float
    se: float
    believable: bool
    reason: str


def lower_rows(log_weights: np.ndarray) -> list[Row]:
    """ELBO, importance-weighted bounds and their jackknife, and CUBO_2, from draws of the guide.

    Args:
        log_weights: log p(x, z) - log q(z) of independent draws of the guide, (S,), in nats.
    """
    rows = [_of_groups("ELBO" if k == 1 else "IW", "lower", k, log_weights) for k in LADDER]
    found = [row for row in rows if row is not None]
    return [*found, *_jackknife(log_weights), *_smoothed(log_weights)]


def _of_groups(
    name: str, side: str, num_draws: int, log_weights: np.ndarray, bound: "Bound | None" = None
) -> Row | None:
    groups = _groups(log_weights, num_draws)
    if groups is None:
        return None
    values = (bound or _log_mean)(groups)
    value, se = _mean(values)
    reason = f"mean of {len(values)} independent estimates"
    believable = bool(np.isfinite(value))
    return Row(name, side, num_draws, value, se, believable, reason if believable else "not finite")


Bound = Callable[[np.ndarray], np.ndarray]


def _groups(log_weights: np.ndarray, num_draws: int) -> np.ndarray | None:
    """(G, K), or None where there are too few."""
    count = len(log_weights) // num_draws
    if count < LEAST_GROUPS:
        return None
    return log_weights[: count * num_draws].reshape(count, num_draws)


def _log_mean(groups: np.ndarray) -> np.ndarray:
    return logsumexp(groups, axis=1) - math.log(groups.shape[1])


def _mean(values: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(values).all():
        return float(values.mean()), math.nan
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def _jackknife(log_weights: np.ndarray) -> list[Row]:
    """K IW_K - (K - 1) IW_{K-1}, which has bias of O(1/K^2) and is no bound."""
    num_draws = max((k for k in LADDER[1:] if len(log_weights) // k >= LEAST_GROUPS), default=0)
    if not num_draws:
        return []
    found = _of_groups("jackknife", "estimate", num_draws, log_weights, _leave_one_out)
    return [] if found is None else [found]


def _leave_one_out(groups: np.ndarray) -> np.ndarray:
    num_draws = groups.shape[1]
    top = groups.max(1, keepdims=True)
    weights = np.exp(groups - top)
    total = weights.sum(1, keepdims=True)
    rest = np.maximum(total - weights, np.finfo(float).tiny)
    without = (np.log(rest) - math.log(num_draws - 1)).mean(1) + top[:, 0]
    return num_draws * _log_mean(groups) - (num_draws - 1) * without


def _smoothed(log_weights: np.ndarray) -> list[Row]:
    """log of the mean Pareto smoothed weight, and CUBO_2 = log E_q[w^2] / 2."""
    found, squares = diagnose(log_weights), diagnose(2 * log_weights)
    size = len(log_weights)
    smoothed = Row(
        "PSIS",
        "estimate",
        size,
        found.log_evidence,
        found.log_evidence_se,
        found.k_hat <= found.k_hat_threshold,
        _k_hat("weights", found.k_hat, found.k_hat_threshold),
    )
    chi = logsumexp(2 * log_weights) - math.log(size)
    cubo = Row(
        "CUBO_2",
        "upper",
        size,
        float(chi / 2),
        0.5 * squares.log_evidence_se,
        squares.k_hat <= squares.k_hat_threshold,
        _k_hat("squared weights", squares.k_hat, squares.k_hat_threshold),
    )
    return [smoothed, cubo]


def _k_hat(of: str, value: float, threshold: float) -> str:
    relation = "at most" if value <= threshold else "above"
    return f"k-hat of the {of} is {value:.2f}, {relation} {threshold:.2f}"


def upper_rows(
    at_reference: np.ndarray, log_weights: np.ndarray, complaint: str, seed: int = 0
) -> list[Row]:
    """EUBO and reverse importance-weighted bounds.

    Args:
        at_reference: log-weights at draws of the posterior, (chain, draw).
        log_weights: log-weights of independent draws of the guide, (S,).
        complaint: why the reference is not to be relied on, or "".
        seed: of the choice of the guide's draws.
    """
    rows = [chain_mean("EUBO", 1, at_reference, complaint)]
    shuffled = np.random.default_rng(seed).permutation(log_weights)
    for k in LADDER[1:]:
        per_chain = min(len(shuffled) // (k - 1) // len(at_reference), at_reference.shape[1])
        if per_chain * len(at_reference) < LEAST_GROUPS:
            continue
        own = _thinned(at_reference, per_chain)
        others = shuffled[: own.size * (k - 1)].reshape(*own.shape, k - 1)
        together = np.concatenate([own[..., None], others], -1)
        values = logsumexp(together, axis=-1) - math.log(k)
        rows.append(chain_mean("reverse IW", k, values, complaint))
    return rows


def doubted(rows: Iterable[Row], at_reference: np.ndarray, log_weights: np.ndarray) -> list[Row]:
    """The guide's rows, but what is no lower bound is not believed if the guide misses a region.

    Among draws of the posterior the share with larger weights than any of S draws of the guide is
    about S^(k - 1) / (1 - k) for weights with Pareto shape k. It is as large as what is missed
    where the guide never draws from a part of the posterior: k-hat cannot notice that.

    Args:
        rows: those of `lower_rows`.
        at_reference: log-weights at draws of the posterior, (chain, draw).
        log_weights: log-weights of independent draws of the guide, (S,).
    """
    share = float(np.mean(at_reference > log_weights.max() + _ROUNDING))
    k = min(max(diagnose(log_weights).k_hat, 0.0), 0.7)
    expected = max(_NEGLIGIBLE, 3 * len(log_weights) ** (k - 1) / (1 - k))
    if share <= expected + 4 * math.sqrt(expected / at_reference.size):
        return list(rows)
    reason = f"the guide's draws miss a region with {share:.0%} of the reference"
    return [r if r.side == "lower" else replace(r, believable=False, reason=reason) for r in rows]


def _thinned(values: np.ndarray, per_chain: int) -> np.ndarray:
    index = np.linspace(0, values.shape[1] - 1, per_chain).round().astype(int)
    return values[:, index]


def chain_mean(name: str, num_draws: int, values: np.ndarray, complaint: str) -> Row:
    """The mean of an upper bound's terms over draws of the posterior, (chain, draw)."""
    value = float(values.mean())
    if not np.isfinite(values).all():
        return Row(name, "upper", num_draws, value, math.nan, False, "not finite everywhere")
    constant = np.ptp(values) < 1e-9 * max(1.0, abs(value))
    ess = float(values.size if constant else array_stats.ess(values, 0, 1, method="mean"))
    se = 0.0 if constant else float(values.std(ddof=1) / math.sqrt(ess))
    reason = complaint or f"effective sample size {ess:.0f}"
    believable = not complaint and ess >= min(LEAST_ESS, values.size / 2)
    return Row(name, "upper", num_draws, value, se, believable, reason)


def best(rows: Iterable[Row], side: str) -> Row | None:
    """The tightest believable bound of a side, two standard errors on the safe side."""
    sign = 1 if side == "lower" else -1
    candidates: Sequence[Row] = [row for row in rows if row.side == side and row.believable]
    return max(candidates, key=lambda row: sign * row.value - 2 * row.se, default=None)
