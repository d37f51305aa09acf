"""Exact sums against Pyro's TraceEnum_ELBO, models without discrete sites, and the forward
algorithm."""

import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch.distributions import constraints

from pyro_elbo_lab.objectives.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives.lower_bounds import ImportanceWeightedELBO, StandardELBO
from tests.objectives.laws.estimation import mean_loss
from tests.support.tolerances import assert_mean_equals, assert_means_equal

PARALLEL = {"enumerate": "parallel"}
vectorized = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])


def like(values, dtype=torch.float64, device="cpu"):
    return torch.tensor(values, dtype=dtype, device=device)


def data(dtype=torch.float64, device="cpu"):
    return like([-2.1, -1.7, 0.4, 2.3, 1.8, -0.2], dtype, device)


def weights(x):
    return pyro.param("weights", x.new_tensor([0.3, 0.7]), constraint=constraints.simplex)


def mixture(x, subsample_size=None, scale=1.0, mask=None):
    """x_i ~ sum_c w_c N(loc_c, 0.8)."""
    w = weights(x)
    loc = pyro.sample("loc", dist.Normal(x.new_zeros(2), 3 * x.new_ones(())).to_event(1))
    with pyro.plate("data", len(x), subsample_size=subsample_size, device=x.device) as index:
        changed = True if mask is None else mask[index]
        with poutine.scale(scale=scale), poutine.mask(mask=changed):
            c = pyro.sample("c", dist.Categorical(w), infer=PARALLEL)
            pyro.sample("x", dist.Normal(Vindex(loc)[..., c], 0.8 * x.new_ones(())), obs=x[index])


def marginal_mixture(x, subsample_size=None, scale=1.0, mask=None):
    """`mixture`, summed by hand."""
    w = weights(x)
    loc = pyro.sample("loc", dist.Normal(x.new_zeros(2), 3 * x.new_ones(())).to_event(1))
    with pyro.plate("data", len(x), subsample_size=subsample_size, device=x.device) as index:
        changed = True if mask is None else mask[index]
        with poutine.scale(scale=scale), poutine.mask(mask=changed):
            log_p = dist.Normal(loc, 0.8).log_prob(x[index].unsqueeze(-1))
            pyro.factor("x", (w.log() + log_p).logsumexp(-1))


def mixture_guide(x, **_):
    loc = pyro.param("loc_loc", x.new_tensor([-1.0, 1.2]))
    scale = pyro.param("loc_scale", x.new_tensor([0.5, 0.4]), constraint=constraints.positive)
    pyro.sample("loc", dist.Normal(loc, scale).to_event(1))


def local(x, subsample_size=None):
    """g ~ N(0, 1); in the plate c_i ~ w, z_i ~ N(g + 2 c_i - 1, 0.7), x_i ~ N(z_i, 0.5)."""
    w, one = weights(x), x.new_ones(())
    g = pyro.sample("g", dist.Normal(0 * one, one))
    with pyro.plate("data", len(x), subsample_size=subsample_size, device=x.device) as index:
        c = pyro.sample("c", dist.Categorical(w), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(g + 2 * c - 1, 0.7 * one))
        pyro.sample("x", dist.Normal(z, 0.5 * one), obs=x[index])


def marginal_local(x, subsample_size=None):
    w, one = weights(x), x.new_ones(())
    g = pyro.sample("g", dist.Normal(0 * one, one))
    with pyro.plate("data", len(x), subsample_size=subsample_size, device=x.device) as index:
        components = dist.Normal(g.unsqueeze(-1) + x.new_tensor([-1.0, 1.0]), 0.7 * one)
        z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(w), components))
        pyro.sample("x", dist.Normal(z, 0.5 * one), obs=x[index])


