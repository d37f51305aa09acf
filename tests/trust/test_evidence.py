"""Bounds of log p(x): their values in closed form, their order, and which of them are believed."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from scipy.special import logsumexp
from torch import Tensor

from models import eight_schools
from pyro_elbo_lab import StandardELBO, fit, nuts
from pyro_elbo_lab.cli import main
from pyro_elbo_lab.figures.ladder import plot_evidence
from pyro_elbo_lab.trust.evidence.evidence import Bound, EvidenceBounds, evidence
from pyro_elbo_lab.trust.evidence.ladder import chain_mean, lower_rows, upper_rows
from tests.support.tolerances import critical_value

X = torch.tensor(1.3)
LOG_EVIDENCE, ELBO, EUBO, CUBO = -1.685004, -2.457778, -1.242963, -1.373579
VARIANCE = 1 / (1 + 1 / 0.5)  # of the posterior, whose mean is this over 0.5 times x


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    pyro.sample("x", dist.Normal(z, 0.5**0.5), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(x.new_tensor(0.2), 0.6**0.5))


def posterior(num_draws: int) -> dict[str, Tensor]:
    return {"z": X * VARIANCE / 0.5 + VARIANCE**0.5 * torch.randn(num_draws)}


def tree(draws: Tensor, **attrs: object) -> xr.DataTree:
    found = xr.Dataset({"z": (("chain", "draw"), draws.reshape(4, -1).numpy())})
    result = xr.DataTree.from_dict({"posterior": found})
    result.attrs.update(attrs)
    return result


@pytest.fixture(scope="module")
def conjugate() -> EvidenceBounds:
    pyro.set_rng_seed(0)
    return evidence(model, guide, X, reference=posterior(20_000), num_samples=200_000)


def value(bounds: EvidenceBounds, name: str, k: int = 1) -> tuple[float, float]:
    table = bounds.table
    row = table[(table["name"] == name) & (table["num_draws"] == k)].iloc[0]
    return row["value"], row["se"]


@pytest.mark.parametrize("name, expected", [("ELBO", ELBO), ("EUBO", EUBO)])
def test_closed_forms(conjugate: EvidenceBounds, name: str, expected: float) -> None:
    found, se = value(conjugate, name)
    assert abs(found - expected) < critical_value() * se


def test_chi_bound(conjugate: EvidenceBounds) -> None:
    found, se = value(conjugate, "CUBO_2", 200_000)
    assert abs(found - CUBO) < critical_value() * se


@pytest.mark.parametrize("k", [10, 100, 1000])
def test_bounds_close_in(conjugate: EvidenceBounds, k: int) -> None:
    z = critical_value()
    lower, lower_se = value(conjugate, "IW", k)
    upper, upper_se = value(conjugate, "reverse IW", k)
    assert ELBO < lower < LOG_EVIDENCE + z * lower_se
    assert LOG_EVIDENCE - z * upper_se < upper < EUBO


def test_reverse_bound_has_its_expectation() -> None:
    """K = 2 by quadrature over the posterior's and the guide's draw."""
    posterior_sd, q_sd = VARIANCE**0.5, 0.6**0.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def log_weight(z: np.ndarray) -> np.ndarray:
        log_p = -(z**2) / 2 - (1.3 - z) ** 2 - 0.5 * math.log(2 * math.pi * 0.5)
        return log_p + (z - 0.2) ** 2 / 1.2 + 0.5 * math.log(0.6)

    star = log_weight(1.3 * VARIANCE / 0.5 + posterior_sd * nodes)
    other = log_weight(0.2 + q_sd * nodes)
    expected = weights @ (np.logaddexp(star[:, None], other[None, :]) - math.log(2)) @ weights
    rng = np.random.default_rng(0)
    at_reference = log_weight(1.3 * VARIANCE / 0.5 + posterior_sd * rng.normal(size=(4, 20_000)))
    others = log_weight(0.2 + q_sd * rng.normal(size=80_000))
    values = np.logaddexp(at_reference, others.reshape(4, -1)) - math.log(2)
    row = chain_mean("reverse IW", 2, values, "")
    assert abs(row.value - expected) < critical_value() * row.se


def test_the_jackknife_is_that_of_its_groups() -> None:
    """K IW_K - (K - 1) times the mean IW_{K-1} without one of them, group by group."""
    log_w = np.random.default_rng(0).normal(size=3000)
    (row,) = [row for row in lower_rows(log_w) if row.name == "jackknife"]
    k = row.num_draws
    values = []
    for group in log_w[: len(log_w) // k * k].reshape(-1, k):
        left = [logsumexp(np.delete(group, i)) - math.log(k - 1) for i in range(k)]
        values.append(k * (logsumexp(group) - math.log(k)) - (k - 1) * np.mean(left))
    assert row.value == pytest.approx(np.mean(values))


def test_jeffreys(conjugate: EvidenceBounds) -> None:
    assert conjugate.jeffreys is not None
    error = conjugate.jeffreys.value - (EUBO - ELBO)
    assert abs(error) < critical_value() * conjugate.jeffreys.se


def test_the_sandwich_holds_the_evidence(conjugate: EvidenceBounds) -> None:
    assert conjugate.lower is not None and conjugate.upper is not None
    z = critical_value()
    assert conjugate.lower.value - z * conjugate.lower.se < LOG_EVIDENCE
    assert conjugate.upper.value + z * conjugate.upper.se > LOG_EVIDENCE
    assert conjugate.width < 0.02


def test_the_sentence_says_whether_the_bounds_are_apart(conjugate: EvidenceBounds) -> None:
    lower = Bound("IW", -2.0, 0.1)
    meet = replace(conjugate, lower=lower, upper=Bound("EUBO", -2.01, 0.1))
    assert "agree to within their error, 0.283 nats" in str(meet)
    apart = replace(conjugate, lower=lower, upper=Bound("EUBO", -1.0, 0.1))
    assert "The bounds are 1.000 nats apart" in str(apart)


def test_the_exact_posterior_leaves_no_gap() -> None:
    def exact(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x * VARIANCE / 0.5, VARIANCE**0.5))

    bounds = evidence(model, exact, X, reference=posterior(400), num_samples=1000)
    for bound in (bounds.lower, bounds.upper):
        assert bound is not None
        assert bound.value == pytest.approx(LOG_EVIDENCE, abs=1e-5)


def test_cells_close_in_where_joint_weights_do_not() -> None:
    """One global, 100 locals: log p(x) is Gaussian."""
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 1.5 * torch.randn(100, generator=generator)

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        n = len(x)
        variance = 1 / (1 + n / 2)
        mu = pyro.sample("mu", dist.Normal(variance * x.sum() / 2, variance**0.5))
        with pyro.plate("row", n):
            pyro.sample("z", dist.Normal((mu + x) / 2, 1.2))  # the posterior's sd is 0.707

    covariance = torch.full((100, 100), 1.0) + 2 * torch.eye(100)
    truth = float(dist.MultivariateNormal(torch.zeros(100), covariance).log_prob(x))
    bounds = evidence(model, guide, x, num_samples=20_000)
    cells, cells_se = value(bounds, "IW in cells", 100)
    joint, _ = value(bounds, "IW", 100)
    assert abs(cells - truth) < 0.3 + critical_value() * cells_se
    assert cells > joint + 1
    assert bounds.lower is not None and "cells" in bounds.lower.name
    assert bounds.upper is None and math.isinf(bounds.width)


def test_chi_bound_with_heavy_tails_is_not_believed() -> None:
    def narrow(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(X * VARIANCE / 0.5, 0.5 * VARIANCE**0.5))

    bounds = evidence(model, narrow, X, num_samples=20_000)
    row = bounds.table[bounds.table["name"] == "CUBO_2"].iloc[0]
    assert not row["believable"] and "k-hat" in row["reason"]
    assert bounds.upper is None


def two_modes(x: Tensor) -> None:
    modes = dist.Normal(x.new_tensor([-5.0, 5.0]), 1.0)
    pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(x.new_tensor([0.3, 0.7])), modes))


@pytest.mark.parametrize("sd", [0.9, 1.1])
def test_upper_bounds_know_of_modes_only_from_a_reference(sd: float) -> None:
    def one_mode(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x.new_tensor(5.0), sd))

    blind = evidence(two_modes, one_mode, X, num_samples=20_000)
    assert blind.upper is not None and blind.upper.value < -0.3  # log p(x) = 0
    assert "modes that the guide never draws from" in str(blind)
    draws = torch.where(torch.rand(4000) < 0.3, -5.0, 5.0) + torch.randn(4000)
    told = evidence(two_modes, one_mode, X, reference=tree(draws), num_samples=20_000)
    rows = told.table.set_index("name")
    assert not rows.loc[["CUBO_2", "PSIS", "jackknife"], "believable"].any()
    assert re.search(r"miss a region with (29|30|31)% of the reference", rows["reason"]["CUBO_2"])
    assert told.lower is not None and told.lower.value < 0
    assert told.upper is None or told.upper.value > 0
    assert "never draws" not in str(told)
    unreliable = evidence(two_modes, one_mode, X, reference=tree(draws, reliable=0))
    assert "modes that the guide never draws from" in str(unreliable)


@pytest.mark.parametrize("sd", [0.7, 0.85, 1.0, 1.3])
def test_a_guide_that_misses_nothing_is_not_doubted(sd: float) -> None:
    def overlapping(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(X * VARIANCE / 0.5, sd * VARIANCE**0.5))

    for seed in range(5):
        pyro.set_rng_seed(seed)
        bounds = evidence(model, overlapping, X, reference=posterior(2000), num_samples=5000)
        assert not bounds.table["reason"].str.contains("miss a region").any()


def test_an_unreliable_reference_is_not_believed() -> None:
    reference = tree(posterior(4000)["z"], reliable=0, reliability="not reliable: too short.")
    bounds = evidence(model, guide, X, reference=reference, num_samples=10_000)
    upper = bounds.table[bounds.table["name"].isin(["EUBO", "reverse IW"])]
    assert len(upper) and not upper["believable"].any()
    assert upper["reason"].str.contains("too short").all()


def test_sticky_chains_widen_the_error() -> None:
    rng = np.random.default_rng(0)
    independent = rng.normal(size=(4, 1000))
    sticky = np.repeat(independent[:, :100], 10, axis=1)
    plain, slow = (chain_mean("EUBO", 1, v, "") for v in (independent, sticky))
    assert 2 < slow.se / plain.se < 5  # sqrt(10) in expectation


def test_noise_is_not_taken_for_tightness() -> None:
    rng = np.random.default_rng(0)
    rows = lower_rows(rng.normal(size=20_000))
    assert {row.num_draws for row in rows if row.name == "IW"} == {10, 100, 1000}
    assert not [row for row in lower_rows(rng.normal(size=150)) if row.num_draws == 10][1:]


def test_upper_bounds_fall() -> None:
    rng = np.random.default_rng(0)
    log_q = rng.normal(-0.5, 1.0, size=200_000)  # log-weights of mean weight 1
    log_p = rng.normal(0.5, 1.0, size=(4, 2000))  # the same under the posterior
    values = [row.value for row in upper_rows(log_p, log_q, "")]
    assert values == sorted(values, reverse=True)
    assert len(values) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    bounds = evidence(model, guide, X.to(dtype), reference=posterior(400), num_samples=2000)
    assert abs(value(bounds, "ELBO")[0] - ELBO) < critical_value() * value(bounds, "ELBO")[1]


def test_a_reference_keeps_its_precision() -> None:
    """Draws in float64 that float32 could not tell apart, in a model whose data are float64."""

    def narrow(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_tensor(1e5), 1e-3))
        pyro.sample("x", dist.Normal(z, 1e-3), obs=x)

    def wide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x.new_tensor(1e5), 0.8e-3))

    x = torch.tensor(1e5, dtype=torch.float64)
    draws = 1e5 + 1e-3 * 0.5**0.5 * torch.randn(4000, dtype=torch.float64)
    bounds = evidence(narrow, wide, x, reference=tree(draws))
    ratio = 0.8**2 / 0.5  # of the variances
    assert bounds.jeffreys is not None
    error = bounds.jeffreys.value - ((ratio + 1 / ratio) / 2 - 1)
    assert abs(error) <= critical_value() * bounds.jeffreys.se


def test_subsampling() -> None:
    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x), subsample_size=5) as rows:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])

    def guide(x: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 0.5))

    bounds = evidence(model, guide, torch.zeros(20), reference={"mu": torch.zeros(100)})
    assert list(bounds.table["name"]) == ["ELBO"]
    assert "row" in bounds.notes[0] and "all data" in bounds.notes[0]


def test_errors() -> None:
    with pytest.raises(ValueError, match="at least 100"):
        evidence(model, guide, X, num_samples=10)
    with pytest.raises(ValueError, match="latent 'z'"):
        evidence(model, guide, X, reference={"y": torch.zeros(100)})

    def outside(x: Tensor) -> None:
        pyro.sample("scale", dist.Normal(0.0, 1.0))

    def positive(x: Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    with pyro.validation_enabled(False), pytest.raises(ValueError, match="not finite"):
        evidence(positive, outside, X, num_samples=200)


def test_a_point_has_no_density() -> None:
    delta = AutoDelta(model)
    delta(X)
    with pytest.raises(ValueError, match="AutoDelta"):
        evidence(model, delta, X)


@pytest.mark.parametrize("make_guide", [AutoNormal, AutoMultivariateNormal])
def test_eight_schools(make_guide: type) -> None:
    data = eight_schools.data()
    guide = make_guide(eight_schools.model, init_scale=0.5)
    objective = StandardELBO(10, vectorize_particles=True)
    fit(eight_schools.model, guide, *data, objective=objective, num_steps=1000, progress=False)
    reference = nuts(eight_schools.model, *data, progress=False)
    bounds = evidence(eight_schools.model, guide, *data, reference=reference)
    truth = float(eight_schools.exact(*data)["log_evidence"])
    z = critical_value()
    assert bounds.lower is not None and bounds.upper is not None
    assert bounds.lower.value - z * bounds.lower.se < truth
    assert truth < bounds.upper.value + z * bounds.upper.se
    assert bounds.width < 0.3


def test_plot(conjugate: EvidenceBounds) -> None:
    figure = plot_evidence(conjugate)
    whole, close = figure.axes
    assert conjugate.lower is not None and conjugate.upper is not None
    low, high = close.get_ylim()
    assert low < min(conjugate.lower.value, conjugate.upper.value)
    assert high > max(conjugate.lower.value, conjugate.upper.value)
    assert whole.get_ylim()[1] - whole.get_ylim()[0] > high - low
    assert whole.get_ylabel() == "nats"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--steps", "300", "--num-samples", "2000", "--warmup", "200", "--draws", "200"]
    folder = tmp_path / "evidence"
    assert main.main(["evidence", "models/eight_schools.py", *options, "--out", str(folder)]) == 0
    assert "log p(x) is at least" in capsys.readouterr().out
    assert sorted(p.suffix for p in folder.iterdir()) == [".csv", ".png", ".svg"]
