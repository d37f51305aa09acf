"""Draws, their scores and what all particles share."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from pyro_elbo_lab.objectives.particles.layout import lay_out, linear
from pyro_elbo_lab.objectives.particles.probe import is_vectorizable
from pyro_elbo_lab.objectives.particles.sampling import Drawing, draw
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.structure.analysis import analyze
from pyro_elbo_lab.programs.structure.factors import FactorKey

X = torch.linspace(-1.0, 1.0, 6)
vectorized = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])


def model(subsample_size=None):
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6, subsample_size=subsample_size) as index:
        z = pyro.sample("z", dist.Normal(g, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X[index])
    with pyro.plate("only in the model", 6, subsample_size=subsample_size) as index:
        pyro.sample("y", dist.Normal(g, 1.0), obs=X[index])


def guide(subsample_size=None):
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6, subsample_size=subsample_size):
        pyro.sample("z", dist.Normal(0.5 * g, 1.0))


def drawn(vectorize, subsample_size=None, local_plates="auto", **numbers):
    pair = Pair(model, guide, (subsample_size,))
    structure, *_ = analyze(pair)
    layout = lay_out(structure, local_plates)
    return draw(pair, Drawing(structure, layout, vectorize=vectorize, **numbers))


def values(particles, name):
    """(K * M, ...)"""
    sites = [run.sites[FactorKey("guide", name)]["value"] for run in particles.runs]
    return sites[0] if len(sites) == 1 else torch.stack(sites)


@vectorized
def test_shapes(vectorize):
    particles = drawn(vectorize, num_inner=4, num_outer=3)
    (block,) = particles.cells
    assert block.log_weights.shape == (4, 3, 6)
    shapes = {factor.key.name: factor.value.shape for factor in particles.shared}
    assert shapes == {"g": (3, 1), "y": (3, 6)}
    assert particles.num_outer == 3


@vectorized
def test_inner_particles_share_globals_and_no_locals(vectorize):
    particles = drawn(vectorize, num_inner=4, num_outer=3)
    g = values(particles, "g").reshape(4, 3)
    assert (g == g[0]).all()
    assert len(g[0].unique()) == 3
    assert len(values(particles, "z").unique()) == 4 * 3 * 6


@vectorized
def test_joint_weights_share_nothing(vectorize):
    particles = drawn(vectorize, num_inner=4, num_outer=3, local_plates=())
    assert len(values(particles, "g").unique()) == 12


@vectorized
def test_all_particles_see_one_subsample(vectorize):
    particles = drawn(vectorize, subsample_size=2, num_inner=3, num_outer=2)
    for name in ("x", "y"):
        seen = [run.sites[FactorKey("model", name)]["value"] for run in particles.runs]
        assert all(torch.equal(seen[0], other) for other in seen)
        assert seen[0].shape == (2,)


@vectorized
def test_subsample_weight_stands_outside_the_cells(vectorize):
    pyro.set_rng_seed(0)
    particles = drawn(vectorize, subsample_size=2, num_inner=3)
    (block,) = particles.cells
    assert block.weight == 3.0
    runs = [run.sites for run in particles.runs]
    expected = []
    for i in range(len(runs)):
        z = FactorKey("model", "z")
        terms = [runs[i][z], runs[i][FactorKey("model", "x")]]
        log_p = sum(s["fn"].log_prob(s["value"]) for s in terms)
        q = runs[i][FactorKey("guide", "z")]
        expected.append(log_p - q["fn"].log_prob(q["value"]))
    torch.testing.assert_close(block.log_weights, torch.stack(expected).reshape(3, 1, 2))


def test_sequential_and_vectorized_scores_of_the_same_draws_agree():
    assert is_vectorizable(Pair(model, guide))
    assert is_vectorizable(Pair(model, guide, (3,)))


def test_programs_that_mix_particles_are_found_out():
    def mixing():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(0.3))

    def breaking():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.ones(3, 2) @ z, 1.0).to_event(1), obs=torch.ones(3))

    def fine():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    for program in (mixing, breaking):
        assert not is_vectorizable(Pair(program, fine))


def test_dropout_counts_as_not_vectorizable():
    def noisy():
        z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
        kept = torch.nn.functional.dropout(z, 0.5)
        pyro.sample("x", dist.Normal(kept.sum(-1), 1.0), obs=torch.tensor(0.3))

    def fine():
        pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))

    assert not is_vectorizable(Pair(noisy, fine))


def test_no_latents_at_all():
    def observed():
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    pair = Pair(observed, lambda: None)
    structure, *_ = analyze(pair)
    particles = draw(pair, Drawing(structure, linear(), num_outer=3))
    assert particles.shared[0].value.shape == (3,)


def test_fixed_density_ignores_the_draw():
    structure, *_ = analyze(Pair(model, AutoNormal(model)))
    autoguide = AutoNormal(model)
    autoguide()
    particles = draw(Pair(model, autoguide), Drawing(structure, linear()))
    z = particles.draws["z_unconstrained"]
    (value,) = z.values
    fixed, live = z.log_q(fixed=True).sum(), z.log_q().sum()
    assert torch.autograd.grad(fixed, value, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(live, value)[0].abs().max() > 0
    torch.testing.assert_close(fixed, live)


def test_an_error_under_vectorized_particles_says_what_to_do() -> None:
    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ z, 1.0), obs=torch.tensor(0.0))

    def guide() -> None:
        pyro.sample("z", dist.Normal(torch.ones(2), 1.0).to_event(1))

    with pytest.raises(RuntimeError) as caught:
        StandardELBO(3, vectorize_particles=True).loss(model, guide)
    assert "needs vectorize_particles=False" in caught.value.__notes__[0]
    assert math.isfinite(StandardELBO(3).loss(model, guide))
