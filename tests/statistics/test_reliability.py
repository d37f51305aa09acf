"""The numbers that draws are judged by, beside ArviZ's."""

import arviz_stats
import numpy as np
import pytest

from pyro_elbo_lab.statistics.mixing import rank_mixing
from pyro_elbo_lab.statistics.reliability import Worst, judge, worst

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, 500))
DRAWS = {
    "independent": Z,
    "odd": Z[:, :251],
    "sticky": np.repeat(Z[:, ::5], 5, axis=1),
    "walk": Z.cumsum(1),
    "shifted": Z + np.arange(4)[:, None],
    "wide": Z * np.array([1, 1, 1, 3])[:, None],
    "heavy": np.tan(np.pi * (RNG.uniform(size=(4, 500)) - 0.5)),
    "discrete": RNG.poisson(3.0, size=(4, 500)).astype(float),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_rank_normalized_numbers_are_arvizs(kind: str) -> None:
    draws = DRAWS[kind]
    found = rank_mixing(draws[None])
    assert found.r_hat[0] == pytest.approx(float(arviz_stats.rhat(draws)), rel=1e-9)
    sizes = [float(arviz_stats.ess(draws, method="bulk"))]
    sizes.append(float(arviz_stats.ess(draws, method="tail", prob=(0.05, 0.95))))
    assert found.ess[0] == pytest.approx(min(sizes), rel=1e-6)


def test_what_does_not_vary_and_what_is_too_short() -> None:
    assert np.isnan(rank_mixing(np.ones((1, 4, 100))).r_hat[0])
    found = rank_mixing(Z[None, :, :3])
    assert np.isnan(found.r_hat[0]) and np.isnan(found.ess[0])


def test_the_worst_is_named() -> None:
    parts = [(["a", "b"], np.stack([Z, DRAWS["shifted"]])), (["c"], DRAWS["walk"][None])]
    found = worst(parts)
    assert found.r_hat[0] in ("b", "c") and found.ess[0] in ("b", "c")
    assert found.r_hat[1] > 1.1 and found.ess[1] < 50
    nothing = worst([(["a"], np.ones((1, 4, 100)))])
    assert nothing.r_hat[0] == "a" and np.isnan(nothing.r_hat[1])


def test_limits() -> None:
    good = Worst(("a", 1.01), ("a", 400.0))
    assert judge(good, 4, None) == (True, "reliable: R-hat is at most 1.010, ESS at least 400.")
    assert not judge(good._replace(r_hat=("a", 1.0101)), 4, None)[0]
    assert not judge(good._replace(ess=("a", 399.0)), 4, None)[0]
    assert not judge(good._replace(r_hat=("a", np.nan)), 4, None)[0]
    assert not judge(good, 1, None)[0]
    diverging = np.zeros((4, 100), bool)
    diverging[0, :4] = True
    assert judge(good, 4, diverging)[0]
    diverging[1, 0] = True
    assert judge(good, 4, diverging)[1].endswith(
        "5 of 400 transitions diverged (at most 1% is good)."
    )
