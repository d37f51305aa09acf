"""Score-function gradients on three Bernoulli latents: VIMCO, plates and the user's own baselines.

Everything expected is enumerated. Measured ratios of the variance of the guide's gradient (pytest
-s prints them, with standard errors; these are below 5 percent of each):

                                        K = 2    K = 5
    VIMCO / REINFORCE, cells            0.0068   0.00008
    VIMCO / REINFORCE, joint weights    0.0049   0.00008
    VIMCO of cells / of joint weights   0.25     0.14

At one particle there is no leave-one-out baseline. A baseline of the user's own that knows the mean
cost leaves 0.036 of the variance, the decaying average with beta = 0.9 leaves 0.040.
"""

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_elbo_lab import ImportanceWeightedELBO, StandardELBO
from tests.objectives.laws import exact, toys
from tests.objectives.laws.estimation import values_and_gradients, variance_ratio
from tests.support.tolerances import assert_mean_equals, critical_value

FAST: dict[str, Any] = {"vectorize_particles": True}
NUM = 1500
LOGITS = slice(1, None)  # after theta
plates = pytest.mark.parametrize("plate", [True, False], ids=["cells", "joint"])
particles = pytest.mark.parametrize("num_particles", [2, 5])


def log_densities(toy: toys.Toy, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log q of z (..., 3), element by element."""
    p = toy.parameters
    x = torch.tensor([0.8, -0.4, 1.5], dtype=torch.float64)
    log_q = torch.distributions.Bernoulli(logits=p["logits"]).log_prob(z)
    log_p = torch.distributions.Bernoulli(0.3).log_prob(z) + toys.log_normal(x, p["theta"] * z, 1.0)
    return log_p.detach(), log_q.detach()


def reinforce(toy: toys.Toy, num_particles: int, num: int, *, plate: bool) -> Tensor:
    """F * sum_k d log q(z_k) - sum_k w_k d log q(z_k): no baseline. (num, 3) in the logits."""
    prob = toy.parameters["logits"].detach().sigmoid()
    z = torch.bernoulli(prob.expand(num_particles, num, 3))
    log_p, log_q = log_densities(toy, z)
    log_w = log_p - log_q
    if not plate:
        log_w = log_w.sum(-1, keepdim=True)
    score = z - prob
    bound = log_w.logsumexp(0) - math.log(num_particles)
    return bound * score.sum(0) - (log_w.softmax(0) * score).sum(0)


@cache
def vimco(num_particles: int, *, plate: bool, joint: bool = False) -> Tensor:
    objective = ImportanceWeightedELBO(
        num_particles, gradient="score", local_plates=() if joint else "auto", **FAST
    )
    return values_and_gradients(objective, toys.discrete(plate=plate), NUM)[1]


@cache
def enumerated(num_particles: int, *, plate: bool) -> Tensor:
    return exact.of_bound(exact.importance)(toys.discrete(plate=plate), num_particles, 1).gradient


def report(what: str, ratio: tuple[float, float]) -> None:
    print(f"\n{what}: {ratio[0]:.3g} ({ratio[1]:.2g})")


def assert_below(ratio: tuple[float, float], limit: float) -> None:
    """Beyond doubt."""
    assert ratio[0] + critical_value() * ratio[1] < limit, ratio


@plates
@particles
def test_vimco_has_the_enumerated_mean(num_particles, plate):
    assert_mean_equals(vimco(num_particles, plate=plate), enumerated(num_particles, plate=plate))


@particles
def test_joint_weights_of_a_plate_have_the_enumerated_mean(num_particles):
    joint = vimco(num_particles, plate=True, joint=True)
    assert_mean_equals(joint, enumerated(num_particles, plate=False))


@plates
@particles
def test_vimco_has_less_noise_than_reinforce(num_particles, plate):
    plain = reinforce(toys.discrete(plate=plate), num_particles, 100_000, plate=plate)
    assert_mean_equals(plain, enumerated(num_particles, plate=plate)[LOGITS])
    ratio = variance_ratio(vimco(num_particles, plate=plate)[:, LOGITS], plain)
    weights = "cells" if plate else "joint weights"
    report(f"VIMCO / REINFORCE, {weights}, K = {num_particles}", ratio)
    assert_below(ratio, {2: 0.02, 5: 0.002}[num_particles])


@particles
def test_weights_of_cells_have_less_noise_than_joint_ones(num_particles):
    cells, joint = (vimco(num_particles, plate=True, joint=joint) for joint in (False, True))
    ratio = variance_ratio(cells[:, LOGITS], joint[:, LOGITS])
    report(f"VIMCO of cells / of joint weights, K = {num_particles}", ratio)
    assert_below(ratio, {2: 0.5, 5: 0.3}[num_particles])


# The user's own baselines


def with_baseline(toy: toys.Toy, options) -> toys.Toy:
    """The toy whose guide carries infer={"baseline": options()}."""

    def configure(site):
        return {"baseline": options()} if site["name"] == "z" else {}

    return replace(toy, guide=poutine.infer_config(toy.guide, configure))


STATES = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, 3)


def of_one_particle() -> tuple[Tensor, Tensor, Tensor]:
    """Of z_i = 0, 1: probability, cost log p - log q, and score in the logits, each (2, 3)."""
    toy = toys.discrete(plate=True)
    log_p, log_q = log_densities(toy, STATES)
    return log_q.exp(), log_p - log_q, STATES - toy.parameters["logits"].detach().sigmoid()


PROBABILITY, COST, SCORE = of_one_particle()
MEAN_COST = (PROBABILITY * COST).sum(0)
VARIANCE_OF_COST = (PROBABILITY * (COST - MEAN_COST) ** 2).sum(0)
GRADIENT = (PROBABILITY * COST * SCORE).sum(0)


def exact_variance(baseline: Tensor | float, noise: Tensor | float = 0.0) -> Tensor:
    """Of (cost - baseline) * score, for an independent baseline of this mean and variance."""
    squares = (COST - baseline) ** 2 + noise
    return (PROBABILITY * squares * SCORE**2).sum(0) - GRADIENT**2


BETA = 0.9
NOISE_OF_AVERAGE = (1 - BETA) / (1 + BETA) * VARIANCE_OF_COST


class Constants(torch.nn.Module):
    """One number per element, whose value ignores the input but whose gradient does not."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.numbers = torch.nn.Parameter(numbers.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        return self.numbers + (inputs - inputs.detach()).sum()


def live_input() -> Tensor:
    """The guide's own parameter: a path that the baseline's loss must not take."""
    return pyro.param("logits").unsqueeze(-1)


def options_of(name: str, mean_cost: Tensor = MEAN_COST):
    """A baseline that knows the mean cost, or learns it."""
    network = Constants(mean_cost)
    return {
        "value": lambda: {"baseline_value": mean_cost},
        "network": lambda: {"nn_baseline": network, "nn_baseline_input": live_input()},
        "average": lambda: {"use_decaying_avg_baseline": True, "baseline_beta": BETA},
    }[name]


baselines = pytest.mark.parametrize("name", ["value", "network", "average"])


@baselines
def test_baseline_takes_noise_off_one_particle(name):
    """By the enumerated factor; the mean of the gradient stays."""
    noise = NOISE_OF_AVERAGE if name == "average" else 0.0
    toy = with_baseline(toys.discrete(plate=True), options_of(name))
    gradients = values_and_gradients(StandardELBO(1, "score"), toy, 2100)[1][100:, LOGITS]
    assert_mean_equals(gradients, GRADIENT)
    of_batches = ((gradients - GRADIENT) ** 2).reshape(-1, 20, 3).mean(1)
    assert_mean_equals(of_batches, exact_variance(MEAN_COST, noise))
    factor = exact_variance(MEAN_COST, noise).sum() / exact_variance(0.0).sum()
    report(f"variance with baseline '{name}' / without", (factor.item(), 0.0))
    assert factor < 0.05


def test_no_baseline_has_the_enumerated_noise():
    gradients = values_and_gradients(StandardELBO(1, "score"), toys.discrete(plate=True), 2000)[1]
    assert_mean_equals((gradients[:, LOGITS] - GRADIENT) ** 2, exact_variance(0.0))


@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "sequential"])
@plates
@baselines
def test_baseline_keeps_the_mean_of_importance_weighted_gradients(name, plate, vectorize):
    """Also where it is of no use, as here."""
    useless = torch.tensor([0.7, -0.3, 0.2] if plate else 0.7, dtype=torch.float64)
    toy = with_baseline(toys.discrete(plate=plate), options_of(name, useless))
    objective = ImportanceWeightedELBO(2, 3, gradient="score", vectorize_particles=vectorize)
    gradients = values_and_gradients(objective, toy, 400 if vectorize else 150)[1]
    assert_mean_equals(gradients, enumerated(2, plate=plate))