def local_guide(x, subsample_size=None):
    one = x.new_ones(())
    g = pyro.sample("g", dist.Normal(pyro.param("g_loc", 0.1 * one), 0.6 * one))
    slope = pyro.param("slope", 0.7 * one)
    scale = pyro.param("z_scale", 0.5 * one, constraint=constraints.positive)
    with pyro.plate("data", len(x), subsample_size=subsample_size, device=x.device) as index:
        pyro.sample("z", dist.Normal(slope * x[index] + 0.1 * g, scale))


def chain(x, sequences=None):
    """A hidden Markov model of 3 states; `sequences` of them in a plate, (sequences, time)."""
    one = x.new_ones(())
    probs = x.new_tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])
    transition = pyro.param("transition", probs, constraint=constraints.simplex)
    loc = pyro.param("emission", x.new_tensor([-1.0, 0.2, 1.5]))
    shift = pyro.sample("shift", dist.Normal(0 * one, one))

    def steps(row):
        state = torch.zeros((), dtype=torch.long, device=x.device)
        for t in pyro.markov(range(x.shape[-1])):
            state = pyro.sample(f"s_{t}", dist.Categorical(transition[state]), infer=PARALLEL)
            pyro.sample(f"x_{t}", dist.Normal(loc[state] + shift, one), obs=row[..., t])

    if sequences is None:
        steps(x)
    else:
        with pyro.plate("sequences", sequences):
            steps(x)


def chain_guide(x, sequences=None):
    loc = pyro.param("shift_loc", x.new_tensor(0.2))
    pyro.sample("shift", dist.Normal(loc, 0.3 * x.new_ones(())))


def forward_algorithm(x, shift):
    """log p(x | shift) of `chain`, by the textbook recursion in probabilities."""
    store = pyro.get_param_store()
    transition, loc = store["transition"], store["emission"]
    alpha = transition[0]
    for t in range(len(x)):
        alpha = alpha if t == 0 else alpha @ transition
        alpha = alpha * dist.Normal(loc + shift, x.new_ones(())).log_prob(x[t]).exp()
    return alpha.sum().log()


