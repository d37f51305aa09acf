"""Sobol points: their law, what they do for values and gradients, and what they refuse."""

import math
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)

from pyro_elbo_lab.objectives.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives.bounds import mean
from pyro_elbo_lab.objectives.lower_bounds import ImportanceWeightedELBO, StandardELBO
from pyro_elbo_lab.objectives.objective import Objective
from pyro_elbo_lab.objectives.particles.layout import lay_out
from pyro_elbo_lab.objectives.particles.sampling import Drawing, draw
from pyro_elbo_lab.objectives.particles.sobol import (
    MAX_DIMENSIONS,
    Nets,
    Placement,
    scrambled_sobol,
)
from pyro_elbo_lab.objectives.planning import make_plan
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.structure.analysis import analyze
from pyro_elbo_lab.programs.structure.factors import FactorKey
from tests.objectives.laws import exact, toys
from tests.objectives.laws.estimation import guide_gradients, mean_loss, values_and_gradients
from tests.support.tolerances import assert_mean_equals, critical_value

vectorized = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])
X = torch.tensor([0.3, -1.2, 0.8, 1.9])
NONE = frozenset[str]()
Z_ALONE = Placement(frozenset({"z"}), NONE, NONE)


def model(x=X):
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(g, scale))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x=X):
    g = pyro.sample("g", dist.Normal(0.3, 0.9))
    pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * g, 1.0))


def number(guide_distribution, model_distribution=None):
    """A model of one number z and one observation, and a guide for it."""

    def one_number():
        z = pyro.sample("z", model_distribution or guide_distribution)
        pyro.sample("x", dist.Normal(z.reshape(z.shape[:1]), 1.0), obs=torch.tensor(0.4))

    def its_guide():
        pyro.sample("z", guide_distribution)

    return one_number, its_guide


# The points


@pytest.mark.parametrize("num_points", [1, 2, 5, 8, 100])
def test_each_point_is_uniform(num_points):
    num_dims = 3
    u = scrambled_sobol(num_points, 20000, 4, num_dims).movedim(1, 0)
    assert u.dtype == torch.float64 and u.min() > 0 and u.max() < 1
    assert_mean_equals(u, 1 / 2)
    assert_mean_equals((u - 1 / 2) ** 2, 1 / 12)
    centered = u - 1 / 2
    assert_mean_equals(centered * centered.roll(1, dims=-1), 0.0)


def test_each_net_fills_space():
    strata = (16 * scrambled_sobol(16, 5, 0, 40)).floor().sort(0).values
    assert (strata == torch.arange(16.0)[:, None, None]).all()
    squares = (4 * scrambled_sobol(16, 5, 0, 2)).floor()
    assert all(len(torch.unique(squares[:, net], dim=0)) == 16 for net in range(5))


def test_nets_are_independent():
    u = scrambled_sobol(4, 2, 0, 500)
    assert not (u[:, 0] == u[:, 1]).any()
    assert_mean_equals((u[:, 0] - 1 / 2) * (u[:, 1] - 1 / 2), 0.0, axis=1)


def test_scrambles_differ_in_all_digits():
    """Also in those that no point of a small net has: 52 digits, not the 30 of torch's."""
    digits = scrambled_sobol(4, 1000, 0, 1) * 2**52
    for digit in range(40):
        assert_mean_equals((digits[1, :, 0] / 2**digit).floor() % 2, 1 / 2)


