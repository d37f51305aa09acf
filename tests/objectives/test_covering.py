"""Wake-sleep, forward KL from a reference, tails, and annealed KL terms."""

import math
import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from arviz_base import from_dict
from pyro.infer import SVI
from pyro.infer import ReweightedWakeSleep as PyroReweightedWakeSleep
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from pyro.optim import Adam

from pyro_elbo_lab import (
    AnalyticKLELBO,
    ChiUpperBound,
    ForwardKL,
    ImportanceWeightedELBO,
    ReweightedWakeSleep,
    StandardELBO,
    TailAdaptive,
    cyclical_annealing,
    linear_annealing,
)
from tests.objectives.laws import toys
from tests.objectives.laws.estimation import mean_loss, values_and_gradients
from tests.support.tolerances import assert_mean_equals, assert_means_equal

X = torch.tensor(1.3, dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)


def model(x=X):
    z = pyro.sample("z", dist.Normal(0 * ONE, ONE))
    return pyro.sample("x", dist.Normal(z, math.sqrt(0.5)), obs=x)


def guide(x=X, observations=None):
    x = x if observations is None else observations["x"]
    slope = pyro.param("slope", 0.2 * ONE)
    scale = pyro.param("scale", 0.9 * ONE, constraint=dist.constraints.positive)
    pyro.sample("z", dist.Normal(slope * x, scale))


def posterior_draws(num):
    """z | x ~ N(2 x / 3, 1 / 3)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num, generator=generator, dtype=torch.float64)
    return 2 * X / 3 + noise / math.sqrt(3)


class TestForwardKLFromAReference:
    def test_value_is_the_evidence_upper_bound(self):
        """log p(x) + KL(p || q), with equality of every draw's value at the posterior."""
        loss = ForwardKL(50, {"z": posterior_draws(200000)}, vectorize_particles=True)
        log_evidence = toys.log_normal(X, 0.0, math.sqrt(1.5))
        loc, scale = 0.2 * X, 0.9
        kl = math.log(scale * math.sqrt(3)) + (1 / 3 + (2 * X / 3 - loc) ** 2) / (2 * 0.81) - 0.5
        pyro.set_rng_seed(0)
        assert_mean_equals(mean_loss(lambda: loss.loss(model, guide), 400), log_evidence + kl)

    @pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])
    def test_gradient_is_that_of_the_forward_kl(self, vectorize):
        draws = posterior_draws(500)
        loss = ForwardKL(10, {"z": draws}, vectorize_particles=vectorize)
        pyro.set_rng_seed(0)
        loss.loss(model, guide)
        slope = pyro.get_param_store()["slope"].unconstrained()
        gradients = []
        for _ in range(300):
            slope.grad = None
            loss.loss_and_grads(model, guide)
            gradients.append(slope.grad.clone())
        expected = -((draws - 0.2 * X) / 0.81 * X).mean()  # of -log q over the draws
        assert_mean_equals(torch.stack(gradients), expected)

    def test_guide_that_draws_local_from_shared_latents(self):
        """One given value brings the particles' dimension to the distribution of the next."""
        z = posterior_draws(20)
        draws = {"g": z, "z": z[:, None] + torch.arange(3.0, dtype=torch.float64)}

        def chained(shift):
            g = pyro.sample("g", dist.Normal(shift * ONE, ONE))
            with pyro.plate("data", 3):
                pyro.sample("z", dist.Normal(g, ONE))

        values = []
        for vectorize in (True, False):
            pyro.set_rng_seed(0)
            loss = ForwardKL(5, draws, vectorize_particles=vectorize)
            values.append(loss.loss(lambda: chained(0.0), lambda: chained(1.0)))
        assert values[0] == pytest.approx(values[1])

    @pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
    def test_autoguides_match_the_moments_of_the_reference(self, autoguide):
        """In unconstrained space, where forward KL fits a Gaussian by its moments."""

        def positive_model():
            pyro.sample("a", dist.LogNormal(0 * ONE, ONE))
            with pyro.plate("items", 2):
                pyro.sample("b", dist.Normal(0 * ONE, ONE))

        rng = np.random.default_rng(0)
        log_a = rng.normal(0.5, 0.3, (2, 500))
        b = rng.normal([1.0, -1.0], [0.2, 0.6], (2, 500, 2))
        tree = xr.DataTree.from_dict(
            {
                "posterior": xr.Dataset(
                    {
                        "a": (("chain", "draw"), np.exp(log_a)),
                        "b": (("chain", "draw", "items"), b),
                    }
                )
            }
        )
        fitted = autoguide(positive_model, init_scale=0.5).double()
        loss = ForwardKL(100, tree, vectorize_particles=True)
        svi = SVI(positive_model, fitted, Adam({"lr": 0.02}), loss=loss)
        for _ in range(500):
            svi.step()
        quantiles = fitted.quantiles([0.1587, 0.5, 0.8413])
        assert quantiles["a"][1].log().item() == pytest.approx(log_a.mean(), abs=0.05)
        sds = (quantiles["b"][2] - quantiles["b"][0]).flatten() / 2
        np.testing.assert_allclose(sds.detach(), b.reshape(-1, 2).std(0), rtol=0.15)

    def test_errors_name_the_latent(self):
        with pytest.raises(ValueError, match=r"guide's latent 'z'\s*does not follow"):
            ForwardKL(2, {"y": posterior_draws(5)}).loss(model, guide)
        toy = toys.local(num_data=5, subsample_size=2)
        reference = {"z": torch.zeros(10, 5, dtype=torch.float64)}
        with pytest.raises(ValueError, match="Latent 'z' was given a value of shape"):
            ForwardKL(2, reference).loss(toy.model, toy.guide)

    def test_autoregressive_flows_are_refused(self):
        def two():
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

        flow = AutoIAFNormal(two)
        with pytest.raises(ValueError, match="only at its own last draw"):
            ForwardKL(2, {"z": torch.zeros(10, 2)}).loss(two, flow)


