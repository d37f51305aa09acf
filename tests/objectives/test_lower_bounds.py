"""The loss interface of Pyro, and what the objectives refuse."""

import copy
import math
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
    init_to_feasible,
)
from pyro.nn import PyroModule, PyroParam, PyroSample

from pyro_elbo_lab.objectives.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives.bounds import log_mean_exp
from pyro_elbo_lab.objectives.lower_bounds import ImportanceWeightedELBO, StandardELBO
from pyro_elbo_lab.objectives.objective import Objective
from tests.support.tolerances import assert_mean_equals

X = torch.tensor([0.3, -1.2, 0.8, 1.9])

OBJECTIVES = {
    "standard": lambda **kw: StandardELBO(2, **kw),
    "importance-weighted": lambda **kw: ImportanceWeightedELBO(2, 2, **kw),
    "joint": lambda **kw: ImportanceWeightedELBO(3, local_plates=(), **kw),
    "analytic-kl": lambda **kw: AnalyticKLELBO(2, **kw),
}
every_objective = pytest.mark.parametrize("build", OBJECTIVES.values(), ids=OBJECTIVES)
vectorized = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])


def model(x=X):
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.deterministic("twice", 2 * z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.factor("nothing", torch.zeros(()))


def other_model(x=X):
    with pyro.plate("outer", 2), pyro.plate("inner", len(x)):
        pyro.sample("w", dist.Normal(0.0, 1.0))


@every_objective
@vectorized
def test_all_entry_points_agree(build, vectorize):
    objective = build(vectorize_particles=vectorize)
    guide = AutoNormal(model)
    guide(X)
    losses = []
    for evaluate in (
        objective.loss,
        objective.loss_and_grads,
        lambda *args: objective.differentiable_loss(*args).item(),
        lambda model, guide, x: objective(model, guide)(x).item(),
    ):
        pyro.set_rng_seed(1)
        losses.append(evaluate(model, guide, X))
    assert all(type(loss) is float for loss in losses)
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


@every_objective
def test_differentiable_loss_has_the_gradients_of_loss_and_grads(build):
    objective = build()
    guide = AutoNormal(model)
    guide(X)
    parameters = list(guide.parameters())
    pyro.set_rng_seed(1)
    objective.loss_and_grads(model, guide, X)
    expected = [p.grad.clone() for p in parameters]
    pyro.set_rng_seed(1)
    grads = torch.autograd.grad(objective.differentiable_loss(model, guide, X), parameters)
    for grad, e in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, e)
        assert e.abs().max() > 0


@every_objective
def test_loss_leaves_no_gradients(build):
    guide = AutoNormal(model)
    guide(X)
    build().loss(model, guide, X)
    assert all(p.grad is None for p in guide.parameters())


@every_objective
@vectorized
def test_svi_learns(build, vectorize):
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), build(vectorize_particles=vectorize))
    losses = torch.tensor([svi.step(X) for _ in range(200)])
    assert losses[-50:].mean() < losses[:20].mean() - losses[-50:].std() / math.sqrt(50)


def test_every_keyword_of_pyro_is_accepted():
    keywords = {
        "max_plate_nesting": 2,
        "vectorize_particles": True,
        "strict_enumeration_warning": False,
        "ignore_jit_warnings": True,
        "jit_options": {},
        "retain_graph": True,
        "tail_adaptive_beta": -0.5,
    }
    guide = AutoNormal(model)
    guide(X)
    for build in OBJECTIVES.values():
        assert math.isfinite(build(**keywords).loss_and_grads(model, guide, X))
    with pytest.warns(DeprecationWarning):
        StandardELBO(max_iarange_nesting=1)
    with pytest.raises(TypeError):
        StandardELBO(vectorized=True)


@every_objective
@vectorized
def test_one_instance_serves_many_models(build, vectorize):
    """A deeper second model, which Pyro's cached plate nesting crashes on."""
    objective = build(vectorize_particles=vectorize)
    for program in (model, other_model, model):
        guide = AutoNormal(program)
        guide(X)
        pyro.set_rng_seed(2)
        reused = objective.loss(program, guide, X)
        pyro.set_rng_seed(2)
        assert reused == build(vectorize_particles=vectorize).loss(program, guide, X)


