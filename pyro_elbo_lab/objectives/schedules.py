"""Schedules for `kl_weight`, which multiplies the latents' terms of an objective.

With weight b the ELBO is E[log p(x | z)] + b E[log p(z) - log q(z)]: early on a small b lets the
data speak before the prior pulls the guide to itself. Every objective takes `kl_weight=schedule`
or a constant; a constant other than 1 is the beta-VAE's (Higgins et al. 2017). Only b = 1 makes the
value a bound of log p(x). Inside a non-linear bound b scales the terms within the log-weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from torch import Tensor

from pyro_elbo_lab.programs.arguments import integer, number

Schedule = Callable[[int], float]


def linear_annealing(num_steps: int, start: float = 0.0) -> Schedule:
    """From `start` to 1 in `num_steps` steps, then 1.

    Args:
        num_steps: at least 1.
        start: the weight at the beginning, from 0 to 1.

    Raises:
        ValueError: an argument out of its range.

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
    integer("linear_annealing: num_steps", num_steps, least=1)
    _check_start("linear_annealing", start)
    return partial(_rising, num_steps=num_steps, start=start)


def _rising(step: int, num_steps: int, start: float) -> float:
    return min(1.0, start + (1 - start) * step / num_steps)


def cyclical_annealing(period: int, start: float = 0.0, rising: float = 0.5) -> Schedule:
    """Again and again from `start` to 1, then 1 for the rest of the period.

    Args:
        period: steps of one cycle, at least 1.
        start: the weight at the beginning of a cycle, from 0 to 1.
        rising: share of the cycle in which the weight rises, above 0 and at most 1.

    Raises:
        ValueError: an argument out of its range.

    References:
        Fu et al. (2019), Cyclical annealing schedule: a simple approach to mitigating KL vanishing.

    Example:
        >>> schedule = cyclical_annealing(4)
        >>> [schedule(step) for step in range(6)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 0.5]
    """
    integer("cyclical_annealing: period", period, least=1)
    number("cyclical_annealing: rising", rising, "a share above 0, at most 1", most=1, above=0)
    _check_start("cyclical_annealing", start)
    once = linear_annealing(max(1, round(rising * period)), start)
    return partial(_again, period=period, once=once)


def _again(step: int, period: int, once: Schedule) -> float:
    return once(step % period)


def _check_start(name: str, start: Any) -> None:
    number(f"{name}: start", start, "a weight from 0 to 1", least=0, most=1)


@dataclass(frozen=True)
class CheckedSchedule:
    """A schedule whose weights are looked at.

    Attributes:
        name: of the objective, for messages.
        schedule: it.
    """

    name: str
    schedule: Callable[[int], float | Tensor]

    def __call__(self, step: int) -> float | Tensor:
        """The weight at a step.

        Raises:
            ValueError: a weight that is none.
        """
        weight = self.schedule(step)
        _check_weight(f"{self.name}: kl_weight at step {step}", weight)
        return weight


def checked_weight(name: str, weight: Any) -> Any:
    """A weight of the KL terms, or a schedule of weights, that is looked at.

    Args:
        name: of the objective, for messages.
        weight: what was given for `kl_weight`.

    Raises:
        ValueError: a weight that is negative, not finite or no number; now, or when the schedule
            gives it.

    Example:
        >>> checked_weight("StandardELBO", 0.5)
        0.5
    """
    if callable(weight):
        return CheckedSchedule(name, weight)
    _check_weight(f"{name}: kl_weight", weight)
    return weight


def _check_weight(where: str, weight: Any) -> None:
    is_scalar = isinstance(weight, Tensor) and weight.numel() == 1 and not weight.is_complex()
    is_number = is_scalar or (isinstance(weight, Real) and not isinstance(weight, bool))
    if is_number and math.isfinite(weight) and weight >= 0:
        return
    raise ValueError(
        f"{where} must be a finite number of at least 0, or a function of the step that gives one, "
        f"got {weight!r}."
    )