class TestSleep:
    def test_gradient_is_that_of_dreams(self):
        """slope: E over (z, x) of the model of d log q(z | x), with E[x z] = 1 and E[x^2] = 3/2."""
        loss = ReweightedWakeSleep(2, insomnia=0.0, num_dreams=50)
        pyro.set_rng_seed(0)
        loss.loss(model, guide)
        slope = pyro.get_param_store()["slope"].unconstrained()
        gradients = []
        for _ in range(200):
            slope.grad = None
            loss.loss_and_grads(model, guide)
            gradients.append(-slope.grad.clone())
        assert_mean_equals(torch.stack(gradients), (1 - 0.2 * 1.5) / 0.81)

    def test_one_particle_without_wake_is_wake_sleep(self):
        """The prior mean follows the ELBO, E_q[z] - shift, and the guide's slope the dreams."""
        shift = 0.3

        def learning():
            z = pyro.sample("z", dist.Normal(pyro.param("shift", shift * ONE), ONE))
            pyro.sample("x", dist.Normal(z, math.sqrt(0.5)), obs=X)

        loss = ReweightedWakeSleep(1, insomnia=0.0)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss.loss(learning, guide)
        parameters = [pyro.get_param_store()[name].unconstrained() for name in ("shift", "slope")]
        gradients = []
        for _ in range(1000):
            for parameter in parameters:
                parameter.grad = None
            loss.loss_and_grads(learning, guide)
            gradients.append(-torch.stack([parameter.grad for parameter in parameters]))
        of_shift, of_slope = torch.stack(gradients).T
        assert_mean_equals(of_shift, 0.2 * X - shift)
        assert_mean_equals(of_slope, (1 + shift**2 - 0.2 * (1.5 + shift**2)) / 0.81)

    def test_insomnia_mixes_wake_and_sleep(self):
        def gradient(insomnia, num=3000):
            loss = ReweightedWakeSleep(3, "wake", insomnia, vectorize_particles=True)
            pyro.clear_param_store()
            pyro.set_rng_seed(round(100 * insomnia))
            loss.loss(model, guide)
            slope = pyro.get_param_store()["slope"].unconstrained()
            samples = []
            for _ in range(num):
                slope.grad = None
                loss.loss_and_grads(model, guide)
                samples.append(slope.grad.clone())
            return torch.stack(samples)

        wake, sleep, both = gradient(1.0), gradient(0.0), gradient(0.25)
        assert_means_equal(both, 0.25 * wake + 0.75 * sleep)

    def test_wake_equals_pyros_under_the_same_seed(self):
        grads = []
        for loss in (
            ReweightedWakeSleep(5, "wake", vectorize_particles=True),
            PyroReweightedWakeSleep(5, max_plate_nesting=0, vectorize_particles=True),
        ):
            pyro.clear_param_store()
            pyro.set_rng_seed(1)
            guide()
            loss.loss_and_grads(model, guide)
            pyro.set_rng_seed(2)
            store = pyro.get_param_store()
            parameters = [store[name].unconstrained() for name in ("slope", "scale")]
            for p in parameters:
                p.grad = None
            loss.loss_and_grads(model, guide)
            grads.append(torch.stack([p.grad for p in parameters]))
        torch.testing.assert_close(grads[0], grads[1])

    def test_guides_that_cannot_dream_are_refused(self):
        def deaf():
            pyro.sample("z", dist.Normal(0 * ONE, ONE))

        loss = ReweightedWakeSleep(2, insomnia=0.5)
        with pytest.raises(ValueError, match="keyword argument `observations`"):
            loss.loss_and_grads(model, deaf)
        with pytest.raises(ValueError, match="draws 'z_unconstrained', which the model has not"):
            loss.loss_and_grads(model, AutoNormal(model))


