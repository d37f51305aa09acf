"""Programs whose sites change from run to run.

Sequential plates on a subsample, loops to the end of the longest sequence of a minibatch, branches
on a latent.
"""

import math
import random
import warnings
from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.ops.indexing import Vindex

from pyro_elbo_lab import (
    AnalyticKLELBO,
    ImportanceWeightedELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    StandardELBO,
    compiled,
    evidence,
)
from pyro_elbo_lab.objectives.plans import MOST_PLANS
from tests.support.tolerances import assert_mean_equals, assert_means_equal

X = torch.tensor([0.3, -1.2, 0.8, 1.9, -0.4, 0.6])
Y = torch.tensor(1.0)


@pytest.fixture(autouse=True)
def no_warning():
    """None of these programs deserves one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def normal_param(name, loc=0.3):
    a = pyro.param(f"{name}_loc", torch.tensor(loc))
    s = pyro.param(f"{name}_scale", torch.tensor(0.7), constraint=dist.constraints.positive)
    return dist.Normal(a, s)


def sequential(subsample_size=3):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(X), subsample_size):
        z = pyro.sample(f"z_{i}", dist.Normal(m, 1.0))
        pyro.sample(f"x_{i}", dist.Normal(z, 0.5), obs=X[i])


def sequential_guide(subsample_size=3):
    pyro.sample("m", normal_param("m"))
    for i in pyro.plate("data", len(X), subsample_size):
        pyro.sample(f"z_{i}", normal_param("z", 0.1))


def sequential_signs(subsample_size=3):
    p = torch.tensor(0.4)
    s = pyro.sample("s", dist.Bernoulli(p))
    for i in pyro.plate("data", len(X), subsample_size):
        z = pyro.sample(f"z_{i}", dist.Bernoulli(0.3 + 0.4 * s))
        pyro.sample(f"x_{i}", dist.Normal(2 * z - 1, 0.8), obs=X[i])


def sequential_signs_guide(subsample_size=3):
    s, z = (
        pyro.param(n, torch.tensor(p), constraint=dist.constraints.unit_interval)
        for n, p in (("ps", 0.6), ("pz", 0.45))
    )
    pyro.sample("s", dist.Bernoulli(s))
    for i in pyro.plate("data", len(X), subsample_size):
        pyro.sample(f"z_{i}", dist.Bernoulli(z))


def branch():
    """log p = log sum_f p(f) p(branch f), so that everything is known."""
    f = pyro.sample("f", dist.Bernoulli(0.3))
    if f:
        z = pyro.sample("z", dist.Normal(1.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=Y)
    else:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=2 * Y)


def branch_guide():
    p = pyro.param("p", torch.tensor(0.6), constraint=dist.constraints.unit_interval)
    if pyro.sample("f", dist.Bernoulli(p)):
        pyro.sample("z", normal_param("z"))


def log_normal(x, loc, scale):
    return dist.Normal(loc, scale).log_prob(torch.as_tensor(x))


def branch_elbo(p, loc, scale):
    """Exact, of `branch` and `branch_guide`."""

    def squared(center):  # E (z - center)^2
        return (loc - center) ** 2 + scale**2

    entropy = 0.5 * math.log(2 * math.pi * math.e) + scale.log()
    expected = -math.log(2 * math.pi) - (squared(1.0) + squared(Y)) / 2
    inside = math.log(0.3) - p.log() + expected + entropy
    outside = math.log(0.7) - (1 - p).log() + log_normal(2 * Y, 0.0, 1.0)
    return p * inside + (1 - p) * outside


def gradients(objective, model, guide, number, names):
    """Of the loss in unconstrained parameters: values (N,) and gradients (N, parameters)."""
    pyro.clear_param_store()
    for _ in range(10):  # every parameter is met
        objective.loss(model, guide)
    parameters = [pyro.param(name).unconstrained() for name in names]
    losses, rows = [], []
    for _ in range(number):
        for parameter in parameters:
            parameter.grad = None
        losses.append(objective.loss_and_grads(model, guide))
        grads = [torch.zeros(()) if p.grad is None else p.grad.clone() for p in parameters]
        rows.append(torch.stack(grads))
    return torch.tensor(losses), torch.stack(rows)


def exact_branch_gradient():
    raw = [torch.tensor(v, requires_grad=True) for v in (math.log(0.6 / 0.4), 0.3, math.log(0.7))]
    loss = -branch_elbo(raw[0].sigmoid(), raw[1], raw[2].exp())
    return loss.detach(), torch.stack(torch.autograd.grad(loss, raw))


BRANCH_PARAMETERS = ("p", "z_loc", "z_scale")


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize(
    "model, guide",
    [(sequential, sequential_guide), (sequential_signs, sequential_signs_guide)],
)
def test_sequential_plates_have_the_value_of_pyro(model, guide, vectorize):
    ours = StandardELBO(vectorize_particles=vectorize)
    for seed in range(6):
        pyro.set_rng_seed(seed)
        expected = Trace_ELBO().loss(model, guide)
        pyro.set_rng_seed(seed)
        assert ours.loss(model, guide) == pytest.approx(expected, rel=1e-5)


def test_particles_at_once_share_the_subsample():
    theirs = Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=0)
    ours = StandardELBO(4, vectorize_particles=True)
    for seed in range(4):
        pyro.set_rng_seed(seed)
        expected = theirs.loss(sequential, sequential_guide)
        pyro.set_rng_seed(seed)
        assert ours.loss(sequential, sequential_guide) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("model, guide", [(branch, branch_guide)])
def test_branches_have_the_value_of_pyro(model, guide, seed):
    ours, theirs = StandardELBO(3), Trace_ELBO(3)
    pyro.set_rng_seed(seed)
    expected = [theirs.loss(model, guide) for _ in range(5)]
    pyro.set_rng_seed(seed)
    assert [ours.loss(model, guide) for _ in range(5)] == pytest.approx(expected, rel=1e-5)


def of_all_data(model, guide, names):
    """The full plate has the expectation of the subsampled: its sites do not change."""

    def everything():
        model(len(X))

    def guided():
        guide(len(X))

    return gradients(StandardELBO(2), everything, guided, 100, names)


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize(
    "model, guide, names",
    [
        (sequential, sequential_guide, ("m_loc", "m_scale", "z_loc", "z_scale")),
        (sequential_signs, sequential_signs_guide, ("ps", "pz")),
    ],
    ids=["reparameterized", "score"],
)
def test_gradients_of_sequential_plates(model, guide, names, num_particles):
    losses, rows = gradients(StandardELBO(num_particles), model, guide, 150, names)
    expected_losses, expected_rows = of_all_data(model, guide, names)
    assert_means_equal(losses, expected_losses)
    assert_means_equal(rows, expected_rows)


@pytest.mark.parametrize("build", [StandardELBO, AnalyticKLELBO])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_gradients_of_branches(build, num_particles):
    loss, gradient = exact_branch_gradient()
    losses, rows = gradients(build(num_particles), branch, branch_guide, 300, BRANCH_PARAMETERS)
    assert_mean_equals(losses, loss)
    assert_mean_equals(rows, gradient)


def test_baselines_of_other_structures_lower_the_variance():
    alone = gradients(StandardELBO(1), branch, branch_guide, 300, BRANCH_PARAMETERS)[1][:, 0]
    many = gradients(StandardELBO(4), branch, branch_guide, 300, BRANCH_PARAMETERS)[1][:, 0]
    assert many.var() < alone.var() / 4  # a mean of four without baseline


def jump():
    """A latent that is reparameterized, and a branch on it."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if z > 0.5:
        pyro.sample("x", dist.Normal(z, 1.0), obs=2 * Y)
    else:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.1))