def draws(vectorize, num_inner, num_outer, x=X, num_evaluations=1, inner=frozenset({"z"})):
    """Draws of the standard normal noise of g, log scale and z, (N, K, M, 2 + len(x))."""
    pair = Pair(model, guide, (x,))
    structure, *_ = analyze(pair)
    local = frozenset({"z"} if num_inner > 1 else {})
    inner = inner & local
    noise = []
    for _ in range(num_evaluations):
        how = Drawing(
            structure,
            lay_out(structure, "auto"),
            num_inner=num_inner,
            num_outer=num_outer,
            vectorize=vectorize,
            sobol=Placement(frozenset({"g", "scale", "z"}) - inner, inner, local),
        )
        particles = draw(pair, how)
        values = {}
        for name in structure.latents:
            sites = [run.sites[FactorKey("guide", name)]["value"] for run in particles.runs]
            value = sites[0] if vectorize else torch.stack(sites)
            values[name] = value.reshape(num_inner * num_outer, -1)
        g, scale, z = values["g"], values["scale"], values["z"]
        standard = [(g - 0.3) / 0.9, scale.log() / 0.5, z - 0.5 * g]
        noise.append(torch.cat(standard, -1).reshape(num_inner, num_outer, -1))
    return torch.stack(noise)


def assert_one_in_each_stratum(noise):
    """(N, D), N points, one in each N-th of every dimension."""
    num = len(noise)
    strata = (num * torch.special.ndtr(noise.double())).floor()
    assert (strata.sort(0).values == torch.arange(num, dtype=strata.dtype)[:, None]).all()


@vectorized
def test_all_latents_of_outer_particles_share_one_net(vectorize):
    (noise,) = draws(vectorize, 1, 8)
    assert_one_in_each_stratum(noise[0])
    assert len(noise.unique()) == 8 * 6


@vectorized
def test_local_latents_may_have_a_net_for_each_outer_particle(vectorize):
    (noise,) = draws(vectorize, 8, 4)
    assert (noise[:, :, :2] == noise[:1, :, :2]).all()
    assert_one_in_each_stratum(noise[0, :, :2])
    for outer in range(4):
        assert_one_in_each_stratum(noise[:, outer, 2:])
    assert len(noise[:, :, 2:].unique()) == 8 * 4 * 4


@vectorized
def test_inner_particles_may_be_dimensions_of_the_net_of_the_outer_ones(vectorize):
    (noise,) = draws(vectorize, 3, 8, inner=NONE)
    assert (noise[:, :, :2] == noise[:1, :, :2]).all()
    assert_one_in_each_stratum(noise[0, :, :2])
    for inner in range(3):
        assert_one_in_each_stratum(noise[inner, :, 2:])
    assert len(noise[:, :, 2:].unique()) == 3 * 8 * 4


@vectorized
def test_inner_particles_are_then_independent(vectorize):
    noise = draws(vectorize, 2, 2, num_evaluations=3000 if vectorize else 600, inner=NONE)
    assert_mean_equals(noise[:, 0, :, 2:] * noise[:, 1, :, 2:], 0.0)
    assert_mean_equals(noise[:, 0, :, 2:] ** 2 * noise[:, 1, :, 2:] ** 2, 1.0)


@vectorized
def test_each_draw_has_the_distribution_of_the_guide(vectorize):
    noise = draws(vectorize, 3, 2, num_evaluations=3000 if vectorize else 600)
    assert_mean_equals(noise, 0.0)
    assert_mean_equals(noise**2, 1.0)
    assert_mean_equals(noise * noise.roll(1, dims=-1), 0.0)
    local = noise[:, :, :, 2:]
    assert_mean_equals(local[:, :, 0] * local[:, :, 1], 0.0)  # outer particles: independent nets


def test_draws_stay_finite_and_in_dtype():
    class Worst(Nets):
        def _draw(self, name, num_dims, device):
            tiny = torch.tensor([0.5, 2**52 - 0.5], dtype=torch.float64) / 2**52
            return torch.special.ndtri(tiny)[:, None]

    for dtype in (torch.float16, torch.float32, torch.float64):
        nets = Worst(Z_ALONE, 1, 2)
        with nets.all_particles():
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=dtype), 1.0))
        assert z.dtype == dtype and z.isfinite().all() and z.abs().min() > 8


