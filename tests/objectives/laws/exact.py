"""What objectives and their gradient estimators are expected to give on a toy, by quadrature.

Bounds are written out again here, on log-weights (K, ...), so that they are checked and not copied.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.objectives.laws.toys import Nodes, Toy, quasi_random

Bound = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exact:
    """The expected value of an objective, and its expected gradient in the toy's parameters."""

    value: Tensor
    gradient: Tensor


Expectation = Callable[[Toy, int, int], Exact]


def mean(log_w: Tensor) -> Tensor:
    return log_w.sum(0) / len(log_w)


def importance(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def renyi(alpha: float) -> Bound:
    return lambda log_w: (log_w.exp() ** (1 - alpha)).mean(0).log() / (1 - alpha)


def combined(beta: float) -> Bound:
    return lambda log_w: beta * mean(log_w) + (1 - beta) * importance(log_w)


def at_temperature(log_w: Tensor, beta: float) -> Tensor:
    """The self-normalized estimate of E[l] under weights w^beta."""
    return (log_w.exp() ** beta * log_w).sum(0) / (log_w.exp() ** beta).sum(0)


def thermodynamic(num: int, *, right: bool) -> Bound:
    shift = 1 if right else 0

    def bound(log_w: Tensor) -> Tensor:
        return torch.stack([at_temperature(log_w, (j + shift) / num) for j in range(num)]).mean(0)

    return bound


def jackknife_of_two(log_w: Tensor) -> Tensor:
    return 2 * importance(log_w) - mean(log_w)


def expectation(nodes: Nodes, inner: Bound, outer: Bound = mean) -> Tensor:
    """E[B(shared_m + sum of F over cells)]."""
    cells = torch.stack([inner(p - q) for p, q in zip(nodes.log_p, nodes.log_q, strict=True)])
    if outer is mean:
        num_outer = len(nodes.shared)
        in_cells = (nodes.weight.unsqueeze(1) * cells).sum() / num_outer
        return in_cells + (nodes.weight[0] * nodes.shared).sum() / num_outer
    assert len(cells) == 1, "the cells of a non-linear outer bound would need noise of their own"
    return (nodes.weight[0] * outer(nodes.shared + cells[0])).sum()


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(gradient.values())).detach()


def of_bound(inner: Bound, outer: Bound = mean) -> Expectation:
    """The gradient of the expected value."""

    def exact(toy: Toy, num_inner: int, num_outer: int) -> Exact:
        value = expectation(toy.nodes(num_inner, num_outer, False), inner, outer)
        return Exact(value.detach(), flat(toy.gradient(value)))

    return exact


def normalized(log_w: Tensor) -> Tensor:
    return log_w.exp() / log_w.exp().sum(0)


def of_second_moment(log_w: Tensor) -> Tensor:
    """Of -log q in log E[w^2] / 2."""
    return normalized(2 * log_w) / 2


def of_right_sum(num: int) -> Bound:
    """Of -log q in the right Riemann sum, by the derivative of E_b[l] in the guide."""

    def weights(log_w: Tensor) -> Tensor:
        total = torch.zeros_like(log_w)
        for b in ((j + 1) / num for j in range(num)):
            tilted = normalized(b * log_w)
            covariance = tilted * (log_w - at_temperature(log_w, b))
            total = total + (tilted - (1 - b) * covariance) / num
        return total

    return weights


def of_wake(inner: Bound, weights: Bound = normalized, *, model: bool = True) -> Expectation:
    """Weighted log p and log q at fixed draws, which are to rise; without the model the negative of
    the latter, as the value is to fall."""

    def exact(toy: Toy, num_inner: int, num_outer: int) -> Exact:
        value = of_bound(inner)(toy, num_inner, num_outer).value
        nodes = toy.nodes(num_inner, num_outer, True)
        log_w = (nodes.log_p - nodes.log_q).detach()
        weight = torch.stack([weights(cell) for cell in log_w])
        learning = nodes.log_p + nodes.log_q if model else -nodes.log_q
        weighted = (weight * learning).sum(1).mean(1)  # (cells, N)
        return Exact(value, flat(toy.gradient((nodes.weight * weighted).sum())))

    return exact


def of_tail_adaptive(toy: Toy, num_inner: int, num_outer: int) -> Exact:
    """Two particles: 2/3 of the larger log-weight and 1/3 of the smaller, through the draws, and at
    fixed draws for the model."""
    assert num_inner == 2
    with quasi_random():
        live, fixed = (toy.nodes(num_inner, num_outer, at) for at in (False, True))
    log_w = live.log_p - live.log_q
    share = torch.where(log_w == log_w.amax(1, keepdim=True), 2 / 3, 1 / 3).to(log_w.dtype)
    value = (live.weight * (share * log_w).sum(1).mean(1)).sum()
    without_score = (share * (log_w + fixed.log_q)).sum(1).mean(1)
    return Exact(value.detach(), flat(toy.gradient((live.weight * without_score).sum())))


def of_partial(toy: Toy, num_inner: int, num_outer: int) -> Exact:
    """The bound of all particles for "theta", the mean of M bounds for the rest."""
    guide = expectation(toy.nodes(num_inner, num_outer, False), importance)
    model = expectation(toy.nodes(num_inner * num_outer, 1, False), importance)
    gradient = toy.gradient(guide)
    gradient["theta"] = toy.gradient(model)["theta"]
    return Exact(guide.detach(), flat(gradient))