@every_objective
def test_other_data_sizes_and_other_sites_are_noticed(build):
    def flexible(x, with_extra=False):
        if with_extra:
            pyro.sample("extra", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    objective = build(vectorize_particles=True)
    assert objective.loss(flexible, flexible, X) == 0.0
    assert objective.loss(flexible, flexible, X[:2]) == 0.0
    assert objective.loss(flexible, flexible, X, with_extra=True) == 0.0
    rows = objective.explain(flexible, flexible, X, with_extra=True).rows
    assert [row.site for row in rows] == ["extra", "z"]


@every_objective
def test_copies_and_pickles(build):
    objective = build()
    guide = AutoNormal(model)
    guide(X)
    objective.loss(model, guide, X)
    assert isinstance(copy.deepcopy(objective).loss(model, guide, X), float)
    standard = pickle.loads(pickle.dumps(StandardELBO(3)))
    assert standard.num_outer == 3 and isinstance(standard.loss(model, guide, X), float)


AUTOGUIDES = {
    "normal": AutoNormal,
    "diagonal": AutoDiagonalNormal,
    "mvn": AutoMultivariateNormal,
    "low-rank": AutoLowRankMultivariateNormal,
    "iaf": lambda m: AutoIAFNormal(m, hidden_dim=[12]),
    "laplace": AutoLaplaceApproximation,
    "delta": AutoDelta,
    "messenger": lambda m: AutoNormalMessenger(m, init_loc_fn=init_to_feasible),
    "structured": lambda m: AutoStructured(
        m,
        conditionals={"scale": "normal", "z": "mvn"},
        dependencies={"z": {"scale": "linear"}},
    ),
}


@every_objective
@vectorized
@pytest.mark.parametrize("autoguide", AUTOGUIDES.values(), ids=AUTOGUIDES)
def test_autoguides(build, autoguide, vectorize):
    guide = autoguide(model)
    guide(X)
    objective = build(vectorize_particles=vectorize)
    assert math.isfinite(objective.loss_and_grads(model, guide, X))
    grads = [p.grad for p in guide.parameters()]
    assert any(g is not None and g.abs().max() > 0 for g in grads)
    assert objective.name in str(objective.explain(model, guide, X))


def test_guide_list():
    guide = AutoGuideList(model)
    guide.append(AutoDelta(poutine.block(model, expose=["scale"])))
    guide.append(AutoNormal(poutine.block(model, expose=["z"])))
    guide(X)
    row = ImportanceWeightedELBO(3).explain(model, guide, X)["z_unconstrained"]
    assert row.place == "cells of data"
    assert math.isfinite(ImportanceWeightedELBO(3).loss_and_grads(model, guide, X))


class Net(torch.nn.Module):
    """A plain module with a Pyro program inside."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 2)

    def forward(self, x):
        loc, log_scale = self.linear(x.unsqueeze(-1)).unbind(-1)
        pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


@every_objective
def test_plain_module_guides_get_gradients(build):
    """Which Pyro's Trace_ELBO.loss_and_grads leaves without."""
    guide = Net()
    build().loss_and_grads(model, guide, X)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in guide.parameters())
    guide.zero_grad()
    build()(Net(), guide)  # an ELBOModule collects the parameters of both
    assert len(list(build()(Net(), guide).parameters())) == 4


@every_objective
def test_pyro_module_inside_the_model_trains(build):
    net = Net().linear

    def amortized(x=X):
        pyro.module("net", net)
        loc, log_scale = net(x.unsqueeze(-1)).unbind(-1)
        pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    before = net.weight.detach().clone()
    SVI(model, amortized, pyro.optim.Adam({"lr": 0.1}), build()).step(X)
    assert not torch.equal(before, net.weight)


class Regression(PyroModule):
    """A model with a learnable parameter and a latent weight."""

    def __init__(self):
        super().__init__()
        self.noise = PyroParam(torch.tensor(0.5), dist.constraints.positive)
        self.weight = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.weight * torch.ones(4), self.noise), obs=x)


@every_objective
@pytest.mark.parametrize("module_local_params", [True, False])
def test_modules_with_local_and_global_parameters(build, module_local_params):
    with pyro.settings.context(module_local_params=module_local_params):
        program = Regression()
        guide = AutoNormal(program)
        guide(X)
        module = build()(program, guide)
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        losses = []
        for _ in range(150):
            optimizer.zero_grad()
            loss = module(X)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert program.noise_unconstrained.grad.abs() > 0
        assert sum(losses[-20:]) < sum(losses[:20])
        assert bool(pyro.get_param_store().keys()) is not module_local_params