def test_device_and_dtype(dtype, device):
    toy = toys.hierarchical(dtype=dtype, device=device)
    loss = StandardELBO(4, sampler="sobol").differentiable_loss(toy.model, toy.guide)
    assert loss.dtype == dtype and loss.device.type == device.type and loss.isfinite()


# Laws: the exact expectations


def paired_normal(num_nodes, num_dims, pairs, like):
    """Expectations over N(0, I) where the two of a pair lie on opposite sides of 0, and else are
    independent: the law of the two points of a scrambled net, a dimension of each."""
    x, w = np.polynomial.legendre.leggauss(num_nodes)
    half, half_weight = 4 * (x + 1), 4 * w * np.sqrt(2 / np.pi) * np.exp(-8 * (x + 1) ** 2)
    side = np.repeat([1.0, -1.0], num_nodes**2)
    first, second = (np.tile(g.ravel(), 2) for g in np.meshgrid(half, half))
    pair_weight = np.tile(np.outer(half_weight, half_weight).ravel(), 2) / 2
    full, full_weight = np.polynomial.hermite_e.hermegauss(40)
    paired = {d for pair in pairs for d in pair}
    blocks = [
        ([d], [full], full_weight / full_weight.sum()) for d in range(num_dims) if d not in paired
    ]
    blocks += [(list(pair), [side * first, -side * second], pair_weight) for pair in pairs]
    nodes: dict[int, np.ndarray] = {}
    weight = np.ones(1)
    for dims, own, own_weight in blocks:
        nodes = {d: np.repeat(n, len(own_weight)) for d, n in nodes.items()}
        nodes |= {d: np.tile(n, len(weight)) for d, n in zip(dims, own, strict=True)}
        weight = np.outer(weight, own_weight).ravel()
    tensor = partial(torch.as_tensor, dtype=like.dtype, device=like.device)
    return [tensor(nodes[d]) for d in range(num_dims)], tensor(weight)


def assert_unbiased(objective, toy, num_evaluations, num_particles=1):
    values, gradients = values_and_gradients(objective, toy, num_evaluations)
    expected = exact.of_bound(exact.importance)(toy, num_particles, 1)
    assert_mean_equals(values, expected.value)
    assert_mean_equals(gradients, expected.gradient)


GRADIENTS = ["pathwise", "doubly_reparameterized", "auto"]
TOYS = {
    "full data": {},
    "float32": {"dtype": torch.float32},
    "subsampled": {"num_data": 5, "subsample_size": 2},
    "scaled": {"guide_scale": 0.4, "model_mask": [True, False, True]},
}
each_toy = pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)


@each_toy
@pytest.mark.parametrize("gradient", GRADIENTS)
@vectorized
def test_elbo_is_unbiased(toy, gradient, vectorize):
    objective = StandardELBO(8, gradient=gradient, sampler="sobol", vectorize_particles=vectorize)
    assert_unbiased(objective, toys.hierarchical(**toy), 400 if vectorize else 60)


@pytest.mark.parametrize("num_particles", [1, 7])
@pytest.mark.filterwarnings("ignore:sampler='sobol' has no effect")
def test_elbo_is_unbiased_for_any_number_of_particles(num_particles):
    objective = StandardELBO(num_particles, sampler="sobol", vectorize_particles=True)
    assert_unbiased(objective, toys.hierarchical(), 500)


@each_toy
def test_analytic_kl_is_unbiased(toy):
    objective = AnalyticKLELBO(8, sampler="sobol", vectorize_particles=True)
    assert_unbiased(objective, toys.hierarchical(**toy), 400)


@each_toy
@pytest.mark.parametrize("gradient", ["doubly_reparameterized", "auto"])
@vectorized
def test_importance_weighted_bound_of_independent_inner_particles(toy, gradient, vectorize):
    objective = ImportanceWeightedELBO(
        2, 8, gradient=gradient, sampler="sobol", vectorize_particles=vectorize
    )
    assert_unbiased(objective, toys.hierarchical(**toy), 400 if vectorize else 60, 2)


