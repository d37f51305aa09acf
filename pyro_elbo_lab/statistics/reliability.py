"""Whether draws of chains can be relied on: one judge, and one table of limits."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from pyro_elbo_lab.statistics.mixing import rank_mixing

__all__ = ["Worst", "judge", "worse", "worst"]

MAX_R_HAT = 1.01
"""The largest rank-normalized split R-hat (Vehtari et al. 2021)."""

MIN_ESS_PER_CHAIN = 100
"""The least bulk and tail effective sample size with which R-hat and ESS themselves are known."""

MAX_DIVERGENT_SHARE = 0.01
"""The largest share of transitions that may diverge."""


class Worst(NamedTuple):
    """The largest R-hat and the smallest ESS of some scalar parameters, with their names."""

    r_hat: tuple[str, float] = ("", -np.inf)
    ess: tuple[str, float] = ("", np.inf)


def worst(parts: Iterable[tuple[list[str], np.ndarray]]) -> Worst:
    """The worst R-hat and ESS of scalars, given in parts: names, and draws (P, chain, draw)."""
    found = Worst()
    for names, draws in parts:
        mixing = rank_mixing(draws)
        found = worse(found, names, mixing.r_hat, mixing.ess)
    return found


def worse(found: Worst, names: list[str], r_hat: np.ndarray, ess: np.ndarray) -> Worst:
    """What is worst of what was found and of more scalars; NaN is worse than any number."""
    if not names:
        return found
    i, j = int(np.argmax(r_hat)), int(np.argmin(ess))
    high, low = (names[i], float(r_hat[i])), (names[j], float(ess[j]))
    return Worst(
        found.r_hat if high[1] <= found.r_hat[1] else high,
        found.ess if low[1] >= found.ess[1] else low,
    )


def judge(found: Worst, num_chains: int, diverging: np.ndarray | None) -> tuple[bool, str]:
    """Whether draws can be relied on, and one sentence that says why.

    Args:
        found: over all scalar parameters that vary.
        num_chains: the number of chains; R-hat of a single one says nothing of convergence.
        diverging: which transitions diverged, (chain, draw); None where the sampler does not say.

    Example:
        >>> judge(Worst(("z", 1.002), ("z", 950.0)), 4, None)
        (True, 'reliable: R-hat is at most 1.002, ESS at least 950.')
    """
    (high, r_hat), (low, ess) = found
    enough, diverged = MIN_ESS_PER_CHAIN * num_chains, ""
    complaints = []
    if num_chains < 2:
        complaints.append("R-hat takes at least 2 chains")
    elif not r_hat <= MAX_R_HAT:
        complaints.append(f"R-hat of {high} is {r_hat:.3f} (at most {MAX_R_HAT} is good)")
    if not ess >= enough:
        complaints.append(f"ESS of {low} is {ess:.0f} (at least {enough} is good)")
    if diverging is not None:
        diverged = f"{int(diverging.sum())} of {diverging.size} transitions diverged"
        if diverging.sum() > MAX_DIVERGENT_SHARE * diverging.size:
            complaints.append(f"{diverged} (at most {MAX_DIVERGENT_SHARE:.0%} is good)")
    if complaints:
        return False, f"not reliable: {'; '.join(complaints)}."
    said: list[Any] = [f"R-hat is at most {r_hat:.3f}", f"ESS at least {ess:.0f}", diverged]
    return True, f"reliable: {', '.join(filter(None, said))}."
