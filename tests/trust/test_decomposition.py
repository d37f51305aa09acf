"""The parts of the ELBO: closed forms, both identities, and what counts as prior or likelihood."""

import math
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor

from pyro_elbo_lab import Decomposition, StandardELBO, decompose, plot_decomposition
from tests.support.tolerances import critical_value

X = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
LOC, VARIANCE = 0.8, 0.3  # of the guide, which is not the posterior
NOISE = 0.5  # variance of an observation
ENUMERATE = {"enumerate": "parallel"}
TERMS = ("elbo", "log_joint", "entropy", "log_likelihood", "kl")


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, NOISE**0.5), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(x.new_tensor(LOC), VARIANCE**0.5))


def closed_form(weights: Tensor | None = None) -> dict[str, float]:
    """Of the model above, where each observation counts with a weight."""
    weights = torch.ones_like(X) if weights is None else weights.to(X)
    errors = -((X - LOC) ** 2 + VARIANCE) / (2 * NOISE) - 0.5 * math.log(2 * math.pi * NOISE)
    likelihood = float(weights @ errors)
    entropy = 0.5 * math.log(2 * math.pi * math.e * VARIANCE)
    prior = -(LOC**2 + VARIANCE) / 2 - 0.5 * math.log(2 * math.pi)
    return {
        "elbo": likelihood + prior + entropy,
        "log_joint": likelihood + prior,
        "entropy": entropy,
        "log_likelihood": likelihood,
        "kl": -prior - entropy,
    }


def assert_agrees(found: Decomposition, expected: dict[str, float]) -> None:
    for name in expected:
        term = getattr(found, name)
        assert 0 < term.se < 0.1
        limit = critical_value(len(expected), found.num_samples - 1) * term.se
        assert abs(term.value - expected[name]) < limit, name


def assert_adds_up(found: Decomposition) -> None:
    values = {name: getattr(found, name).value for name in TERMS}
    by_entropy = values["log_joint"] + values["entropy"]
    by_kl = values["log_likelihood"] - values["kl"]
    np.testing.assert_allclose([by_entropy, by_kl], values["elbo"], rtol=1e-12)


def test_closed_forms_of_a_guide_that_is_not_the_posterior() -> None:
    found = decompose(model, guide, X, num_samples=20_000)
    assert_agrees(found, closed_form())
    assert_adds_up(found)


def test_the_standard_error_is_that_of_the_mean() -> None:
    """Of the entropy: its draws have variance 1/2, whatever the guide's width."""
    found = decompose(model, guide, X, num_samples=20_000)
    assert found.entropy.se == pytest.approx(math.sqrt(0.5 / 20_000), rel=0.05)


def test_at_the_posterior_the_parts_are_noisy_and_the_elbo_is_not() -> None:
    precision = 1 + len(X) / NOISE

    def exact(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(x.sum() / NOISE / precision, precision**-0.5))

    found = decompose(model, exact, X)
    covariance = NOISE * torch.eye(3, dtype=X.dtype) + 1
    log_evidence = torch.distributions.MultivariateNormal(torch.zeros_like(X), covariance)
    assert found.elbo.value == pytest.approx(float(log_evidence.log_prob(X)), rel=1e-12)
    assert found.elbo.se < 1e-12 < 0.005 < found.entropy.se


def subsampled(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as index:
        pyro.sample("x", dist.Normal(z, NOISE**0.5), obs=x[index])


def weighted(x: Tensor) -> None:
    with poutine.scale(scale=2.5), poutine.mask(mask=x > 0):
        model(x)


def local(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(x.new_tensor(0.2), 0.4))
    with pyro.plate("data", len(x)), poutine.scale(scale=0.5):
        pyro.sample("z", dist.Normal(scale * x, 0.7))


@pytest.mark.parametrize(
    "programs",
    [
        (model, guide),
        (subsampled, guide),
        (weighted, guide),
        (weighted, poutine.scale(guide, 2.5)),
        (local, local_guide),
    ],
    ids=["plain", "subsampled", "scale and mask", "scale of both", "local latents"],
)
def test_the_elbo_is_what_the_objective_says(programs: tuple[Any, Any]) -> None:
    found = decompose(*programs, X, num_samples=50, seed=3)
    pyro.set_rng_seed(3)
    loss = StandardELBO(num_particles=50, vectorize_particles=True).loss(*programs, X)
    assert found.elbo.value == pytest.approx(-loss, rel=1e-12)
    assert_adds_up(found)


def test_scale_and_mask_fall_on_the_terms_they_are_put_on() -> None:
    @poutine.mask(mask=X > 0)
    def likelihood(z: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.scale(scale=2.5):
            pyro.sample("x", dist.Normal(z, NOISE**0.5), obs=x)

    def program(x: Tensor) -> None:
        likelihood(pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0)), x)

    found = decompose(program, guide, X, num_samples=20_000)
    assert_agrees(found, closed_form(2.5 * (X > 0)))