def test_baseline_of_joint_weights_is_summed_over_the_plate():
    toy = with_baseline(toys.discrete(plate=True), options_of("value"))
    objective = ImportanceWeightedELBO(2, 3, "score", (), **FAST)
    assert_mean_equals(values_and_gradients(objective, toy, 400)[1], enumerated(2, plate=False))


def test_network_learns_the_mean_cost():
    """Its excess squared error, above the variance of the cost, falls to a fiftieth."""
    network = Constants(torch.zeros(3, dtype=torch.float64))
    toy = with_baseline(
        toys.discrete(plate=True),
        lambda: {"nn_baseline": network, "nn_baseline_input": live_input()},
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)

    def excess():
        with torch.no_grad():
            predicted = network(torch.zeros(3, 1, dtype=torch.float64))
            squared = PROBABILITY * (COST - predicted) ** 2
            return (squared.sum() - VARIANCE_OF_COST.sum()).item()

    objective = StandardELBO(1, "score")
    objective.loss(toy.model, toy.guide)
    before = excess()
    for _ in range(200):
        optimizer.zero_grad()
        objective.loss_and_grads(toy.model, toy.guide)
        optimizer.step()
    assert 0 <= excess() < before / 50


def test_decaying_average_is_that_of_past_costs():
    """Plates apart: its sum over the plate is an average of values of the objective."""
    options = {"use_decaying_avg_baseline": True, "baseline_beta": 0.5}
    toy = with_baseline(toys.discrete(plate=True), lambda: options)
    objective = StandardELBO(1, "score")
    store = pyro.get_param_store()
    average = 0.0
    for _ in range(3):
        value = -objective.loss_and_grads(toy.model, toy.guide)
        average = 0.5 * value + 0.5 * average
        found = store["__baseline_avg_downstream_cost_z"]
        assert found.shape == (3,)
        assert found.sum().item() == pytest.approx(average)


