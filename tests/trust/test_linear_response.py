"""Linear response gives back the covariances that a mean-field optimum leaves out."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from models import linear_regression
from pyro_elbo_lab import linear_response
from tests.trust.posteriors.optimum import mean_field


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_gaussian_posterior_is_recovered() -> None:
    """Ten correlated coefficients: mean-field sds are down to a third of the exact ones."""
    torch.set_default_dtype(torch.float64)
    args = linear_regression.data()
    exact = linear_regression.exact(*args)["covariance"]["w"].numpy()
    found = linear_response(
        linear_regression.model, mean_field(linear_regression.model, *args), *args
    )
    sd = np.sqrt(exact.diagonal())
    assert list(found["parameter"].values) == [f"w[{i}]" for i in range(len(sd))]
    assert (found["guide_sd"] < 0.7 * sd).any()
    error = (found["covariance"] - exact) / np.outer(sd, sd)
    assert float(np.abs(error).max()) < 5e-3  # of Sobol averages in place of expectations


def test_functions_of_latents_and_enumerated_sites() -> None:
    """A sum of correlated latents, and its exponential to first order; the label is summed out."""
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)

    def model() -> None:
        zero = torch.zeros(2, dtype=torch.float64)
        z = pyro.sample("z", dist.MultivariateNormal(zero, 0.01 * covariance))
        pyro.deterministic("sum", z.sum(-1))
        pyro.deterministic("exp", z.sum(-1).exp())
        pyro.deterministic("fixed", torch.tensor(3.0, dtype=torch.float64))
        even = zero.new_full((2,), 0.5)
        pyro.sample("label", dist.Categorical(even), infer={"enumerate": "parallel"})

    def guide() -> None:
        scale = pyro.param("scale", 0.1 * covariance.inverse().diagonal() ** -0.5)
        loc = pyro.param("loc", torch.zeros(2, dtype=torch.float64))
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    found = linear_response(model, guide)
    assert list(found["parameter"].values) == ["z[0]", "z[1]", "sum", "exp", "fixed"]
    sd = found["sd"]
    assert float(sd.sel(parameter="z[0]")) == pytest.approx(0.1, rel=5e-3)
    assert float(sd.sel(parameter="sum")) == pytest.approx(0.1 * 3.6**0.5, rel=5e-3)
    assert float(sd.sel(parameter="exp")) == pytest.approx(0.1 * 3.6**0.5, rel=5e-2)
    assert float(sd.sel(parameter="fixed")) == 0


def test_an_unfitted_guide_is_said_to_be() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(1.0, 1.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.warns(UserWarning, match=r"move the mean of z by 1\.00 sd"):
        linear_response(model, guide)


def test_a_parameter_that_does_nothing_is_no_optimum() -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide() -> None:
        a, b = (pyro.param(name, torch.tensor(0.0)) for name in "ab")
        pyro.sample("z", dist.Normal(a + b, 1.0))

    with pytest.raises(ValueError, match=r"no maximum at the guide's parameters \(a, b\)"):
        linear_response(model, guide)


def test_draws_without_gradients_are_refused() -> None:
    def model() -> None:
        pyro.sample("n", dist.Poisson(1.0))

    def guide() -> None:
        pyro.sample("n", dist.Poisson(pyro.param("rate", torch.tensor(1.0))))

    with pytest.raises(ValueError, match=r"latent 'n' \(Poisson\) are not"):
        linear_response(model, guide)
    with pytest.raises(ValueError, match="no parameter with a gradient"):
        linear_response(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)), _fixed)


def _fixed() -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def test_parameters_and_random_states_stay() -> None:
    def model() -> None:
        pyro.sample("z", dist.LogNormal(0.0, 0.3))

    guide = AutoNormal(model, init_scale=0.3)
    guide()
    with torch.no_grad():
        pyro.param("AutoNormal.locs.z").zero_()
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    state = torch.get_rng_state()
    found = linear_response(model, guide)
    assert float(found["sd"][0]) == pytest.approx(0.3 * np.exp(0.045), rel=0.05)
    after = dict(pyro.get_param_store().items())
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name].detach(), value, rtol=0, atol=0)
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
