"""Bounds: pure functions from log-weights to the value that is maximised.

A bound F maps the log-weights l_1..l_K of K particles, stacked in dimension 0, to one value for
every index of the remaining dimensions (outer particles, cells of plates). It reads nothing but
the log-weights, so a new paper is usually one new function here.

The gradient estimators need two more things of a bound, and both follow from F alone:
its derivatives (`derivatives`) and its value had one particle not been drawn (`leave_one_out`).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Bound = Callable[[Tensor], Tensor]

__all__ = ["Bound", "derivatives", "leave_one_out", "log_mean_exp", "mean"]


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
    values, slope, _ = _profiles(bound, log_weights, others)
    return values, slope


def _profiles(bound: Bound, log_weights: Tensor, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F, dF/dl_k and d2F/dl_k2 where particle k alone has the log-weight own_k, for every k.

    The K problems are stacked in a new dimension, so two backward passes serve them all; the
    memory is K times that of the log-weights.
    """
    num_particles = log_weights.shape[0]
    is_own = torch.eye(num_particles, dtype=torch.bool, device=log_weights.device)
    is_own = is_own.reshape(num_particles, num_particles, *[1] * (log_weights.dim() - 1))
    with torch.enable_grad():
        point = own.detach().requires_grad_()
        values = bound(torch.where(is_own, point, log_weights.detach().unsqueeze(1)))
        (slope,) = torch.autograd.grad(values.sum(), point, create_graph=True)
        curvature = torch.zeros_like(point)
        if slope.requires_grad:
            (curvature,) = torch.autograd.grad(slope.sum(), point)
    return values.detach(), slope.detach(), curvature
