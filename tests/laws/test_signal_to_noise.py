"""Signal and noise of importance-weighted gradients on the toy of Rainforth et al. (2018).

z ~ N(mu, I), x | z ~ N(z, I) in 20 dimensions, with a guide q(z | x) = N(A x + b, 2/3 I) near the
optimum A = I / 2, b = mu / 2. Rainforth et al. (2018), Tighter variational bounds are not
necessarily better: the signal-to-noise ratio of the pathwise guide gradient falls as K^-1/2;
Tucker et al. (2019): that of the doubly reparameterized one rises.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_elbo_lab.objectives import ImportanceWeightedELBO
from tests.laws import toys
from tests.laws.estimation import values_and_gradients

D = 20
PARTICLES = [1, 4, 16, 64]


def no_nodes(num_inner, num_outer, fixed):
    raise NotImplementedError


def rainforth():
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mu = randn(D)
    x = mu + math.sqrt(2) * randn(D)
    parameters = {
        "b": (mu / 2 + 0.01 * randn(D)).requires_grad_(),
        "A": (torch.eye(D, dtype=torch.float64) / 2 + 0.01 * randn(D, D)).requires_grad_(),
    }
    one = torch.ones(D, dtype=torch.float64)

    def model():
        z = pyro.sample("z", dist.Normal(mu, one).to_event(1))
        pyro.sample("x", dist.Normal(z, one).to_event(1), obs=x)

    def guide():
        loc = toys.parameter(parameters, "A") @ x + toys.parameter(parameters, "b")
        pyro.sample("z", dist.Normal(loc, math.sqrt(2 / 3) * one).to_event(1))

    return toys.Toy(model, guide, parameters, no_nodes)


def slope(ratios):
    """Of log(ratio) against log(K), by least squares."""
    k = torch.tensor(PARTICLES, dtype=torch.float64).log()
    k = k - k.mean()
    return ((k * torch.stack(ratios).log()).sum() / (k * k).sum()).item()


@pytest.fixture(scope="module")
def gradients():
    toy = rainforth()
    return {
        gradient: {
            k: values_and_gradients(
                ImportanceWeightedELBO(k, gradient=gradient, vectorize_particles=True), toy, 400
            )[1][:, :D]
            for k in PARTICLES
        }
        for gradient in ("pathwise", "doubly_reparameterized")
    }


def test_doubly_reparameterized_noise_is_a_third_of_pathwise_at_64_particles(gradients):
    noise = {name: g[64].std(0).mean() for name, g in gradients.items()}
    assert noise["doubly_reparameterized"] < noise["pathwise"] / 3


def test_signal_to_noise_falls_for_pathwise_and_rises_for_doubly_reparameterized(gradients):
    # the signal of both is the same expectation, estimated where it is least noisy
    signal = {k: gradients["doubly_reparameterized"][k].mean(0).abs() for k in PARTICLES}
    slopes = {
        name: slope([(signal[k] / by_k[k].std(0)).mean() for k in PARTICLES])
        for name, by_k in gradients.items()
    }
    assert slopes["pathwise"] < -0.1
    assert slopes["doubly_reparameterized"] > 0.1