@every_objective
@vectorized
def test_auxiliary_sites_partial_observations_and_factors(build, vectorize):
    mask = torch.tensor([True, False, True, True])

    def partly(x=X):
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=mask)
        pyro.factor("bonus", torch.tensor(0.25))

    def guide(x=X):
        with pyro.plate("data", 4):
            a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            with poutine.mask(mask=~mask):
                pyro.sample("x_unobserved", dist.Delta(a))

    pyro.set_rng_seed(0)
    objective = build(vectorize_particles=vectorize)
    assert math.isfinite(objective.loss_and_grads(partly, guide))


def test_partial_observation_has_the_evidence_of_the_observed_part():
    mask = torch.tensor([True, False, True, True])

    def partly():
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=X, obs_mask=mask)

    guide = poutine.block(partly, expose=["x_unobserved", "data"])
    expected = -dist.Normal(0.0, 1.0).log_prob(X)[mask].sum().item()
    assert StandardELBO(3).loss(partly, guide) == pytest.approx(expected, rel=1e-6)


def test_deterministic_only_guide_is_map():
    guide = AutoDelta(model)
    guide(X)
    expected = Trace_ELBO().loss(model, guide, X)
    assert ImportanceWeightedELBO(3).loss(model, guide, X) == pytest.approx(expected, rel=1e-6)


# what is refused


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
@pytest.mark.parametrize("build", [StandardELBO, ImportanceWeightedELBO, AnalyticKLELBO])
def test_particle_numbers(build, number):
    with pytest.raises(ValueError, match="must be at least 1 and an integer"):
        build(number)


def test_unknown_gradient():
    with pytest.raises(ValueError, match="'reinforce' is unknown; choose one of"):
        StandardELBO(gradient="reinforce")  # type: ignore[arg-type]


@pytest.mark.parametrize("gradient", ["pathwise", "doubly_reparameterized"])
def test_reparameterized_gradient_of_a_discrete_latent(gradient):
    def coin(x=X):
        pyro.sample("coin", dist.Bernoulli(0.4))

    with pytest.raises(ValueError, match=r"'coin'.*Bernoulli.*not differentiable.*gradient='auto'"):
        StandardELBO(gradient=gradient).loss_and_grads(coin, coin)


def test_latent_missing_in_the_guide():
    with pytest.raises(ValueError, match="'scale' of the model is missing in the guide"):
        StandardELBO().loss(model, lambda x=X: None)


def test_latent_missing_in_the_model():
    def guide(x=X):
        model(x)
        pyro.sample("scael", dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match=r"'scael' of the guide is missing in the model.*'scale'"):
        StandardELBO().loss(model, poutine.block(guide, hide=["x", "nothing"]))


def test_nan_names_the_site():
    guide = AutoNormal(model)
    guide(X)
    bad = X.clone()
    bad[1] = math.nan
    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match="site 'x' of the model has 1 NaN of 4"),
    ):
        StandardELBO().loss(model, guide, bad)


def test_undeclared_batch_dimension():
    def loose(x=X):
        pyro.sample("x", dist.Normal(torch.zeros(4), 1.0), obs=x)

    with (
        pyro.validation_enabled(False),
        pytest.raises(ValueError, match=r"'x' of the model has batch shape \(4,\).*to_event"),
    ):
        StandardELBO().loss(loose, lambda x=X: None)


def test_empty_plate_names_the_plate():
    def empty():
        with pyro.plate("nobody", 0):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="nobody"):
        StandardELBO().loss(empty, empty)


def test_unknown_local_plate():
    guide = AutoNormal(model)
    guide(X)
    with pytest.raises(ValueError, match=r"names 'rows', but .* are \['data'\]"):
        ImportanceWeightedELBO(2, local_plates=("rows",)).loss(model, guide, X)


def test_plate_whose_latents_are_read_outside():
    def pooled(x=X):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z.mean(-1, keepdim=True), 1.0), obs=x[:1].squeeze())

    def guide(x=X):
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"site 'y' .* outside plate 'data' but depends on .* 'z'"):
        ImportanceWeightedELBO(2, local_plates=("data",)).loss(pooled, guide)
    assert ImportanceWeightedELBO(2).explain(pooled, guide)["z"].place == "joint weight"


