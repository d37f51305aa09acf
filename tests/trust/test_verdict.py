"""Verdicts on planted failures, over many seeds; the evidence that they rest on."""

import numpy as np
import pytest
from scipy import stats

from pyro_elbo_lab.statistics.modes import missed_modes
from pyro_elbo_lab.statistics.trend import late_fall
from pyro_elbo_lab.trust.comparison.compare import Comparison, compare
from tests.statistics.test_mixing import autoregressive
from tests.support.planted import PLANTED, RHO, trained, vector
from tests.support.tolerances import assert_mean_equals, critical_value

NUM_SEEDS = 20


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def planted(name: str, seed: int) -> Comparison:
    rng = np.random.default_rng([seed, *name.encode()])
    q, reference, losses = PLANTED[name].build(rng)
    return compare({"q": q}, reference, losses=None if losses is None else {"q": losses})


@pytest.mark.parametrize("name", PLANTED)
def test_planted_failures_get_their_verdict(name: str) -> None:
    """In at least 95 % of 20 seeds, with the advice that belongs to it."""
    findings = [planted(name, seed).findings["q"] for seed in range(NUM_SEEDS)]
    expected = PLANTED[name]
    right = [f.kind == expected.kind and expected.advice in f.sentence for f in findings]
    assert sum(right) >= 0.95 * NUM_SEEDS, {f.kind: f.sentence for f in findings}
    assert all(f.sentence.lower().startswith(f.kind) for f in findings)


def test_scale_under_estimation_has_its_closed_form() -> None:
    """The mean-field optimum of a normal posterior with correlation r has sd ratios √(1 - r²)."""
    table = planted("scale under-estimation", 0).table
    error = abs(table["sd_ratio"] - np.sqrt(1 - RHO**2))
    assert (error < critical_value(2) * table["sd_ratio_mcse"]).all()
    correlation_error = abs(table["correlation_error"] - RHO)
    assert (correlation_error < critical_value(2) * table["correlation_error_mcse"]).all()


def test_a_converged_fit_is_not_called_unconverged(rng: np.random.Generator) -> None:
    q, reference, losses = trained(rng, 3000)
    q["posterior"].dataset["x"].values[..., 0] += 1  # what is wrong has another reason
    del q["sample_stats"]
    found = compare({"q": q}, reference, losses={"q": losses}).findings["q"]
    assert found.kind == "biased"


def test_losses_may_come_with_the_tree(rng: np.random.Generator) -> None:
    q, reference, losses = trained(rng, 200)
    q["training"] = vector(losses[None, :, None], "loss")["posterior"].isel(chain=0, i=0)
    assert compare({"q": q}, reference).findings["q"].kind == "unconverged"
    flat = rng.normal(size=200)
    assert compare({"q": q}, reference, losses={"q": flat}).findings["q"].kind != "unconverged"
    with pytest.raises(ValueError, match="losses of 'p', which is none of"):
        compare({"q": q}, reference, losses={"p": flat})


def test_late_fall_of_a_line(rng: np.random.Generator) -> None:
    """A fall of 0.01 nats a step over the last 500 of 1000 steps is one of 5 nats."""
    line = 20 - 0.01 * np.arange(1000)
    found = np.array([late_fall(line + rng.normal(size=1000)) for _ in range(50)])
    assert_mean_equals(found[:, 0], 5.0)
    # The error that is reported is the one that is made.
    assert 0.7 < found[:, 0].std() / found[:, 1].mean() < 1.4


def test_late_fall_of_noise_is_within_its_error(rng: np.random.Generator) -> None:
    z = [fall / se for fall, se in (late_fall(rng.normal(size=400)) for _ in range(300))]
    assert_mean_equals(z, 0.0)
    assert np.mean(np.abs(z) > 4) < 0.02


def test_late_fall_needs_finite_losses() -> None:
    assert np.isnan(late_fall(np.ones(39))).all()
    assert np.isnan(late_fall(np.full(100, np.inf))).all()
    broken = np.arange(100.0)
    broken[60] = np.nan
    assert late_fall(broken)[0] == pytest.approx(-50, rel=0.02)


