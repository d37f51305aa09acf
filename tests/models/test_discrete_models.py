"""Discrete latents on real data: bounds against what summing the latents by hand gives."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.autoguide import AutoDelta
from pyro.optim import ClippedAdam
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models import gaussian_mixture as mixture
from models import sigmoid_belief_net as belief_net
from pyro_elbo_lab.inference.fitting.fit import fit
from pyro_elbo_lab.objectives.lower_bounds import ImportanceWeightedELBO, StandardELBO
from tests.support.tolerances import assert_mean_equals, assert_means_equal, critical_value

Program = Callable[..., Any]


def assert_positive(samples: Tensor) -> None:
    """The mean of independent samples is above 0, beyond what noise explains."""
    z = (samples.mean() / samples.std() * len(samples) ** 0.5).item()
    assert z > critical_value(1, len(samples) - 1), f"mean {samples.mean()}, z = {z:.2f}"


def assert_increasing(bounds: list[Tensor]) -> None:
    """Paired: evaluation i of every bound has the same draws."""
    for lower, upper in itertools.pairwise(bounds):
        assert_positive(upper - lower)


def values(objective: ELBO, model: Program, guide: Program, x: Tensor, num: int) -> Tensor:
    """The objective at `num` evaluations, from seeds 0 to num - 1."""
    losses = []
    for seed in range(num):
        pyro.set_rng_seed(seed)
        losses.append(objective.loss(model, guide, x))
    return -torch.tensor(losses, dtype=torch.float64)


def importance_weighted(num_particles: int, **keywords: Any) -> ELBO:
    """IW_K of a thousand draws, the same ones for every K from the same seed. IW_1 is the ELBO."""
    num_outer = 1000 // num_particles
    return ImportanceWeightedELBO(num_particles, num_outer, vectorize_particles=True, **keywords)


# The sigmoid belief network


def exact_bound(x: Tensor, network: belief_net.InferenceNetwork, num_particles: int) -> Tensor:
    """E[log mean_k p(x_n, z_k) / q(z_k | x_n)], (N,), over all states of all particles."""
    z = belief_net.states(x)
    log_q = dist.Bernoulli(logits=network.layers(x)[:, None]).log_prob(z).sum(-1)  # (N, 256)
    log_weight = belief_net.log_joint(x) - log_q
    if num_particles == 1:
        return (log_q.exp() * log_weight).sum(-1)
    assert num_particles == 2
    log_mean = torch.logaddexp(log_weight[:, :, None], log_weight[:, None]) - math.log(2)
    return ((log_q[:, :, None] + log_q[:, None]).exp() * log_mean).sum((-1, -2))


def test_digits_are_split_in_two() -> None:
    train, held_out = belief_net.split()
    assert (train.shape, held_out.shape) == ((1437, 64), (360, 64))
    assert torch.cat([train, held_out]).unique().tolist() == [0.0, 1.0]
    torch.testing.assert_close(belief_net.split()[0], train)


def test_the_evidence_sums_the_joint_density_over_all_states() -> None:
    torch.set_default_dtype(torch.float64)
    x = belief_net.data()[0][:5]
    z = belief_net.states(x)
    assert z.unique(dim=0).shape == (256, 8)

    def every_state() -> None:
        with pyro.plate("state", 256, dim=-2):
            belief_net.model(x)

    conditioned = poutine.condition(every_state, {"z": z[:, None].expand(256, 5, 8)})
    trace = poutine.trace(conditioned).get_trace()
    trace.compute_log_prob()
    log_joint = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
    torch.testing.assert_close(belief_net.log_evidence(x), log_joint.logsumexp(0))


@pytest.mark.parametrize("num_particles", [1, 2])
def test_values_and_gradients_are_unbiased_for_the_sum_over_all_states(num_particles: int) -> None:
    torch.set_default_dtype(torch.float64)
    x, subsample_size = belief_net.data()[0][:4], 2
    network = belief_net.InferenceNetwork()
    objective: ELBO = StandardELBO(20, vectorize_particles=True)
    if num_particles > 1:
        objective = ImportanceWeightedELBO(num_particles, 20, vectorize_particles=True)
    objective.loss(belief_net.model, network, x)
    parameters = [*network.layers[2].parameters()]
    parameters += [pyro.param(name) for name in ("logits", "weight", "bias")]
    exact = exact_bound(x, network, num_particles).sum()
    exact_gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(exact, parameters)])
    losses, gradients = [], []
    for _ in range(300):
        loss = objective.differentiable_loss(belief_net.model, network, x, subsample_size)
        grads = torch.autograd.grad(-loss, parameters)
        losses.append(-loss.detach())
        gradients.append(torch.cat([g.reshape(-1) for g in grads]))
    assert_mean_equals(torch.stack(losses), exact)
    assert_mean_equals(torch.stack(gradients), exact_gradient)


class Net(NamedTuple):
    """A learnt network with its guide."""

    guide: belief_net.InferenceNetwork
    parameters: dict[str, Tensor]

    def activate(self) -> None:
        """Put the model's parameters into the store."""
        for name, value in self.parameters.items():
            pyro.get_param_store()[name] = value.clone()

    def log_evidence(self, x: Tensor) -> Tensor:
        self.activate()
        with torch.no_grad():
            return belief_net.log_evidence(x)


