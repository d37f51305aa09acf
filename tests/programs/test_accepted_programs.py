"""What Pyro takes we take, without a word where it says none, and with one where it has one."""

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.reparam import ConjugateReparam
from pyro.optim import Adam
from torch.autograd import grad

from pyro_elbo_lab import AnalyticKLELBO, ImportanceWeightedELBO, StandardELBO

HALF = torch.tensor(0.5)
LINEAR = [StandardELBO, AnalyticKLELBO]


def half():
    return pyro.param("p", HALF, constraint=dist.constraints.unit_interval)


def nested_loops(subsample_size):
    def program(p):
        outer = pyro.plate("outer", 3, subsample_size)
        inner = pyro.plate("inner", 2, subsample_size)
        for i in outer:
            for j in inner:
                pyro.sample(f"x_{i}_{j}", dist.Bernoulli(p))

    return lambda: program(HALF), lambda: program(half())


def plate_within_loop(subsample_size):
    def program(p):
        inner = pyro.plate("inner", 5, subsample_size)
        for i in pyro.plate("outer", 3, subsample_size):
            with inner as ind:
                pyro.sample(f"x_{i}", dist.Bernoulli(p).expand_by([len(ind)]))

    return lambda: program(HALF), lambda: program(half())


def loop_within_plate(subsample_size):
    def program(p):
        inner = pyro.plate("inner", 5, subsample_size)
        with pyro.plate("outer", 3, subsample_size) as ind:
            for i in inner:
                pyro.sample(f"x_{i}", dist.Bernoulli(p).expand_by([len(ind)]))

    return lambda: program(HALF), lambda: program(half())


def loop_in_the_model_alone(subsample_size):
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 4, subsample_size):
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=HALF)

    return model, lambda: pyro.sample("z", dist.Normal(half(), 1.0))


def broadcast_from_a_plate(subsample_size):
    """The components are not in the plate of the data, and their dimension is summed as well."""

    def latents(p):
        with pyro.plate("components", 2, dim=-1):
            return pyro.sample("z", dist.Bernoulli(p))

    def model():
        z = latents(HALF)
        with pyro.plate("data", 4, subsample_size, dim=-2) as ind:
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(len(ind), 2))

    return model, lambda: latents(half())


def differentiates_itself(subsample_size):
    def model():
        with torch.enable_grad():
            x = pyro.sample("x", dist.Normal(0.0, 1.0)).clone().requires_grad_()
            (slope,) = grad((x**2).sum(), x)
        pyro.sample("y", dist.Normal(slope, 1.0), obs=HALF)

    def guide():
        loc = pyro.param("loc", torch.tensor(0.3))
        with torch.enable_grad():
            (slope,) = grad(loc**2, loc, create_graph=True)
        pyro.sample("x", dist.Normal(loc + 0.1 * slope, 1.0))

    return model, guide


PROGRAMS = [
    nested_loops,
    plate_within_loop,
    loop_within_plate,
    loop_in_the_model_alone,
    broadcast_from_a_plate,
    differentiates_itself,
]


@pytest.mark.parametrize("build", LINEAR)
@pytest.mark.parametrize("subsample_size", [None, 2], ids=["full", "subsample"])
@pytest.mark.parametrize("programs", PROGRAMS)
def test_taken_without_a_word(programs, subsample_size, build):
    model, guide = programs(subsample_size)
    objective = build(num_particles=2)
    svi = SVI(model, guide, Adam({"lr": 1e-6}), objective)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            svi.step()


@pytest.mark.parametrize("programs", PROGRAMS)
def test_with_the_value_of_pyro(programs):
    model, guide = programs(2)
    for seed in range(3):
        pyro.set_rng_seed(seed)
        expected = Trace_ELBO().loss(model, guide)
        pyro.set_rng_seed(seed)
        assert StandardELBO().loss(model, guide) == pytest.approx(expected, rel=1e-5)


def test_score_gradients_of_what_is_broadcast_from_a_plate():
    """Both elements of z have costs of their own: the gradient is exact by enumeration."""
    model, guide = broadcast_from_a_plate(None)
    objective = StandardELBO(500)
    objective.loss_and_grads(model, guide)
    raw = torch.zeros((), requires_grad=True)
    p = raw.sigmoid()
    z = torch.tensor([0.0, 1.0])
    cost = 4 * dist.Normal(z, 1.0).log_prob(torch.ones(2)) + HALF.log()
    q = torch.stack([1 - p, p])
    (expected,) = grad(-2 * (q * (cost - q.log())).sum(), raw)
    assert pyro.param("p").unconstrained().grad.item() == pytest.approx(expected.item(), abs=0.15)