TRANSFORMS = {
    "normal": lambda z: z,
    "log-normal": np.exp,
    "Student": lambda z: np.sinh(2 * z),
    "uniform": stats.norm.cdf,
    "rounded": lambda z: np.round(3 * z),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("phi", [0.0, 0.95])
def test_one_mode_is_never_taken_for_two(
    transform: str, phi: float, rng: np.random.Generator
) -> None:
    """However narrow or shifted the draws are, and whatever the shape or mixing."""
    f = TRANSFORMS[transform]
    reference = f(autoregressive(phi, (200, 4, 1000)))
    independent = np.full(200, (1 - phi) / (1 + phi))
    r = np.sort(reference.reshape(200, -1), axis=1)
    for scale, shift in ((0.3, 0), (0.1, 1), (1, -2)):
        q = np.sort(f(shift + scale * rng.normal(size=(200, 2000))), axis=1)
        assert (missed_modes(q, r, independent) == 0).all()


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_the_mass_of_a_missed_mode(weight: float, rng: np.random.Generator) -> None:
    right = rng.uniform(size=(50, 4000)) < weight
    r = np.sort(rng.normal(np.where(right, 4, -4), 1), axis=1)
    one = np.ones(50)
    left = np.sort(rng.normal(-4, 1, size=(50, 2000)), axis=1)
    assert_mean_equals(missed_modes(left, r, one), weight)
    wide = np.sort(rng.normal(0, 4, size=(50, 2000)), axis=1)
    assert (missed_modes(wide, r, one) == 0).all()


def test_good_marginals_with_wrong_correlations(rng: np.random.Generator) -> None:
    z = rng.normal(size=(4, 1000, 2))
    reference = np.stack([z[..., 0], 0.8 * z[..., 0] + 0.6 * z[..., 1]], -1)
    comparison = compare({"q": vector(rng.normal(size=(1, 4000, 2)))}, vector(reference))
    found = comparison.findings["q"]
    assert found.kind == "good marginals" and "full-rank" in found.sentence
    assert f"off by up to {comparison.table['correlation_error'].max():.2f}" in found.sentence


def test_a_wrong_shape_is_named(rng: np.random.Generator) -> None:
    """Two modes beside the normal distribution with their mean and sd: W1 is 0.33 sd."""
    two = rng.normal(np.where(rng.uniform(size=(4, 1000, 1)) < 0.5, -3, 3), 1)
    q = rng.normal(0, np.sqrt(10), size=(1, 4000, 1))
    found = compare({"q": vector(q)}, vector(two)).findings["q"]
    assert found.kind == "wrong shape" and "Wasserstein distance of 0." in found.sentence


def test_the_advice_on_discrete_parameters(rng: np.random.Generator) -> None:
    """No flow is of use to a guide of discrete latents."""
    normal = rng.normal(size=(2, 4, 1000, 1))
    binary = rng.uniform(size=(2, 4, 1000, 1)) < np.array([0.5, 0.9]).reshape(2, 1, 1, 1)
    q, reference = (vector(x) for x in np.concatenate([binary, normal], -1).astype(float))
    sentence = compare({"q": q}, reference).findings["q"].sentence
    assert "worst x[0]" in sentence and "flow" not in sentence and "sum them out" in sentence
    wide = vector(np.concatenate([binary[0], 2 * normal[0]], -1))
    assert "flow" in compare({"q": wide}, reference).findings["q"].sentence


def test_without_a_variance_there_is_no_verdict_on_sds(rng: np.random.Generator) -> None:
    kinds = {
        compare(
            {"q": vector(rng.standard_cauchy(size=(1, 2000, 2)))},
            vector(rng.standard_cauchy(size=(4, 1000, 2))),
        )
        .findings["q"]
        .kind
        for _ in range(10)
    }
    assert kinds == {"cannot tell"}


def test_errors_that_noise_may_explain_are_named() -> None:
    """An sd 18 % too small in 500 draws: no verdict against it, but a word."""
    grid = stats.norm.ppf((np.arange(500) + 0.5) / 500)
    draws = np.random.default_rng(0).permutation(grid)[None]
    reference = vector(np.random.default_rng(1).permuted([grid, grid], axis=1)[..., None], "x")
    found = compare({"q": vector(0.82 * draws[..., None], "x")}, reference).findings["q"]
    assert found.kind == "good"
    assert found.sentence.endswith(
        "x[0] is beyond the tolerance, but not by more than noise may explain."
    )
    close = compare({"q": vector(0.95 * draws[..., None], "x")}, reference).findings["q"]
    assert "beyond the tolerance" not in close.sentence
