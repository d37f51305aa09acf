"""Tolerances for tests of random quantities, all from standard errors and one named rate.

A comparison of a sample mean with its expectation is measured in standard errors and held against
a quantile of Student's t distribution. The quantile follows from ``FALSE_ALARM_RATE`` and from how
many entries the test compares at once, so no test needs a tolerance of its own. Samples are
assumed independent, of finite variance, and many enough for the mean to be close to normal.

Rounding adds ``ROUNDING_STEPS`` units in the last place of the samples' own dtype, at the size of
the expectation, so that estimates whose variance vanishes need no rule of their own.
"""

import math
from typing import Any

import numpy as np
import torch
from scipy import stats

FALSE_ALARM_RATE = 1e-6
"""Probability that one assertion rejects a correct implementation, all its entries together."""

ROUNDING_STEPS = 64
"""Accumulated rounding that is allowed for, in units in the last place."""


def critical_value(num_comparisons: int = 1, degrees_of_freedom: float = math.inf) -> float:
    """Largest |error| / standard error that still counts as agreement.

    Two-sided quantile at the Bonferroni-corrected ``FALSE_ALARM_RATE``: of the normal
    distribution, or of Student's t when the standard error itself has few degrees of freedom.

    >>> round(critical_value(), 2), round(critical_value(100), 2)
    (4.89, 5.73)
    >>> round(critical_value(1, degrees_of_freedom=20), 2)
    6.93
    """
    if num_comparisons < 1:
        raise ValueError(f"num_comparisons must be at least 1, got {num_comparisons}")
    return float(stats.t.isf(FALSE_ALARM_RATE / (2 * num_comparisons), degrees_of_freedom))


def assert_mean_equals(samples: Any, expected: Any, axis: int = 0) -> None:
    """Assert that the mean of independent ``samples`` along ``axis`` estimates ``expected``.

    ``samples`` and ``expected`` are tensors, arrays or numbers; ``expected`` has the shape of
    the mean, or broadcasts to it. Entries whose samples are all identical must equal
    ``expected`` up to rounding. Non-finite samples fail.
    """
    mean, variance, size = _mean_and_its_variance(samples, axis)
    expected_array = np.broadcast_to(_as_float64(expected), mean.shape)
    rounding = _rounding(samples, expected_array)
    _assert_errors_within(mean, expected_array, np.sqrt(variance), size - 1, rounding)


def assert_means_equal(a: Any, b: Any, axis: int = 0) -> None:
    """Assert that two independent samples have the same mean (Welch, unequal variances).

    ``a`` and ``b`` may have different lengths along ``axis`` and must agree in the other axes.
    The degrees of freedom are those of the shorter sample, which errs towards agreement.
    """
    mean_a, variance_a, size_a = _mean_and_its_variance(a, axis)
    mean_b, variance_b, size_b = _mean_and_its_variance(b, axis)
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"the means have different shapes: {mean_a.shape} and {mean_b.shape}")
    standard_error = np.sqrt(variance_a + variance_b)
    rounding = np.maximum(_rounding(a, mean_a), _rounding(b, mean_b))
    _assert_errors_within(mean_a, mean_b, standard_error, min(size_a, size_b) - 1, rounding)


def _rounding(samples: Any, expected: np.ndarray) -> np.ndarray:
    dtype = samples.dtype if isinstance(samples, torch.Tensor) else torch.float64
    return ROUNDING_STEPS * torch.finfo(dtype).eps * np.maximum(1.0, np.abs(expected))


def _as_float64(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _mean_and_its_variance(samples: Any, axis: int) -> tuple[np.ndarray, np.ndarray, int]:
    values = np.moveaxis(_as_float64(samples), axis, 0)
    size = values.shape[0]
    if not values.size:
        raise ValueError(f"there is nothing to compare: samples have shape {values.shape}")
    if size < 2:
        raise ValueError(f"at least 2 samples are needed along axis {axis}, got {size}")
    mean = values.mean(0)
    # The mean of n identical numbers may differ from them by rounding.
    constant = (values == values[0]).all(0)
    mean = np.where(constant, values[0], mean)
    with np.errstate(invalid="ignore"):
        variance = np.where(constant, 0.0, values.var(0, ddof=1) / size)
    return mean, variance, size


def _assert_errors_within(
    mean: np.ndarray,
    expected: np.ndarray,
    standard_error: np.ndarray,
    degrees_of_freedom: int,
    rounding: np.ndarray,
) -> None:
    error = np.abs(mean - expected)
    critical = critical_value(mean.size, degrees_of_freedom)
    agrees = error <= critical * standard_error + rounding  # False where anything is NaN
    if agrees.all():
        return
    lines = [
        f"  {index}: mean {mean[index]:.8g}, expected {expected[index]:.8g}, "
        f"standard error {standard_error[index]:.3g}, "
        f"z = {error[index] / standard_error[index] if standard_error[index] else math.inf:.3g}"
        for index in map(tuple, np.argwhere(~agrees)[:10].tolist())
    ]
    raise AssertionError(
        f"{(~agrees).sum()} of {mean.size} means disagree, |z| may be {critical:.3g}:\n"
        + "\n".join(lines)
    )
