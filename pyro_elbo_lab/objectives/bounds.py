"""Bounds: pure functions from log-weights to the value that is maximized.

A bound F maps the log-weights l_1..l_K of K particles, stacked in dimension 0, to one value for
every index of the remaining dimensions (outer particles, cells of plates). It reads nothing but
the log-weights, so a new paper is usually one new function here.

The gradient estimators need two more things of a bound, and both follow from F alone:
its derivatives (`derivatives`) and its value had one particle not been drawn (`leave_one_out`).
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations, pairwise

import torch
from torch import Tensor

Bound = Callable[[Tensor], Tensor]

_MOST_ELEMENTS = 2**24  # of one tensor in `_profiles`

__all__ = [
    "Bound",
    "chi",
    "chi_potential",
    "combined",
    "derivatives",
    "jackknife",
    "leave_one_out",
    "log_mean_exp",
    "log_uniform_schedule",
    "mean",
    "renyi",
    "replaced",
    "self_normalized",
    "tail_adaptive",
    "thermodynamic",
    "thermodynamic_potential",
    "uniform_schedule",
]


def mean(log_weights: Tensor) -> Tensor:
    """The evidence lower bound: F(l) = mean_k l_k.

    Args:
        log_weights: log p(x, z_k) - log q(z_k), shape (K, ...), in nats.

    Returns:
        The bound, shape (...), in nats.

    References:
        Jordan, Ghahramani, Jaakkola and Saul (1999), An introduction to variational methods
        for graphical models.

    Example:
        >>> mean(torch.tensor([0.0, 2.0]))
        tensor(1.)
    """
    return log_weights.mean(0)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """The importance-weighted bound: F(l) = log mean_k exp(l_k).

    It increases with K and tends to log p(x) as K grows.

    Args:
        log_weights: log p(x, z_k) - log q(z_k), shape (K, ...), in nats.

    Returns:
        The bound, shape (...), in nats.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders.

    Example:
        >>> log_mean_exp(torch.tensor([0.0, 2.0]))
        tensor(1.4338)
    """
    return log_weights.logsumexp(0) - math.log(log_weights.shape[0])


def renyi(alpha: float) -> Bound:
    """The variational Renyi bound: F(l) = log mean_k exp((1 - alpha) l_k) / (1 - alpha).

    alpha = 0 is the importance-weighted bound, alpha = 1 (the limit) the ELBO.

    References:
        Li and Turner (2016), Renyi divergence variational inference.

    Example:
        >>> renyi(0.5)(torch.tensor([0.0, 2.0]))
        tensor(1.2402)
    """
    if alpha == 1.0:
        return mean
    if alpha == 0.0:
        return log_mean_exp
    return partial(_power_mean, power=1 - alpha)


def _power_mean(log_weights: Tensor, power: float) -> Tensor:
    return log_mean_exp(power * log_weights) / power


def chi(n: float) -> Bound:
    """The chi upper bound CUBO_n: F(l) = log mean_k exp(n l_k) / n, for n >= 1.

    References:
        Dieng, Tran, Ranganath, Paisley and Blei (2017), Variational inference via chi upper bound
        minimization.

    Example:
        >>> chi(2)(torch.tensor([0.0, 2.0]))
        tensor(1.6625)
    """
    return renyi(1.0 - n)


def combined(beta: float) -> Bound:
    """F(l) = beta mean_k l_k + (1 - beta) log mean_k exp(l_k).

    References:
        Rainforth et al. (2018), Tighter variational bounds are not necessarily better (CIWAE).

    Example:
        >>> combined(0.5)(torch.tensor([0.0, 2.0]))
        tensor(1.2169)
    """
    return partial(_combined, beta=beta)


def _combined(log_weights: Tensor, beta: float) -> Tensor:
    return beta * mean(log_weights) + (1 - beta) * log_mean_exp(log_weights)


def thermodynamic(schedule: tuple[float, ...], *, right: bool = False) -> Bound:
    """The thermodynamic variational objective, a Riemann sum over inverse temperatures.

    F(l) = sum_j (b_{j+1} - b_j) sum_k softmax(b l)_k l_k, where b is b_j in the left sum and
    b_{j+1} in the right one. For every l: left sum <= log mean_k exp(l_k) <= right sum, as both
    approximate the integral of a rising derivative.

    Args:
        schedule: 0 = b_0 < ... < b_J = 1.
        right: the right sum.

    Raises:
        ValueError: a schedule that does not rise from 0 to 1.

    References:
        Masrani, Le and Wood (2019), The thermodynamic variational objective.

    Example:
        >>> thermodynamic((0.0, 0.5, 1.0))(torch.tensor([0.0, 2.0]))
        tensor(1.2311)
    """
    pairs = list(pairwise(schedule))
    rises = all(low < high for low, high in pairs)
    if len(schedule) < 2 or schedule[0] != 0 or schedule[-1] != 1 or not rises:
        raise ValueError(f"schedule={schedule!r} does not rise from 0 to 1")
    return partial(_riemann_sum, pairs=pairs, right=right)


def _riemann_sum(log_weights: Tensor, pairs: list[tuple[float, float]], right: bool) -> Tensor:
    return sum(
        (
            (high - low) * (((high if right else low) * log_weights).softmax(0) * log_weights)
            for low, high in pairs
        ),
        torch.zeros_like(log_weights),
    ).sum(0)


def uniform_schedule(num_intervals: int) -> tuple[float, ...]:
    """Inverse temperatures at equal distances, from 0 to 1.

    Example:
        >>> uniform_schedule(4)
        (0.0, 0.25, 0.5, 0.75, 1.0)
    """
    return tuple(j / num_intervals for j in range(num_intervals + 1))


def log_uniform_schedule(num_intervals: int, first: float) -> tuple[float, ...]:
    """0, then inverse temperatures whose logarithms are at equal distances, from `first` to 1.

    Example:
        >>> log_uniform_schedule(3, 0.01)
        (0.0, 0.01, 0.1, 1.0)
    """
    if num_intervals == 1:
        return (0.0, 1.0)
    exponents = (1 - j / (num_intervals - 1) for j in range(num_intervals))
    return (0.0, *(first**exponent for exponent in exponents))


def chi_potential(n: float) -> Bound:
    """G(l) with dG/dl = (n - 1) / n softmax(n l): the weights with which log q enters the gradient
    of the chi bound, d log E_q[w^n] / n = -sum_k dG/dl_k d log q(z_k) for many particles.

    Example:
        >>> derivatives(chi_potential(2), torch.zeros(2))[0]
        tensor([0.2500, 0.2500])
    """
    return partial(_chi_potential, n=n)


def _chi_potential(log_weights: Tensor, n: float) -> Tensor:
    return (n - 1) / n * _power_mean(log_weights, n)


def thermodynamic_potential(schedule: tuple[float, ...]) -> Bound:
    """G(l) with dG/dl = sum_j (b_{j+1} - b_j) [p - (1 - b) p (l - E_p[l])], p = softmax(b l) and
    b = b_{j+1}: the weights with which log q enters the gradient of the right Riemann sum.

    With p the density proportional to exp(b l) q, the derivative of E_p[l] in the guide's
    parameters is -E_p[d log q] + (1 - b) Cov_p(l, d log q).

    References:
        Masrani, Le and Wood (2019), The thermodynamic variational objective, equation 12.

    Example:
        >>> derivatives(thermodynamic_potential((0.0, 1.0)), torch.zeros(2))[0]
        tensor([0.5000, 0.5000])
    """
    return partial(_thermodynamic_potential, pairs=list(pairwise(schedule)))


def _thermodynamic_potential(log_weights: Tensor, pairs: list[tuple[float, float]]) -> Tensor:
    total = torch.zeros_like(log_weights[0])
    for low, b in pairs:
        average = ((b * log_weights).softmax(0) * log_weights).sum(0)
        tilted = log_mean_exp(b * log_weights) / b**2 - (1 - b) / b * average
        total = total + (b - low) * tilted
    return total


def self_normalized(log_weights: Tensor) -> Tensor:
    """The evidence upper bound by self-normalized importance sampling: F(l) = sum_k w_k l_k with
    w = softmax(l). It tends to log p(x) + KL(p || q) from below as K grows.

    References:
        Dieng and Paisley (2019), Reweighted expectation maximization.

    Example:
        >>> self_normalized(torch.tensor([0.0, 2.0]))
        tensor(1.7616)
    """
    return thermodynamic((0.0, 1.0), right=True)(log_weights)


def jackknife(order: int) -> Bound:
    """The jackknife estimate of log p(x): importance-weighted bounds of K, K - 1, ..., K - order
    particles combined so that bias terms up to K^-order cancel.

    F = sum_j c_j mean_S F_IW(l_S) over all subsets S of K - j particles, with
    c_j = (-1)^j (K - j)^order / ((order - j)! j!). It is no bound: its bias has either sign.

    Args:
        order: below the number of particles; the sum has K choose `order` terms.

    References:
        Nowozin (2018), Debiasing evidence approximations: on importance-weighted autoencoders and
        jackknife variational inference.

    Example:
        >>> jackknife(1)(torch.tensor([0.0, 2.0]))  # 2 * 1.4338 - (0 + 2) / 2
        tensor(1.8676)
    """
    return partial(_jackknife, order=order)


def _jackknife(log_weights: Tensor, order: int) -> Tensor:
    num_particles = log_weights.shape[0]
    total = torch.zeros_like(log_weights[0])
    for left_out in range(order + 1):
        kept = list(combinations(range(num_particles), num_particles - left_out))
        subsets = log_weights[torch.tensor(kept, device=log_weights.device)].transpose(0, 1)
        coefficient = (-1) ** left_out * (num_particles - left_out) ** order
        coefficient /= math.factorial(order - left_out) * math.factorial(left_out)
        total = total + coefficient * log_mean_exp(subsets).mean(0)
    return total


def tail_adaptive(beta: float = -1.0) -> Bound:
    """F(l) = sum_k c_k l_k with constant c_k proportional to (share of l_j >= l_k)^beta.

    As the share is a rank, the largest weight counts most however heavy the tail is. Only its
    derivative c means anything: follow it along the draws with the doubly reparameterized
    estimator, which adds nothing for a bound without curvature.

    References:
        Wang, Liu and Liu (2018), Variational inference with tail-adaptive f-divergence.

    Example:
        >>> tail_adaptive()(torch.tensor([0.0, 2.0]))  # ranks 2 and 1 of 2: c = 1/3 and 2/3
        tensor(1.3333)
    """
    return partial(_tail_adaptive, beta=beta)


def _tail_adaptive(log_weights: Tensor, beta: float) -> Tensor:
    fixed = log_weights.detach()
    at_least = (fixed.unsqueeze(0) >= fixed.unsqueeze(1)).to(fixed.dtype).mean(1)
    coefficients = at_least**beta
    return (coefficients / coefficients.sum(0) * log_weights).sum(0)


def derivatives(bound: Bound, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Slope v = dF/dl and curvature h = diag(d2F/dl2) of a bound, both detached.

    For the importance-weighted bound v is the softmax w of the log-weights and h = w (1 - w).

    Args:
        bound: a function that reduces dimension 0 and treats the others independently.
        log_weights: shape (K, ...).

    Returns:
        v and h, each of the shape of `log_weights`.

    Example:
        >>> derivatives(log_mean_exp, torch.zeros(2))
        (tensor([0.5000, 0.5000]), tensor([0.2500, 0.2500]))
    """
    if bound is log_mean_exp:  # what follows would be right too, but takes K times as long
        slope = log_weights.detach().softmax(0)
        return slope, slope * (1 - slope)
    _, slope, curvature = _profiles(bound, log_weights, log_weights)
    return slope, curvature