JUMP_PARAMETERS = ("z_loc", "z_scale")


def jump_guide():
    pyro.sample("z", normal_param("z"))


def test_a_branch_on_a_differentiable_latent_takes_the_score():
    """The derivative along the draws would miss how the density jumps at 0.5."""
    objective = StandardELBO(4)
    rows = gradients(objective, jump, jump_guide, 300, JUMP_PARAMETERS)[1]

    z = torch.linspace(-7, 7, 280_001, dtype=torch.float64)
    raw = [torch.tensor(v, dtype=z.dtype, requires_grad=True) for v in (0.3, math.log(0.7))]
    log_q = log_normal(z, raw[0], raw[1].exp())
    observed = torch.where(z > 0.5, log_normal(2.0, z, 1.0), log_normal(0.1, 0.0, 1.0))
    elbo = torch.trapezoid(log_q.exp() * (log_normal(z, 0.0, 1.0) + observed - log_q), z)
    expected = torch.stack(torch.autograd.grad(-elbo, raw))
    assert_mean_equals(rows, expected)
    (row,) = objective.explain(jump, jump_guide).rows
    assert (row.gradient, row.why) == ("score", "the sites of the program depend on it")


def test_a_number_that_escapes_is_no_branch():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        z.item()

    (row,) = StandardELBO().explain(model, jump_guide).rows
    assert row.gradient == "doubly reparameterized"


