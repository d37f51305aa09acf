"""Schedules for `kl_weight`, which multiplies the latents' terms of an objective.

With weight b the ELBO is E[log p(x | z)] + b E[log p(z) - log q(z)]: early on a small b lets the
data speak before the prior pulls the guide to itself. Every objective takes `kl_weight=schedule`
or a constant; a constant other than 1 is the beta-VAE's (Higgins et al. 2017). Only b = 1 makes the
value a bound of log p(x). Inside a non-linear bound b scales the terms within the log-weights.
"""

from collections.abc import Callable

Schedule = Callable[[int], float]


def linear_annealing(num_steps: int, start: float = 0.0) -> Schedule:
    """From `start` to 1 in `num_steps` steps, then 1.

    References:
        Bowman et al. (2016), Generating sentences from a continuous space; Sonderby et al. (2016),
        Ladder variational autoencoders.

    Example:
        >>> from pyro_elbo_lab import AnalyticKLELBO
        >>> objective = AnalyticKLELBO(kl_weight=linear_annealing(1000))
        >>> schedule = linear_annealing(4)
        >>> [schedule(step) for step in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return lambda step: min(1.0, start + (1 - start) * step / num_steps)


def cyclical_annealing(period: int, start: float = 0.0, rising: float = 0.5) -> Schedule:
    """Again and again from `start` to 1, then 1 for the rest of the period.

    Args:
        period: steps of one cycle.
        start: the weight at the beginning of a cycle.
        rising: share of the cycle in which the weight rises.

    References:
        Fu et al. (2019), Cyclical annealing schedule: a simple approach to mitigating KL vanishing.

    Example:
        >>> schedule = cyclical_annealing(4)
        >>> [schedule(step) for step in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]
    """
    once = linear_annealing(max(1, round(rising * period)), start)
    return lambda step: once(step % period)