@each_toy
@vectorized
def test_importance_weighted_bound_of_two_points(toy, vectorize, monkeypatch):
    """Exact, by the law of two points."""
    monkeypatch.setattr(toys, "normal", lambda dims, like: paired_normal(20, dims, [(1, 2)], like))
    objective = ImportanceWeightedELBO(
        2, 8, gradient="pathwise", sampler="sobol", vectorize_particles=vectorize
    )
    assert_unbiased(objective, toys.hierarchical(**toy), 400 if vectorize else 60, 2)


def test_joint_weights(monkeypatch):
    toy = toys.hierarchical(num_data=1, joint=True)
    joint = partial(
        ImportanceWeightedELBO, 2, 30, sampler="sobol", local_plates=(), vectorize_particles=True
    )
    assert_unbiased(joint(), toy, 300, 2)
    monkeypatch.setattr(
        toys, "normal", lambda dims, like: paired_normal(16, dims, [(0, 1), (2, 3)], like)
    )
    assert_unbiased(joint(gradient="pathwise"), toy, 300, 2)


def test_discrete_latents_keep_the_score(monkeypatch):
    """Their draws are independent given the Gaussian noise. Beside them, the others are pathwise:
    their inner particles are points of one net."""
    objective = StandardELBO(30, sampler="sobol", vectorize_particles=True)
    assert_unbiased(objective, toys.mixed(local=True), 400)
    monkeypatch.setattr(
        toys, "normal", lambda dims, like: paired_normal(14, dims, [(0, 2), (1, 3)], like)
    )
    objective = ImportanceWeightedELBO(2, 30, sampler="sobol", vectorize_particles=True)
    assert_unbiased(objective, toys.mixed(local=True), 400, 2)


def test_quadrature_of_two_points_has_converged(monkeypatch):
    """To a hundredth of the smallest standard error in this file."""
    toy, gradients = toys.hierarchical(num_data=1, joint=True), []
    for nodes in (16, 20):
        law = partial(paired_normal, nodes)
        monkeypatch.setattr(toys, "normal", lambda d, like, law=law: law(d, [(0, 1), (2, 3)], like))
        gradients.append(exact.of_bound(exact.importance)(toy, 2, 1).gradient)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-5)


# What they are for


def conjugate():
    """x = 1.3, of variance 1/2 around z ~ N(0, 1), and q of mean 0.2 and variance 0.6:
    log p(x) = -1.685004, ELBO = -2.457778."""

    def conjugate_model():
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5**0.5), obs=torch.tensor(1.3, dtype=torch.float64))

    def conjugate_guide():
        loc = pyro.param("loc", torch.tensor(0.2, dtype=torch.float64))
        log_scale = pyro.param("log_scale", torch.tensor(math.log(0.6) / 2, dtype=torch.float64))
        pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    return conjugate_model, conjugate_guide


def conjugate_values(sampler, num_particles):
    objective = ImportanceWeightedELBO(
        num_particles, 50, gradient="pathwise", sampler=sampler, vectorize_particles=True
    )
    return -mean_loss(partial(objective.loss, *conjugate()), 200)


@pytest.mark.parametrize("num_particles", [2, 3, 8, 32])
def test_importance_weighted_value_lies_between_elbo_and_evidence(num_particles):
    """Of 32 points it is 1e-4 from the evidence: not above it is all that can be told apart."""
    values = conjugate_values("sobol", num_particles)
    error = critical_value(2, len(values) - 1) * values.std() / len(values) ** 0.5
    assert values.mean() - error > -2.457778
    assert values.mean() - error < -1.685004
    assert num_particles > 3 or values.mean() + error < -1.685004


@pytest.mark.parametrize("num_particles", [2, 8, 32])
def test_points_of_a_net_make_the_bound_tighter(num_particles):
    random, sobol = (conjugate_values(s, num_particles) for s in ("random", "sobol"))
    error = (random.var() / len(random) + sobol.var() / len(sobol)).sqrt()
    assert sobol.mean() - random.mean() > critical_value(1, len(random) - 1) * error