def ragged(num=8):
    lengths = torch.arange(num) % 4 + 2
    data = torch.linspace(-1.0, 2.0, num * 5).reshape(num, 5)

    def model():
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("sequences", num, 2, dim=-1) as batch:
            z = torch.tensor(0)
            for t in pyro.markov(range(int(lengths[batch].max()))):
                with poutine.mask(mask=t < lengths[batch]):
                    enumerate_ = {"enumerate": "parallel"}
                    z = pyro.sample(f"z_{t}", dist.Categorical(torch.ones(2)), infer=enumerate_)
                    pyro.sample(f"x_{t}", dist.Normal(Vindex(loc)[..., z], 1.0), obs=data[batch, t])

    return model


@pytest.mark.parametrize("num_particles", [1, 3])
def test_sums_over_the_longest_of_a_minibatch(num_particles):
    model = ragged()
    guide = AutoDelta(poutine.block(model, expose=["loc"]))
    guide()
    theirs, ours = TraceEnum_ELBO(max_plate_nesting=1), StandardELBO(num_particles)
    at_once = StandardELBO(num_particles, vectorize_particles=True)
    for seed in range(8):
        found = []
        for objective in (theirs, ours, at_once):
            pyro.set_rng_seed(seed)
            guide.zero_grad()
            loss = objective.loss_and_grads(model, guide)
            found.append(torch.cat([torch.tensor([loss]), guide.loc.grad]))
        torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[2], found[0], rtol=1e-4, atol=1e-4)


def test_a_branch_that_has_sums_of_its_own():
    def model():
        if pyro.sample("f", dist.Bernoulli(0.5)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(k.float(), 1.0), obs=Y)
        else:
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=Y)

    def guide():
        pyro.sample("f", dist.Bernoulli(0.5))

    x = torch.logsumexp(log_normal(Y, torch.arange(3.0), 1.0), 0) - math.log(3)
    inside, outside = -x.item(), -log_normal(Y, 0.0, 1.0).item()
    objective = StandardELBO()
    found = {round(objective.loss(model, guide), 4) for _ in range(30)}
    assert found == {round(inside, 4), round(outside, 4)}


@pytest.mark.parametrize("vectorize", [False, True])
def test_deeper_plates_of_a_later_run(vectorize):
    def model(nesting):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with ExitStack() as stack:
            for i in range(nesting):
                stack.enter_context(pyro.plate(f"p{i}", 2, dim=-1 - i))
            pyro.sample("x", dist.Normal(z, 1.0), obs=Y.expand([2] * nesting))

    def guide(nesting):
        pyro.sample("z", normal_param("z"))

    objective = StandardELBO(3, vectorize_particles=vectorize)
    for nesting in (0, 1, 2):
        assert math.isfinite(objective.loss(model, guide, nesting))
    for nesting in (2, 0, 1):
        pyro.set_rng_seed(nesting)
        found = objective.loss(model, guide, nesting)
        pyro.set_rng_seed(nesting)
        expected = StandardELBO(3, vectorize_particles=vectorize).loss(model, guide, nesting)
        assert found == pytest.approx(expected)