OBJECTIVES = {
    "elbo": StandardELBO(10, vectorize_particles=True),
    "importance-weighted": ImportanceWeightedELBO(10, vectorize_particles=True),
}


def learn(objective: ELBO, lr: float, start: Net | None = None) -> Net:
    """700 steps of minibatches; the learning rate falls to 3 % of `lr`."""
    num_steps = 700
    pyro.clear_param_store()
    guide = copy.deepcopy(start.guide) if start else belief_net.InferenceNetwork()
    if start:
        start.activate()
    optimizer = ClippedAdam({"lr": lr, "lrd": 0.03 ** (1 / num_steps), "clip_norm": math.inf})
    fit(
        belief_net.model,
        guide,
        belief_net.split()[0],
        200,
        objective=objective,
        optimizer=optimizer,
        num_steps=num_steps,
        progress=False,
    )
    names = ("logits", "weight", "bias")
    return Net(guide, {name: pyro.param(name).detach().clone() for name in names})


@pytest.fixture(scope="module")
def learnt() -> list[dict[str, Net]]:
    """From each of three starts a net learnt with the ELBO, and its further training with either
    objective."""
    starts = []
    for seed in range(3):
        pyro.set_rng_seed(seed)
        start = learn(OBJECTIVES["elbo"], 0.03)
        nets = {name: learn(each, 0.01, start) for name, each in OBJECTIVES.items()}
        starts.append(nets)
    return starts


@pytest.mark.parametrize("name", OBJECTIVES)
def test_belief_net_more_particles_are_tighter_on_held_out_digits(
    name: str, learnt: list[dict[str, Net]]
) -> None:
    """ELBO, IW_10, IW_100 and IW_1000; the last is close to the exact log-likelihood."""
    net = learnt[0][name]
    x = belief_net.split()[1][:60]
    exact = net.log_evidence(x).sum()
    bounds = [
        values(importance_weighted(k), belief_net.model, net.guide, x, 20)
        for k in (1, 10, 100, 1000)
    ]
    with torch.no_grad():
        assert_mean_equals(bounds[0], exact_bound(x, net.guide, 1).sum())
    assert_increasing(bounds)
    gaps = [exact - bound.mean() for bound in bounds]
    assert gaps[3] < 0.25 * gaps[1]


def test_training_with_the_tighter_bound_gives_better_held_out_likelihood(
    learnt: list[dict[str, Net]],
) -> None:
    """The exact log p(x) of the held-out digits, from a common start.

    Over ten starts of 1000 and 1000 steps the gain was 0.029 nats a digit, with a standard error of
    0.006, and positive from each. From scratch (1500 steps at 0.03, IW_10 against the ELBO of 10
    particles) the nets end in different optima: over ten seeds the gain was 0.093 with a standard
    error of 0.044, and negative for two of them.
    """
    x = belief_net.split()[1]
    evidence = {
        name: torch.stack([nets[name].log_evidence(x) for nets in learnt]) for name in OBJECTIVES
    }
    gain = (evidence["importance-weighted"] - evidence["elbo"]).mean(0)  # a digit
    assert gain.mean() > 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_causes_explain_more_than_independent_pixels(
    name: str, learnt: list[dict[str, Net]]
) -> None:
    train, held_out = belief_net.split()
    independent = dist.Bernoulli((train.sum(0) + 1) / (len(train) + 2)).log_prob(held_out).sum(-1)
    gain = learnt[0][name].log_evidence(held_out) - independent
    assert_positive(gain)


# The Gaussian mixture


def enumerating(num_particles: int) -> ELBO:
    """An objective that sums over the species."""
    return StandardELBO(num_particles, vectorize_particles=True)


def log_prior(values: dict[str, Tensor]) -> Tensor:
    """Written out from the docstring's formula, (...), from latents without particle plate or with
    one, as `mixture.parameters` takes them."""
    weights, locs, scales = mixture.parameters(values)
    length, width = locs.unbind(-1)
    steps = length.diff(dim=-1)
    first = dist.Normal(-1.0, 1.0).log_prob(length[..., 0])
    others = dist.Normal(0.0, 1.0).log_prob(steps.log()) - steps.log()
    return (
        dist.Dirichlet(torch.full((3,), 2.0)).log_prob(weights)
        + first
        + others.sum(-1)
        + dist.Normal(0.0, 1.0).log_prob(width).sum(-1)
        + (dist.Normal(-1.0, 1.0).log_prob(scales.log()) - scales.log()).sum((-1, -2))
    )


def log_weights(guide: Program, x: Tensor, num_particles: int) -> Tensor:
    """log p(x, z_k) - log q(z_k) of particles in one run, (K,), the species summed by hand."""
    with pyro.plate("particles", num_particles, dim=-2):
        trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    log_q = torch.zeros(num_particles)
    for site in trace.nodes.values():
        if site["type"] == "sample":
            log_q = log_q + site["log_prob"].sum(-1)
    drawn = {n: trace.nodes[n]["value"] for n in ("weights", "length", "width", "scales")}
    log_density = mixture.log_density(x, *mixture.parameters(drawn)).sum(-1)
    return log_prior(drawn) + log_density - log_q