def test_mean_weight_is_unbiased_for_the_evidence():
    """This is why its logarithm is a lower bound."""
    objective = ImportanceWeightedELBO(
        8, gradient="pathwise", sampler="sobol", vectorize_particles=True
    )
    log_weights = -mean_loss(partial(objective.loss, *conjugate()), 2000)
    assert_mean_equals(log_weights.exp(), math.exp(-1.685004))


def test_pathwise_gradient_is_the_slope_of_the_value():
    """By finite differences with the same points."""
    pair = conjugate()
    objective = ImportanceWeightedELBO(
        8, 4, gradient="pathwise", sampler="sobol", vectorize_particles=True
    )
    objective.loss(*pair)
    store = pyro.get_param_store()
    parameters = [store[name].unconstrained() for name in ("loc", "log_scale")]
    for seed in range(5):
        pyro.set_rng_seed(seed)
        loss = objective.differentiable_loss(*pair)
        for p, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            losses = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    p += step
                    pyro.set_rng_seed(seed)
                    losses.append(objective.loss(*pair))
                    p -= step
            slope = torch.tensor((losses[0] - losses[1]) / 2e-5, dtype=p.dtype)
            torch.testing.assert_close(grad, slope, rtol=1e-6, atol=1e-6)


def total_variance(objective, toy, num_evaluations=200):
    return values_and_gradients(objective, toy, num_evaluations)[1].var(0).sum().item()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_gradient_noise_of_the_elbo(gradient):
    noise = {
        sampler: total_variance(
            StandardELBO(64, gradient=gradient, sampler=sampler, vectorize_particles=True),
            toys.hierarchical(),
        )
        for sampler in ("random", "sobol")
    }
    assert noise["sobol"] < noise["random"] / 10


def _no_nodes(num_inner, num_outer, fixed):
    raise NotImplementedError


def local_toy():
    """Three numbers with x_i ~ N(z_i, 0.7), and a guide around their posterior, somewhat wider."""
    x = torch.linspace(-1.0, 2.0, 3, dtype=torch.float64)
    scale = (1 / (1 + 1 / 0.49)) ** 0.5
    parameters = {
        "loc": x * scale**2 / 0.49 + 0.5 * scale,
        "log_scale": torch.tensor(math.log(1.3 * scale), dtype=torch.float64),
    }

    def local_model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), x.new_ones(())))
            pyro.sample("x", dist.Normal(z, 0.7), obs=x)

    def local_guide():
        loc, log_scale = (toys.parameter(parameters, name) for name in parameters)
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    return toys.Toy(local_model, local_guide, parameters, _no_nodes)


@pytest.mark.parametrize(
    ("num_inner", "num_outer", "gradient"), [(64, 1, "pathwise"), (64, 16, "auto"), (2, 32, "auto")]
)
def test_gradient_noise_of_the_importance_weighted_bound(num_inner, num_outer, gradient):
    noise = {
        sampler: total_variance(
            ImportanceWeightedELBO(
                num_inner, num_outer, gradient, sampler=sampler, vectorize_particles=True
            ),
            local_toy(),
        )
        for sampler in ("random", "sobol")
    }
    assert noise["sobol"] < noise["random"] / 3


AUTOGUIDES = [
    AutoNormal,
    AutoMultivariateNormal,
    AutoLowRankMultivariateNormal,
    AutoIAFNormal,
    AutoStructured,
    AutoNormalMessenger,
]
each_autoguide = pytest.mark.parametrize("autoguide", AUTOGUIDES, ids=lambda a: a.__name__)


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
def test_autoguides_improve(autoguide):
    fitted = autoguide(model, init_scale=0.5)
    fitted()
    noise = {}
    for sampler in ("random", "sobol"):
        objective = StandardELBO(64, sampler=sampler, vectorize_particles=True)
        noise[sampler] = guide_gradients(objective, model, fitted, 200).var(0).sum()
    assert noise["sobol"] < noise["random"] / 3