def test_draws_that_are_in_no_trace():
    """A ConjugateReparam draws within the model; its loss is exact for all draws."""
    counts = torch.tensor([3.0, 7.0])
    a, b = torch.tensor(0.5), torch.tensor(1.5)

    def model():
        with pyro.plate("rows", 2):
            prob = pyro.sample("prob", dist.Beta(a, b))
            pyro.sample("counts", dist.Binomial(10, prob), obs=counts)

    of_rows = ConjugateReparam(dist.Beta(1 + counts, 11 - counts))
    program = poutine.reparam(model, {"prob": of_rows}), lambda: None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = StandardELBO(3, vectorize_particles=True).loss(*program)
    expected = -dist.BetaBinomial(a, b, 10).log_prob(counts).sum()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_program_that_insists_on_the_shapes_of_all_particles():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        assert x.shape == (10, 1)
        k = pyro.sample("k", dist.Bernoulli(HALF), infer={"enumerate": "parallel"})
        assert k.shape == (2, 1, 1)
        pyro.sample("y", dist.Normal(x + k, 1.0), obs=HALF)

    def guide():
        x = pyro.sample("x", dist.Normal(half(), 1.0))
        assert x.shape == (10, 1)

    keywords: dict[str, Any] = {
        "num_particles": 10,
        "vectorize_particles": True,
        "max_plate_nesting": 1,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = []
        for objective in (TraceEnum_ELBO(**keywords), StandardELBO(**keywords)):
            pyro.set_rng_seed(0)
            losses.append(objective.loss_and_grads(model, guide))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_failing_assertion_is_the_programs_own():
    def model():
        raise AssertionError("no data")

    with pytest.raises(AssertionError, match="no data"):
        StandardELBO().loss(model, lambda: None)


def test_a_chain_has_the_dimensions_of_pyro():
    def model():
        x = 0
        for t in pyro.markov(range(20)):
            probs = torch.tensor([[0.2, 0.8], [0.1, 0.9]])[x]
            x = pyro.sample(f"x_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
            assert x.dim() <= 2

    objective = StandardELBO(max_plate_nesting=0)
    assert objective.loss(model, lambda: None) == pytest.approx(0.0, abs=1e-5)


def one_latent():
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=HALF)


def with_another_site():
    pyro.sample("z", dist.Normal(half(), 1.0))
    pyro.sample("a", dist.Normal(0.0, 1.0))


def with_the_observed_site():
    pyro.sample("z", dist.Normal(half(), 1.0))
    pyro.sample("x", dist.Normal(0.0, 1.0))


def with_another_plate():
    pyro.sample("z", dist.Normal(half(), 1.0))
    for _ in pyro.plate("elsewhere", 3):
        pass


WARNED = {
    with_another_site: "'a' of the guide is missing in the model",
    with_the_observed_site: "'x' is observed in the model but sampled in the guide",
    with_another_plate: "Found plate statements in guide but not model",
}


@pytest.mark.parametrize("guide", WARNED)
def test_taken_with_a_warning(guide):
    pyro.set_rng_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Trace_ELBO().loss(one_latent, guide)
    pyro.set_rng_seed(0)
    with pytest.warns(UserWarning, match=WARNED[guide]) as caught:
        assert StandardELBO().loss(one_latent, guide) == pytest.approx(expected, rel=1e-5)
    assert len(caught) == 1
    with warnings.catch_warnings(), pyro.validation_enabled(False):
        warnings.simplefilter("error")
        StandardELBO().loss(one_latent, guide)


@pytest.mark.parametrize("guide", [with_another_site, with_the_observed_site])
def test_weights_do_not_take_sites_that_nothing_makes_up_for(guide):
    with pytest.raises(ValueError, match=WARNED[guide]):
        ImportanceWeightedELBO(2).loss(one_latent, guide)


def test_an_undeclared_dimension_is_refused():
    def model():
        with pyro.plate("data", 2, dim=-1):
            pyro.sample("x", dist.Normal(torch.zeros(3, 2), 1.0), obs=torch.zeros(3, 2))

    with pytest.raises(ValueError, match="no plate declares dimension -2"):
        StandardELBO().loss(model, lambda: None)


def test_draws_of_conjugate_reparam_are_no_mixed_dimensions():
    """The model draws "p" from its posterior, and leaves no trace of it."""
    counts, total = torch.tensor(3.0), 10
    prior = dist.Beta(0.5, 1.5)

    def model() -> None:
        p = pyro.sample("p", prior)
        pyro.sample("counts", dist.Binomial(total, p), obs=counts)

    likelihood = dist.Beta(1 + counts, 1 + total - counts)
    exact = poutine.reparam(model, {"p": ConjugateReparam(likelihood)})
    objective = StandardELBO(4, vectorize_particles=True, max_plate_nesting=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = objective.loss(exact, lambda: None)
    evidence = dist.BetaBinomial(prior.concentration1, prior.concentration0, total).log_prob(counts)
    assert loss == pytest.approx(-float(evidence), abs=1e-4)