@pytest.fixture(scope="module")
def halves() -> tuple[Tensor, Tensor]:
    """Flowers to learn from, (120, 2), and held out, every fifth: (30, 2)."""
    (x,) = mixture.data()
    x = x.double()
    held_out = torch.arange(len(x)) % 5 == 0
    return x[~held_out], x[held_out]


@pytest.fixture(scope="module")
def petals(halves: tuple[Tensor, Tensor]) -> Program:
    """A mean-field guide fitted to the 120 flowers."""
    pyro.clear_param_store()
    torch.set_default_dtype(torch.float64)  # every test sets its own
    guide = mixture.guides["continuous-normal"]()
    fit(
        mixture.model,
        guide,
        halves[0],
        objective=enumerating(10),
        num_steps=500,
        progress=False,
    )
    return guide


@pytest.fixture
def float64() -> None:
    torch.set_default_dtype(torch.float64)


def test_mixture_log_joint_and_its_gradient_by_hand(float64: None) -> None:
    """At a point: a Delta guide leaves -log p(x, z) of the loss."""
    (x,) = mixture.data()
    guide = AutoDelta(poutine.block(mixture.model, hide=["species"]))
    loss = enumerating(1).differentiable_loss(mixture.model, guide, x)
    by_hand = -log_prior(guide(x)) - mixture.log_density(x, *mixture.parameters(guide(x))).sum()
    torch.testing.assert_close(loss, by_hand)
    parameters = list(guide.parameters())
    assert len(parameters) == 4
    for one, two in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(by_hand, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("make_guide", mixture.guides.values(), ids=list(mixture.guides))
def test_mixture_particles_by_hand(float64: None, make_guide: Program) -> None:
    """The same draws in an outer plate, scored by the objective and by hand."""
    (x,) = mixture.data()
    guide = make_guide()
    guide(x)
    pyro.set_rng_seed(1)
    loss = enumerating(7).loss(mixture.model, guide, x)
    pyro.set_rng_seed(1)
    assert loss == pytest.approx(-log_weights(guide, x, 7).mean().item())


def test_drawing_the_species_leaves_the_weights_as_they_are(
    halves: tuple[Tensor, Tensor], petals: Program, float64: None
) -> None:
    """They are drawn from their exact conditional."""
    x, objective = halves[0], StandardELBO(7, vectorize_particles=True)
    pyro.set_rng_seed(1)
    loss = objective.loss(mixture.model_sampled, mixture.with_species(petals), x)
    pyro.set_rng_seed(1)
    assert loss == pytest.approx(-log_weights(petals, x, 7).mean().item())


def test_components_are_species(halves: tuple[Tensor, Tensor], petals: Any, float64: None) -> None:
    """Of the flowers that were held out, too; setosa is told apart without an error."""
    (x,) = mixture.data()
    fitted = mixture.parameters(petals.median(halves[0]))
    found = mixture.responsibilities(x, *fitted).argmax(-1)
    true = mixture.species()
    assert ((found == 0) == (true == 0)).all()
    assert adjusted_rand_score(true, found) > 0.8
    assert (found == true)[::5].double().mean() > 0.9


def test_mixture_more_particles_are_tighter(
    halves: tuple[Tensor, Tensor], petals: Program, float64: None
) -> None:
    """The evidence of the flowers that the guide was fitted to."""
    bounds = [
        values(importance_weighted(k), mixture.model, petals, halves[0], 20) for k in (1, 10, 100)
    ]
    assert_increasing(bounds)
    by_hand = log_weights(petals, halves[0], 20_000)
    for bound, num_particles in zip(bounds, (1, 10, 100), strict=True):
        groups = by_hand.reshape(num_particles, -1)
        assert_means_equal(bound, groups.logsumexp(0) - math.log(num_particles))


@pytest.mark.filterwarnings("ignore:Found auxiliary vars in the model")
def test_mixture_more_particles_are_tighter_on_held_out_flowers(
    halves: tuple[Tensor, Tensor], petals: Program, float64: None
) -> None:
    """The log of the held-out flowers' joint density under q. The fitted guide stands in the place
    of the prior too, so its own densities cancel."""
    train, held_out = halves

    def predictive(x: Tensor) -> None:
        fitted = mixture.parameters(petals(train))
        with pyro.plate("flower", len(x)):
            pyro.factor("x", mixture.log_density(x, *fitted))

    def guide(x: Tensor) -> None:
        petals(train)

    bounds = [values(importance_weighted(k), predictive, guide, held_out, 20) for k in (1, 10, 100)]
    assert_increasing(bounds)
    with pyro.plate("particles", 100_000, dim=-2):
        drawn = mixture.parameters(petals(train))
    densities = mixture.log_density(held_out, *drawn).sum(-1)
    assert_means_equal(bounds[0], densities)
    assert bounds[2].mean() < densities.logsumexp(0) - math.log(len(densities))