@each_autoguide
@pytest.mark.parametrize("num_inner", [1, 4])
@pytest.mark.parametrize("gradient", ["auto", "pathwise"])
def test_sequential_particles_are_the_vectorized_ones(autoguide, num_inner, gradient):
    fitted = autoguide(model)
    losses = []
    for vectorize in (True, False):
        objective = ImportanceWeightedELBO(
            num_inner, 4, gradient, sampler="sobol", vectorize_particles=vectorize
        )
        objective.loss(model, fitted)
        pyro.set_rng_seed(1)
        losses.append(torch.tensor(objective.loss(model, fitted)))
    torch.testing.assert_close(*losses)


# What they leave alone


@vectorized
def test_reproducible_and_fresh_at_every_evaluation(vectorize):
    objective = StandardELBO(4, sampler="sobol", vectorize_particles=vectorize)
    objective.loss(model, guide)
    runs = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        runs.append([objective.loss(model, guide) for _ in range(3)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 3


@vectorized
def test_other_randomness_of_the_guide_is_untouched(vectorize):
    seen = []

    def noisy():
        seen.append(torch.empty(4).normal_())
        seen.append(torch.nn.functional.dropout(torch.ones(20)))
        pyro.sample("z", dist.Normal(0.0, 1.0))

    objective = StandardELBO(2, sampler="sobol", vectorize_particles=vectorize)
    one_number, _ = number(dist.Normal(0.0, 1.0))
    make_plan(objective._settings, Pair(one_number, noisy))
    seen.clear()
    pyro.set_rng_seed(5)
    objective.loss(one_number, noisy)
    pyro.set_rng_seed(5)
    torch.testing.assert_close(seen[0], torch.empty(4).normal_())
    torch.testing.assert_close(seen[1], torch.nn.functional.dropout(torch.ones(20)))


def test_noise_that_is_not_gaussian_stays_random():
    def mixed_guide():
        pyro.sample("a", dist.Gamma(2.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("c", dist.Bernoulli(0.5))

    objective = StandardELBO(4, sampler="sobol")
    table = objective.explain(mixed_guide, mixed_guide)
    assert table.notes[-1].endswith("for the Gaussian noise of b")
    assert table["c"].gradient == "score"
    assert objective.loss(mixed_guide, mixed_guide) == pytest.approx(0.0, abs=1e-6)


def test_random_sampler_says_nothing_of_points():
    assert not any("Sobol" in note for note in StandardELBO(4).explain(model, guide).notes)


def test_batches_may_change_their_size():
    objective = ImportanceWeightedELBO(4, 2, sampler="sobol", vectorize_particles=True)
    for size in (3, 40, 2):
        loss = objective.loss(model, guide, torch.linspace(-1.0, 1.0, size))
        assert math.isfinite(loss)
    for size in (3, 40, 2):
        (noise,) = draws(True, 8, 1, x=torch.linspace(-1.0, 1.0, size))
        assert_one_in_each_stratum(noise[:, 0, 2:])


def test_what_explain_shows():
    outer = "Sobol points: one net over the outer particles, for the Gaussian noise of "
    inner = (
        "Sobol points: a net over the inner particles of each outer one, for the Gaussian noise "
    )
    table = ImportanceWeightedELBO(4, 2, sampler="sobol").explain(model, guide)
    assert table.notes[1:] == (outer + "g, scale, z",)
    assert table["z"].gradient == "doubly reparameterized"
    table = ImportanceWeightedELBO(4, 2, "pathwise", sampler="sobol").explain(model, guide)
    assert table.notes[1:] == (outer + "g, scale", inner + "of z")
    for objective in (partial(StandardELBO, 4), partial(ImportanceWeightedELBO, 1, 4)):
        for gradient in ("auto", "pathwise"):
            table = objective(gradient=gradient, sampler="sobol").explain(model, guide)
            assert table.notes[1:] == (outer + "g, scale, z",)


def test_shared_particles_of_a_linear_bound_need_no_independence():
    objective = Objective("four", mean, num_inner=4, num_outer=2, sampler="sobol")
    assert objective.explain(model, guide)["z"].gradient == "doubly reparameterized"


# What they refuse


def test_unknown_sampler():
    with pytest.raises(ValueError, match=r"sampler='halton' is unknown; choose one of \('random'"):
        StandardELBO(2, sampler="halton")


def test_guides_without_gaussian_noise():
    gamma, its_guide = number(dist.Gamma(2.0, 1.0))
    expected = r"no reparameterized Normal noise in guide its_guide, whose.*'z' \(Gamma\).*random"
    with pytest.raises(ValueError, match=expected):
        StandardELBO(2, sampler="sobol").loss(gamma, its_guide)
    fixed, its_guide = number(dist.Delta(torch.tensor(1.0)), dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="whose random draws are none"):
        StandardELBO(2, sampler="sobol").loss(fixed, its_guide)


@pytest.mark.parametrize(
    "objective",
    [
        partial(StandardELBO, 4),
        partial(ImportanceWeightedELBO, 4),
    ],
)
def test_score_of_sobol_points(objective):
    with pytest.raises(ValueError, match=r"'score' is biased for latent '\w+' .*gradient='auto'"):
        objective(gradient="score", sampler="sobol").loss(model, guide)


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (partial(StandardELBO, 1), r"no effect with one outer particle\. Use more particles"),
        (partial(ImportanceWeightedELBO, 8), r"no effect .*independent inner ones.*'pathwise'"),
    ],
)
def test_one_outer_particle_is_warned_of(objective, expected):
    with pytest.warns(UserWarning, match=expected):
        objective(sampler="sobol").loss(model, guide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ImportanceWeightedELBO(8, gradient="pathwise", sampler="sobol").loss(model, guide)


def test_too_many_dimensions():
    size = MAX_DIMENSIONS - 10
    _, its_guide = number(dist.Normal(torch.zeros(size), 1.0).to_event(1))

    def two_sites():
        its_guide()
        pyro.sample("y", dist.Normal(torch.zeros(11), 1.0).to_event(1))

    def fits():
        its_guide()
        pyro.sample("y", dist.Normal(torch.zeros(10), 1.0).to_event(1))

    assert math.isfinite(StandardELBO(2, sampler="sobol").loss(fits, fits))
    with pytest.raises(ValueError, match=f"at most 21201 .*'y' needs 11 .*have taken {size}"):
        StandardELBO(2, sampler="sobol").loss(two_sites, two_sites)


def test_particles_that_draw_different_numbers():
    nets = Nets(Z_ALONE, 1, 2)
    with nets.particle(0):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with (
        nets.particle(1),
        pytest.raises(ValueError, match="'z' draws 3 numbers for one particle and 2 for another"),
    ):
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def test_noise_whose_first_dimension_is_not_that_of_the_particles():
    nets = Nets(Z_ALONE, 1, 4)
    with (
        nets.all_particles(),
        pytest.raises(ValueError, match=r"'z' draws noise of shape \(3, 4\).*the 4 particles"),
    ):
        pyro.sample("z", dist.Normal(torch.zeros(3, 4), 1.0))


def test_distributions_that_are_expanded_from_outside():
    """Particles may be anywhere in their noise."""
    nets = Nets(Z_ALONE, 1, 4)
    fn = ExpandedDistribution(dist.Normal(torch.zeros(()), 1.0), torch.Size([4]))
    with nets.all_particles(), pytest.raises(ValueError, match="vectorize_particles=False"):
        pyro.sample("z", fn)
    with nets.particle(0):
        assert pyro.sample("z", dist.Normal(0.0, 1.0)).isfinite()