def evaluate(objective, model, guide, *args, seed=3, **kwargs):
    """Loss and gradients by parameter from a fixed seed."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    objective.loss(model, guide, *args, **kwargs)
    parameters = dict(pyro.get_param_store().named_parameters())
    pyro.set_rng_seed(seed)
    loss = objective.loss_and_grads(model, guide, *args, **kwargs)
    return loss, {name: p.grad for name, p in sorted(parameters.items())}


def assert_same(ours, theirs, dtype=torch.float64):
    tolerance = 256 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def sequences(dtype=torch.float64, device="cpu"):
    x = data(dtype, device)
    return torch.stack([x, x.flip(0), 0.5 * x, x + 1])


PROGRAMS: dict[str, Any] = {
    "mixture": (mixture, mixture_guide, lambda *a: ((data(*a),), {}), 1),
    "subsample": (mixture, mixture_guide, lambda *a: ((data(*a),), {"subsample_size": 2}), 1),
    "local": (local, local_guide, lambda *a: ((data(*a),), {}), 1),
    "chain": (chain, chain_guide, lambda *a: ((data(*a),), {}), 0),
    "chains": (chain, chain_guide, lambda *a: ((sequences(*a), 4), {}), 1),
}


@vectorized
@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("program", PROGRAMS)
def test_equals_trace_enum_under_the_same_seed(program, num_particles, vectorize, dtype, device):
    model, guide, arguments, nesting = PROGRAMS[program]
    args, kwargs = arguments(dtype, device)
    if program == "subsample" and num_particles > 1 and not vectorize:
        pytest.skip("TraceEnum_ELBO draws a minibatch of its own for each particle")
    keywords = {"vectorize_particles": vectorize, "max_plate_nesting": nesting}
    ours = evaluate(
        StandardELBO(num_particles, "pathwise", **keywords), model, guide, *args, **kwargs
    )
    theirs = evaluate(TraceEnum_ELBO(num_particles, **keywords), model, guide, *args, **kwargs)
    assert_same(ours, theirs, dtype)


@vectorized
def test_scale_and_mask_equal_trace_enum(vectorize):
    mask = torch.tensor([True, False, True, True, False, True])
    keywords = {"vectorize_particles": vectorize, "max_plate_nesting": 1}
    kwargs = {"scale": 0.3, "mask": mask, "subsample_size": 4}
    args = (mixture, mixture_guide, data())
    ours = evaluate(StandardELBO(1, "pathwise", **keywords), *args, **kwargs)
    assert_same(ours, evaluate(TraceEnum_ELBO(1, **keywords), *args, **kwargs))
    by_hand = evaluate(
        StandardELBO(1, "pathwise", **keywords), marginal_mixture, *args[1:], **kwargs
    )
    assert_same(ours, by_hand)


GRADIENTS = ["pathwise", "doubly_reparameterized", "score", "auto"]


@vectorized
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("local_plates", ["auto", ()], ids=["cells", "joint"])
@pytest.mark.parametrize(
    ("model", "by_hand", "guide"),
    [(mixture, marginal_mixture, mixture_guide), (local, marginal_local, local_guide)],
    ids=["mixture", "local"],
)
def test_importance_weights_equal_those_of_the_sum_by_hand(
    model, by_hand, guide, local_plates, gradient, vectorize
):
    def objective():
        return ImportanceWeightedELBO(
            3, 2, gradient, local_plates=local_plates, vectorize_particles=vectorize
        )

    ours = evaluate(objective(), model, guide, data())
    assert_same(ours, evaluate(objective(), by_hand, guide, data()))


@vectorized
def test_cells_under_subsampling_equal_those_of_the_sum_by_hand(vectorize):
    def objective():
        return ImportanceWeightedELBO(3, 2, vectorize_particles=vectorize)

    plates = objective().explain(local, local_guide, data(), 2).notes[0]
    assert plates == "plates: cells of plate 'data'"
    ours = evaluate(objective(), local, local_guide, data(), 2)
    assert_same(ours, evaluate(objective(), marginal_local, local_guide, data(), 2))


@pytest.mark.parametrize(
    "build", [StandardELBO, partial(ImportanceWeightedELBO, 3), AnalyticKLELBO]
)
def test_subsampling_keeps_the_expectation(build):
    objective = build(vectorize_particles=True) if build is not StandardELBO else build()
    pyro.set_rng_seed(0)
    full = mean_loss(lambda: objective.loss(local, local_guide, data()), 300)
    small = mean_loss(lambda: objective.loss(local, local_guide, data(), 2), 1200)
    assert_means_equal(small, full)


def test_analytic_kl_has_the_expectation_of_the_standard_elbo():
    pyro.set_rng_seed(0)
    exact = mean_loss(lambda: AnalyticKLELBO().loss(mixture, mixture_guide, data()), 400)
    sampled = mean_loss(lambda: StandardELBO().loss(mixture, mixture_guide, data()), 1600)
    assert_means_equal(exact, sampled)


def test_score_gradient_of_another_discrete_site_equals_trace_enum_in_law():
    """b is drawn in the guide, c is summed out."""
    x = data()

    def model():
        b = pyro.sample("b", dist.Bernoulli(0.4 * x.new_ones(())))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(weights(x)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(b + 2 * c - 1, x.new_ones(())), obs=x)

    def guide():
        logit = pyro.param("logit", x.new_tensor(0.3))
        pyro.sample("b", dist.Bernoulli(logits=logit))

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    objective = StandardELBO(5, vectorize_particles=True)
    objective.loss(model, guide)
    logit, w = (pyro.get_param_store()[name].unconstrained() for name in ("logit", "weights"))
    samples = []
    for _ in range(1000):
        logit.grad = w.grad = None
        objective.loss_and_grads(model, guide)
        samples.append(torch.cat([logit.grad.reshape(1), w.grad]))
    exact = x.new_zeros(())
    q = logit.sigmoid()
    for b, prior, drawn in ((0.0, 0.6, 1 - q), (1.0, 0.4, q)):
        loc = b + x.new_tensor([-1.0, 1.0])
        log_p = dist.Normal(loc, 1.0).log_prob(x.unsqueeze(-1))
        terms = (pyro.param("weights").log() + log_p).logsumexp(-1).sum()
        exact = exact - drawn * (terms + math.log(prior) - drawn.log())
    expected = torch.autograd.grad(exact, [logit, w])
    assert_mean_equals(torch.stack(samples), torch.cat([expected[0].reshape(1), expected[1]]))


@vectorized
def test_hidden_markov_model_equals_the_forward_algorithm(vectorize):
    x = data()

    def exact_guide(x):
        pyro.sample("shift", dist.Delta(x.new_tensor(0.4)))

    objective = StandardELBO(2, vectorize_particles=vectorize)
    loss, gradients = evaluate(objective, chain, exact_guide, x)
    prior = dist.Normal(0.0, 1.0).log_prob(x.new_tensor(0.4))
    expected = -(forward_algorithm(x, 0.4) + prior)
    store = dict(pyro.get_param_store().named_parameters())
    exact = torch.autograd.grad(expected, [store[name] for name in gradients])
    assert_same(loss, expected.item())
    assert_same(list(gradients.values()), list(exact))


def test_a_long_chain_neither_overflows_nor_underflows():
    x = data(torch.float32).repeat(50) * 20
    model, guide = chain, partial(lambda x: pyro.sample("shift", dist.Delta(x.new_zeros(()))))
    single, gradients = evaluate(StandardELBO(), model, guide, x)
    double, _ = evaluate(StandardELBO(), model, guide, x.double())
    assert single == pytest.approx(double, rel=1e-5)
    assert all(g.isfinite().all() for g in gradients.values())


def test_plates_within_the_plate_of_a_variable():
    """c_i is read by every x_ij; b is shared by all i."""
    x = torch.stack([data(), data().flip(0), data() + 1])  # (3, 6)

    def model():
        b = pyro.sample("b", dist.Bernoulli(0.3 * x.new_ones(())), infer=PARALLEL)
        with pyro.plate("i", 3, dim=-2):
            c = pyro.sample("c", dist.Categorical(weights(x)), infer=PARALLEL)
            with pyro.plate("j", 6, dim=-1):
                pyro.sample("x", dist.Normal(b + 2 * c - 1, x.new_ones(())), obs=x)

    objective = StandardELBO(2, vectorize_particles=True)
    loss, _ = evaluate(objective, model, lambda: None)
    w = pyro.param("weights")
    per_b = []
    for b, prior in ((0.0, 0.7), (1.0, 0.3)):
        locs = b + x.new_tensor([-1.0, 1.0])
        log_p = dist.Normal(locs, 1.0).log_prob(x.unsqueeze(-1)).sum(-2)  # (i, c)
        per_b.append(math.log(prior) + (w.log() + log_p).logsumexp(-1).sum())
    assert loss == pytest.approx(-torch.stack(per_b).logsumexp(0).item())


@pytest.mark.parametrize("build", [StandardELBO, partial(ImportanceWeightedELBO, 4)])
def test_training_an_autoguide_finds_the_components(build):
    x = torch.cat([data() * 0.2 - 3, data() * 0.2 + 3])
    guide = AutoNormal(poutine.block(mixture, hide=["c"]), init_scale=0.5)
    guide(x)
    with torch.no_grad():
        guide.locs.loc.copy_(x.new_tensor([-1.0, 1.0]))
    objective = build(vectorize_particles=True)
    optimizer = pyro.optim.Adam({"lr": 0.1})
    svi = pyro.infer.SVI(mixture, guide, optimizer, loss=objective)
    for _ in range(200):
        svi.step(x)
    found = guide.median(x)["loc"]
    assert (found - x.new_tensor([-3.0, 3.0])).abs().max() < 1.0