LOG_EVIDENCE = math.log(
    0.3 * math.exp(log_normal(1.0, 1.0, math.sqrt(2.0))) + 0.7 * math.exp(log_normal(2.0, 0.0, 1.0))
)


BOUNDS = [
    lambda k: ImportanceWeightedELBO(k),
    lambda k: ImportanceWeightedELBO(1, k, outer="importance"),
    lambda k: RenyiELBO(0.3, k),
]


@pytest.mark.parametrize("build", BOUNDS)
def test_weights_of_particles_with_different_sites(build):
    """The bound lies between the ELBO and log p(x), and reaches it."""
    elbo = branch_elbo(torch.tensor(0.6), torch.tensor(0.3), torch.tensor(0.7)).item()
    values = torch.tensor([-build(4).loss(branch, branch_guide) for _ in range(200)])
    standard_error = values.std().item() / math.sqrt(len(values))
    assert elbo + 5 * standard_error < values.mean() < LOG_EVIDENCE + 5 * standard_error
    assert -build(1000).loss(branch, branch_guide) == pytest.approx(LOG_EVIDENCE, abs=0.2)


def choices():
    if pyro.sample("f", dist.Bernoulli(0.3)):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(3 * k, 1.0), obs=Y)
    else:
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=2 * Y)


def choices_guide():
    p, r = (
        pyro.param(n, torch.tensor(v), constraint=dist.constraints.unit_interval)
        for n, v in (("p", 0.6), ("r", 0.4))
    )
    if pyro.sample("f", dist.Bernoulli(p)):
        pyro.sample("k", dist.Bernoulli(r))


@pytest.mark.parametrize("num_outer, outer", [(1, "mean"), (2, "mean"), (2, "importance")])
def test_score_gradients_of_weighted_particles(num_outer, outer):
    """Exact by the sum over all outcomes of two particles."""
    raw = torch.tensor([math.log(0.6 / 0.4), math.log(0.4 / 0.6)], requires_grad=True)
    p, r = raw.sigmoid()
    q = torch.stack([1 - p, p * (1 - r), p * r])
    joint = torch.stack(
        [
            math.log(0.7) + log_normal(2.0, 0.0, 1.0),
            math.log(0.15) + log_normal(1.0, 0.0, 1.0),
            math.log(0.15) + log_normal(1.0, 3.0, 1.0),
        ]
    )
    weights = (joint - q.log()).exp()
    num_inner = 1 if outer == "importance" else 2
    bound = (q[:, None] * q * ((weights[:, None] + weights) / 2).log()).sum()
    (expected,) = torch.autograd.grad(-bound, raw)
    objective = ImportanceWeightedELBO(num_inner, num_outer, outer=outer)
    losses, rows = gradients(objective, choices, choices_guide, 300, ("p", "r"))
    assert_mean_equals(losses, -bound.detach())
    assert_mean_equals(rows, expected)