MODULE = torch.nn.Identity()
INPUT = torch.zeros(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_decaying_average": True}, r"site 'z' has the unknown options \['use_decaying_ave"),
        (
            {"nn_baseline": MODULE, "nn_baseline_input": INPUT, "baseline_value": INPUT},
            "site 'z' has nn_baseline and baseline_value: choose one",
        ),
        ({"nn_baseline": MODULE}, "site 'z': nn_baseline and nn_baseline_input go together"),
        ({"nn_baseline_input": INPUT}, "site 'z': nn_baseline and nn_baseline_input go together"),
        ({"baseline_value": torch.zeros(2)}, r"baseline of site 'z' has shape .*2.* to \(1, 3\)"),
        (
            {"nn_baseline": MODULE, "nn_baseline_input": torch.zeros(3, 1)},
            "without event dimensions",
        ),
    ],
)
def test_wrong_baselines_are_refused(options, message):
    toy = with_baseline(toys.discrete(plate=True), lambda: options)
    with pytest.raises(ValueError, match=message):
        StandardELBO(1, "score").loss_and_grads(toy.model, toy.guide)


def test_decaying_average_of_plates_that_change_size_is_refused():
    def program(size):
        with pyro.plate("data", size):
            options = {"use_decaying_avg_baseline": True}
            pyro.sample("z", dist.Bernoulli(0.5), infer={"baseline": options})

    objective = StandardELBO(1, "score")
    objective.loss_and_grads(program, program, 3)
    with pytest.raises(ValueError, match=r"average of site 'z' has shape \(3,\) .* now .* \(2,\)"):
        objective.loss_and_grads(program, program, 2)