def test_tail_adaptive_covers_more_than_the_elbo():
    """A Gaussian on a Student t: wider than the ELBO's fit."""

    def heavy():
        pyro.sample("z", dist.StudentT(3 * ONE, 0 * ONE, ONE))

    def fitted(loss):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        auto = AutoNormal(heavy, init_scale=1.0)
        svi = SVI(heavy, auto, Adam({"lr": 0.01}), loss=loss)
        return torch.stack(
            [auto.scales.z.detach().clone() for _ in range(600) if svi.step() is not None][300:]
        ).mean()

    elbo = fitted(StandardELBO(64, vectorize_particles=True))
    tail = fitted(TailAdaptive(64, vectorize_particles=True))
    assert tail > 1.15 * elbo


def test_discrete_latents_under_tail_adaptive_are_refused():
    toy = toys.discrete(plate=True)
    with pytest.raises(ValueError, match="'z', which needs the score"):
        TailAdaptive(2).loss(toy.model, toy.guide)


class TestAnnealing:
    @pytest.mark.parametrize("build", [StandardELBO, AnalyticKLELBO])
    def test_weight_scales_latents_and_not_data(self, build):
        """Value and gradient are those of poutine.scale on the latent alone."""
        pyro.set_rng_seed(0)
        loss = build(4, kl_weight=0.3, vectorize_particles=True)

        def scaled_model():
            with pyro.poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Normal(0 * ONE, ONE))
            pyro.sample("x", dist.Normal(z, math.sqrt(0.5)), obs=X)

        results = []
        for one, programs in (
            (loss, (model, guide)),
            (
                build(4, vectorize_particles=True),
                (scaled_model, pyro.poutine.scale(guide, scale=0.3)),
            ),
        ):
            pyro.clear_param_store()
            pyro.set_rng_seed(1)
            one.loss(*programs)
            pyro.set_rng_seed(2)
            store = pyro.get_param_store()
            parameters = [store[name].unconstrained() for name in ("slope", "scale")]
            value = one.loss_and_grads(*programs)
            results.append([value, *(p.grad.item() for p in parameters)])
        assert results[0] == pytest.approx(results[1], rel=1e-12)

    def test_schedule_counts_gradients(self):
        """Without weight the analytic loss has no KL term, with full weight all of it."""
        loss = AnalyticKLELBO(kl_weight=linear_annealing(2))

        def flat():
            pyro.sample("z", dist.Normal(0 * ONE, ONE))

        def off():
            pyro.sample("z", dist.Normal(pyro.param("loc", ONE.clone()), ONE))  # KL = 1/2

        losses = [loss.loss_and_grads(flat, off) for _ in range(4)]
        assert losses == pytest.approx([0.0, 0.25, 0.5, 0.5])
        assert loss.loss(flat, off) == pytest.approx(0.5)

    def test_full_weight_changes_nothing(self):
        toy = toys.hierarchical(num_data=2)
        loss = ImportanceWeightedELBO(2, 30, kl_weight=1.0, vectorize_particles=True)
        annealed = ImportanceWeightedELBO(
            2, 30, kl_weight=cyclical_annealing(2, start=1.0), vectorize_particles=True
        )
        plain, same = (values_and_gradients(o, toy, 5) for o in (loss, annealed))
        torch.testing.assert_close(plain, same)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ChiUpperBound(10, n=1.0), "n must be a number above 1"),
        (lambda: ForwardKL(2, {}, gradient="wake"), "leave no choice"),
        (lambda: ReweightedWakeSleep(1), "at least 2"),
        (lambda: ReweightedWakeSleep(1, insomnia=0.5), "at least 2"),
        (lambda: ReweightedWakeSleep(2, insomnia=1.5), "insomnia must be .* got 1.5"),
        (lambda: ReweightedWakeSleep(2, gradient="score"), "gradient='score' is unknown"),
        (lambda: ForwardKL(1), "at least 2"),
        (lambda: TailAdaptive(2, beta=0.5), "beta must be .* got 0.5"),
    ],
)
def test_illegal_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("make_guide", [AutoNormal, AutoMultivariateNormal])
def test_a_reference_is_read_in_the_models_own_dtype(make_guide: Any) -> None:
    """A DataTree of float32 draws for a model in float64, and the other way round."""
    for theirs, own in ((np.float32, torch.float64), (np.float64, torch.float32)):
        values = np.random.default_rng(0).exponential(size=(2, 50)).astype(theirs)
        tree = from_dict({"posterior": {"z": values}})

        def model(like: torch.Tensor) -> None:
            pyro.sample("z", dist.Exponential(like))

        pyro.clear_param_store()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss = ForwardKL(4, reference=tree).differentiable_loss(
                model, make_guide(model), torch.ones((), dtype=own)
            )
        assert loss.dtype == own