def leave_one_out(bound: Bound, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of a bound in which particle k does not know its own draw.

    Particle k's log-weight is replaced by the mean of the others, so row k of both results is
    independent of z_k and may stand beside log q(z_k) as a baseline. For the importance-weighted
    bound this is VIMCO's geometric-mean baseline, for the ELBO the leave-one-out mean of RLOO.
    A single particle has no others: its baseline is 0.

    Args:
        bound: a function that reduces dimension 0 and treats the others independently.
        log_weights: shape (K, ...).

    Returns:
        F and dF/dl_k at the replaced log-weights, each (K, ...), detached.

    References:
        Mnih and Rezende (2016), Variational inference for Monte Carlo objectives;
        Kool, van Hoof and Welling (2019), Buy 4 REINFORCE samples, get a baseline for free.

    Example:
        >>> leave_one_out(mean, torch.tensor([0.0, 2.0]))
        (tensor([2., 0.]), tensor([0.5000, 0.5000]))
    """
    num_particles = log_weights.shape[0]
    if num_particles == 1:
        return torch.zeros_like(log_weights), derivatives(bound, log_weights)[0]
    others = (log_weights.sum(0) - log_weights) / (num_particles - 1)
    return replaced(bound, log_weights, others)


def replaced(bound: Bound, log_weights: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Value and slope of a bound where one log-weight at a time has another value.

    Args:
        bound: a function that reduces dimension 0 and treats the others independently.
        log_weights: shape (K, ...).
        own: the other values, shape (K, ...).

    Returns:
        F and dF/dl_k where l_k alone is replaced by own_k, for every k: each (K, ...), detached.

    Example:
        >>> replaced(mean, torch.zeros(2), torch.tensor([1.0, 2.0]))
        (tensor([0.5000, 1.0000]), tensor([0.5000, 0.5000]))
    """
    values, slope, _ = _profiles(bound, log_weights, own)
    return values, slope


def _profiles(bound: Bound, log_weights: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F, dF/dl_k and d2F/dl_k2 where particle k alone has the log-weight own_k, for every k.

    The problems are stacked in a new dimension, as many at a time as fit into `_MOST_ELEMENTS`.
    """
    num_particles = log_weights.shape[0]
    chunk = max(1, _MOST_ELEMENTS // max(1, log_weights.numel()))
    parts = [
        _profile(bound, log_weights.detach(), own.detach()[start : start + chunk], start)
        for start in range(0, num_particles, chunk)
    ]
    values, slope, curvature = (torch.cat(column) for column in zip(*parts, strict=True))
    return values, slope, curvature


def _profile(
    bound: Bound, log_weights: Tensor, own: Tensor, start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`_profiles` of the particles start, start + 1, ..., whose log-weights become `own`."""
    particle = torch.arange(log_weights.shape[0], device=log_weights.device)
    is_own = particle.unsqueeze(1) == particle[start : start + own.shape[0]]
    is_own = is_own.reshape(*is_own.shape, *[1] * (log_weights.dim() - 1))
    with torch.enable_grad():
        point = own.clone().requires_grad_()
        values = bound(torch.where(is_own, point, log_weights.unsqueeze(1)))
        (slope,) = torch.autograd.grad(values.sum(), point, create_graph=True)
        curvature = torch.zeros_like(point)
        if slope.requires_grad:
            (curvature,) = torch.autograd.grad(slope.sum(), point)
    return values.detach(), slope.detach(), curvature