def test_a_subsample_keeps_the_expected_likelihood_and_the_kl() -> None:
    found = [decompose(subsampled, guide, X, num_samples=500, seed=i) for i in range(200)]
    likelihoods = np.array([one.log_likelihood.value for one in found])
    error = likelihoods.mean() - closed_form()["log_likelihood"]
    assert abs(error) < critical_value(1, 199) * likelihoods.std(ddof=1) / math.sqrt(200)
    assert_agrees(found[0], {"kl": closed_form()["kl"]})


def test_an_autoguide_pays_for_its_change_of_variables() -> None:
    """The entropy and KL of a LogNormal, drawn by AutoNormal as exp of a normal draw."""

    def positive() -> None:
        pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=torch.float64), 1.0))

    auto = AutoNormal(positive, init_scale=0.4)
    auto()
    with torch.no_grad():
        auto.locs.scale.fill_(0.7)
    found = decompose(positive, auto, num_samples=20_000)
    entropy = 0.7 + 0.5 * math.log(2 * math.pi * math.e * 0.4**2)
    kl = (0.4**2 + 0.7**2 - 1) / 2 - math.log(0.4)
    assert_agrees(found, {"entropy": entropy, "kl": kl})
    assert found.log_likelihood == (0.0, 0.0)


def test_enumerated_sites_are_summed_into_the_likelihood() -> None:
    """An observation from a mixture of N(z - 1, 1) and N(z + 1, 1) with a latent center z."""

    def mixture(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        right = pyro.sample("right", dist.Bernoulli(x.new_tensor(0.3)), infer=ENUMERATE)
        pyro.sample("x", dist.Normal(z + 2 * right - 1, 1.0), obs=x)

    found = decompose(mixture, guide, X[2], num_samples=20_000)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z = LOC + VARIANCE**0.5 * nodes
    density = 0.7 * np.exp(-((2.0 - z + 1) ** 2) / 2) + 0.3 * np.exp(-((2.0 - z - 1) ** 2) / 2)
    expected = weights @ np.log(density / math.sqrt(2 * math.pi)) / weights.sum()
    assert_agrees(found, {"log_likelihood": expected, "kl": closed_form()["kl"]})
    assert_adds_up(found)


def test_a_prior_inside_a_sum_is_refused() -> None:
    def mixture(x: Tensor) -> None:
        right = pyro.sample("right", dist.Bernoulli(x.new_tensor(0.3)), infer=ENUMERATE)
        z = pyro.sample("z", dist.Normal(2 * right - 1, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"prior of \['z'\] depends on \['right'\]"):
        decompose(mixture, guide, X[2])


def test_a_point_has_no_entropy() -> None:
    with pytest.raises(ValueError, match=r"sets \['z'\] to single values"):
        decompose(model, AutoDelta(model), X)


def test_draws_outside_the_support_are_named() -> None:
    def uniform(x: Tensor) -> None:
        pyro.sample("z", dist.Uniform(x.new_zeros(()), 1.0, validate_args=False))

    with pytest.raises(ValueError, match=r"'z' of the model .* not finite at .* of 1000 draws"):
        decompose(uniform, guide, X)


@pytest.mark.parametrize("num_samples", [0, 1])
def test_one_draw_has_no_standard_error(num_samples: int) -> None:
    with pytest.raises(ValueError, match=f"at least 2, got {num_samples}"):
        decompose(model, guide, X, num_samples=num_samples)


def test_the_seed_is_all_that_the_draws_depend_on() -> None:
    state = torch.get_rng_state()
    first = decompose(model, guide, X)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert decompose(model, guide, X) == first
    assert decompose(model, guide, X, seed=1) != first


def test_it_reads_as_one_line() -> None:
    text = str(decompose(model, guide, X))
    assert "\n" not in text
    assert text.startswith("ELBO ") and text.endswith(" nats")
    assert all(word in text for word in ("log joint", "entropy", "log likelihood", "KL"))


def parts(*values: float) -> SimpleNamespace:
    terms = zip(TERMS, values, strict=True)
    return SimpleNamespace(**{name: SimpleNamespace(value=value) for name, value in terms})


def test_the_figure_shows_all_parts_by_step() -> None:
    history = {step: parts(*range(step, step + 5)) for step in (30, 10, 20)}
    figure = plot_decomposition(history)
    steps = np.array([10, 20, 30])
    shown = [["log_likelihood", "elbo"], ["log_joint", "elbo"], ["kl"], ["entropy"]]
    for axes, names in zip(figure.axes, shown, strict=True):
        curves = [line.get_xydata() for line in axes.get_lines()][-len(names) :]
        expected = [np.stack([steps, steps + TERMS.index(name)], 1) for name in names]
        np.testing.assert_array_equal(curves, expected)
    plt.close(figure)


def test_wild_first_steps_do_not_flatten_the_figure() -> None:
    history = {i: parts(*[-1e6 if i == 0 else -float(i % 3)] * 5) for i in range(40)}
    figure = plot_decomposition(history)
    low, high = figure.axes[0].get_ylim()
    assert -3 < low < -2 and 0 < high < 1
    plt.close(figure)


def test_a_curve_needs_two_points() -> None:
    with pytest.raises(ValueError, match="1 steps"):
        plot_decomposition({0: parts(*[0.0] * 5)})
