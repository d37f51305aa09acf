"""Gaussian guides at their optimum, and what k-hat says of them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from models import eight_schools, linear_regression
from tests.benchmarks.papers.k_hat import NUM_DRAWS, REPETITIONS, k_hats
from tests.trust.posteriors.optimum import full_rank, mean_field

Program = Callable[..., Any]

NUM_POINTS = 2**12
near = partial(assert_close, rtol=0.0, atol=16 / NUM_POINTS)
"""An average over N Sobol points has an error of the order of 1 / N."""


def data(file: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.double() for tensor in file.data())


def test_full_rank_is_a_gaussian_posterior() -> None:
    arguments = data(linear_regression)
    exact = linear_regression.exact(*arguments)
    mean, covariance, sd = (exact[name]["w"] for name in ("mean", "covariance", "sd"))
    found = full_rank(linear_regression.model, *arguments, num_points=NUM_POINTS).get_posterior()
    near(found.mean.detach() / sd, mean / sd)
    unit = torch.outer(sd, sd)
    near(found.covariance_matrix.detach() / unit, covariance / unit)


def test_mean_field_has_the_precision_s_diagonal() -> None:
    """Its variances are the inverse of it; its means are the posterior's."""
    arguments = data(linear_regression)
    exact = linear_regression.exact(*arguments)
    sd = exact["covariance"]["w"].inverse().diagonal() ** -0.5
    guide = mean_field(linear_regression.model, *arguments, num_points=NUM_POINTS)
    near(guide.loc.detach() / sd, exact["mean"]["w"] / sd)
    near(guide.scale.detach() / sd, torch.ones_like(sd))


@pytest.mark.parametrize(
    "model, low, high",
    [(eight_schools.model_centered, 0.87, 0.99), (eight_schools.model, 0.54, 0.63)],
    ids=["centered", "non-centered"],
)
def test_k_hat_of_eight_schools(
    report: Callable[[str], None], model: Program, low: float, high: float
) -> None:
    """The mean-field optimum of Yao, Vehtari, Simpson and Gelman (2018), Yes, but did it work?

    Single values vary with the draws by 0.05 to 0.06 (sd), hence the mean of several.
    """
    found = k_hats(model, REPETITIONS, NUM_DRAWS, NUM_POINTS)
    report(
        f"{model.__name__} of eight schools, mean-field optimum: k-hat {found.mean():.3f} "
        f"(mean of {REPETITIONS}, sd {found.std():.3f})"
    )
    assert low < found.mean() < high


def test_the_optimum_does_not_depend_on_the_points() -> None:
    """Eight schools are no Gaussian: two sets of points differ by 1 % of the guide's sds."""
    arguments = data(eight_schools)
    first, second = (
        mean_field(eight_schools.model, *arguments, num_points=4 * NUM_POINTS, seed=s)
        for s in (0, 1)
    )
    sd = first.scale.detach()
    assert_close(first.loc.detach() / sd, second.loc.detach() / sd, rtol=0, atol=0.01)
    assert_close(second.scale.detach() / sd, torch.ones_like(sd), rtol=0, atol=0.01)