def test_elements_of_a_plate_that_touch():
    """Names cannot tell; a whitened Gaussian process is written like this."""
    root = torch.linalg.cholesky(0.5 * torch.eye(4) + 0.5)

    def process(x=X):
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z @ root.T, 1.0), obs=x)

    def guide(x=X):
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="other cells depend on latent 'z'"):
        ImportanceWeightedELBO(2, local_plates=("data",)).loss(process, guide)
    with pytest.warns(UserWarning, match="joint weights"):
        assert ImportanceWeightedELBO(2).explain(process, guide)["z"].place == "joint weight"


def test_a_bound_of_your_own():
    """Five lines make a new objective."""

    def median(log_weights):
        return log_weights.median(0).values

    objective = Objective("Median", median, num_inner=5, vectorize_particles=True)
    guide = AutoNormal(model)
    guide(X)
    assert math.isfinite(objective.loss_and_grads(model, guide, X))


def test_a_bound_with_kinks_is_not_doubly_reparameterized():
    def worst(log_weights):
        return log_weights.amin(0)

    guide = AutoNormal(model)
    rows = Objective("Worst", worst, num_inner=3, local_plates=()).explain(model, guide, X)
    assert {row.gradient for row in rows.rows} == {"pathwise"}
    assert "slope jumps" in rows.rows[0].why
    forced = Objective("Worst", worst, num_inner=3, gradient="doubly_reparameterized")
    with pytest.raises(ValueError, match="a bound whose slope jumps"):
        forced.loss(model, guide, X)
    outer = Objective(
        "Outer",
        log_mean_exp,
        num_inner=2,
        num_outer=3,
        outer=worst,
        gradient="doubly_reparameterized",
    )
    with pytest.raises(ValueError, match="a bound whose slope jumps"):
        outer.loss(model, guide, X)


@pytest.mark.parametrize("gradient", ["auto", "score"])
def test_gradient_of_a_minimum(gradient):
    """The smaller of two log-weights, by the density of the minimum on a grid."""

    def flat():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        loc = pyro.param("loc", torch.tensor(0.8, dtype=torch.float64))
        pyro.sample("z", dist.Normal(loc, torch.tensor(0.6, dtype=torch.float64)))

    loc = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    noise = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    share = torch.exp(-(noise**2) / 2) / torch.exp(-(noise**2) / 2).sum()
    log_w = -((loc + 0.6 * noise) ** 2) / 2 + noise**2 / 2
    smaller = torch.minimum(log_w.unsqueeze(0), log_w.unsqueeze(1))
    (exact,) = torch.autograd.grad(-(smaller * share * share.unsqueeze(1)).sum(), loc)
    objective = Objective(
        "Worst",
        lambda log_w: log_w.amin(0),
        num_inner=2,
        num_outer=100,
        gradient=gradient,
        vectorize_particles=True,
    )
    gradients = []
    for _ in range(300):
        pyro.get_param_store().clear()
        objective.loss_and_grads(flat, guide)
        gradients.append(pyro.param("loc").grad.clone())
    assert_mean_equals(torch.stack(gradients), exact)


def test_bound_that_is_not_the_weight_itself_at_one_particle():
    def shifted(log_weights):
        return log_weights.logsumexp(0) + 1.0

    def flat():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    assert Objective("Shifted", shifted).loss(flat, flat) == -1.0


def test_exact_expectations_need_a_linear_bound():
    with pytest.raises(ValueError, match="only a linear bound"):
        Objective("Wrong", torch.amax, find_routes=lambda structure, sites: {})


def test_mixed_particles_are_warned_of_once():
    weights = torch.arange(3.0)

    def mixing(x=X):
        w = pyro.sample("w", dist.Normal(weights, 1.0).to_event(1))
        with pyro.plate("data", 4):
            pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)

    def guide(x=X):
        pyro.sample("w", dist.Normal(weights, 1.0).to_event(1))

    objective = StandardELBO(2, vectorize_particles=True)
    with pytest.warns(UserWarning, match="do not score as they do one by one"):
        objective.loss(mixing, guide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective.loss(mixing, guide)
        StandardELBO(2).loss(mixing, guide)