def chance():
    """A branch that is not Pyro's: half of the runs see x, half y."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    if random.random() < 0.5:
        pyro.sample("x", dist.Normal(z, 1.0), obs=2 * Y)
    else:
        pyro.sample("y", dist.Normal(-z, 0.7), obs=Y)


@pytest.mark.parametrize("gradient", ["pathwise", "doubly_reparameterized", "score"])
@pytest.mark.parametrize("build", [StandardELBO, ImportanceWeightedELBO])
def test_gradients_under_chance_of_another_kind(build, gradient):
    raw = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.3, math.log(0.7))]
    scale = raw[1].exp()
    z = raw[0] + scale * torch.linspace(-6, 6, 601, dtype=torch.float64)
    q = log_normal(z, raw[0], scale).exp() * (z[1] - z[0])
    x = log_normal(z, 0.0, 1.0) + log_normal(2.0, z, 1.0) - log_normal(z, raw[0], scale)
    y = log_normal(z, 0.0, 1.0) + log_normal(1.0, -z, 0.7) - log_normal(z, raw[0], scale)
    pairs = [(a, b) for a in (x, y) for b in (x, y)]
    if build is StandardELBO:
        bound = (q * (x + y) / 2).sum()
    else:
        values = sum(torch.logaddexp(a[:, None], b) - math.log(2.0) for a, b in pairs) / 4
        bound = (q[:, None] * q * values).sum()
    expected = torch.stack(torch.autograd.grad(-bound, raw))
    losses, rows = gradients(build(2, gradient=gradient), chance, jump_guide, 300, JUMP_PARAMETERS)
    assert_mean_equals(losses, -bound.detach())
    assert_mean_equals(rows, expected)


def test_cells_need_the_same_sites_in_all_particles():
    def model():
        f = pyro.sample("f", dist.Bernoulli(0.5))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=X[:3])
            if f:
                pyro.sample("y", dist.Normal(z, 1.0), obs=X[3:])

    def guide():
        pyro.sample("f", dist.Bernoulli(0.5))
        with pyro.plate("data", 3):
            pyro.sample("z", normal_param("z"))

    objective = ImportanceWeightedELBO(2, num_outer_particles=8)
    with pytest.raises(ValueError, match=r"site 'y' of the model.*cells of plate 'data'"):
        objective.loss(model, guide)
    assert math.isfinite(ImportanceWeightedELBO(8, local_plates=()).loss(model, guide))
    assert math.isfinite(StandardELBO(8).loss(model, guide))


def test_a_subsample_inside_a_logarithm_is_still_refused():
    with pytest.raises(ValueError, match="'data' is subsampled"):
        ImportanceWeightedELBO(2).loss(sequential, sequential_guide)


def test_others_say_which_site_changes():
    objective = ReweightedWakeSleep(2)
    with pytest.raises(ValueError, match=r"ReweightedWakeSleep.*site '.' of the model"):
        for _ in range(20):
            objective.loss(branch, branch_guide)
    with pytest.raises(ValueError, match=r"site '.' of the"):
        for _ in range(20):
            evidence(branch, branch_guide, num_samples=100)


def test_plans_are_bounded():
    objective = StandardELBO()
    for _ in range(MOST_PLANS + 20):
        objective.loss(many, many_guide)
    (plans,) = objective._plans[many].values()
    assert len(plans) > MOST_PLANS == len(plans._kept)


def many():
    for i in pyro.plate("data", 500, 2):
        pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))


def many_guide():
    for i in pyro.plate("data", 500, 2):
        pyro.sample(f"z_{i}", normal_param("z"))


def test_runs_eagerly_under_compiled():
    loss = compiled(StandardELBO(), backend="graph")
    for seed in range(4):
        pyro.set_rng_seed(seed)
        expected = StandardELBO().loss(sequential, sequential_guide)
        pyro.set_rng_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says why it runs eagerly
            assert loss.loss_and_grads(sequential, sequential_guide) == pytest.approx(expected)
    assert "eager" in loss.status(sequential, sequential_guide)


def test_trains_to_the_posterior():
    """log p(x) = -KL at the optimum, as the branches are conjugate."""
    with torch.no_grad():
        x = math.log(0.3) + log_normal(1.0, 1.0, math.sqrt(2.0))
        y = math.log(0.7) + log_normal(2.0, 0.0, 1.0)
    pyro.clear_param_store()
    svi = SVI(branch, branch_guide, pyro.optim.Adam({"lr": 0.05}), StandardELBO(4))
    for _ in range(300):
        svi.step()
    assert pyro.param("p").item() == pytest.approx((x - y).sigmoid().item(), abs=0.1)
    assert pyro.param("z_loc").item() == pytest.approx(1.0, abs=0.1)
    assert pyro.param("z_scale").item() == pytest.approx(math.sqrt(0.5), abs=0.1)
