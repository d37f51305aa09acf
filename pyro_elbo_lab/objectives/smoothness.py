"""Whether the slope of a bound jumps, as that of a minimum, a median or a clipped weight does.

The doubly reparameterized gradient integrates the slope by parts, and takes what the slope changes
by from the curvature. Where the slope jumps the curvature has a spike that no draw ever meets, so
the gradient would be biased.
"""

import math

import torch
from torch import Tensor

from pyro_elbo_lab.objectives.bounds import Bound, log_mean_exp, mean

_REACH = 20.0  # nats to both sides of the other particles
_POINTS = (129, 17, 17, 17, 17)  # of the first search, and of those that look closer
_GOLDEN = (math.sqrt(5) - 1) / 2
_SMALLEST_JUMP = 1e-6  # of the largest slope


def has_kinks(bound: Bound, num_particles: int) -> bool:
    """Whether the slope of a bound jumps while one log-weight moves past the others.

    Between two points the slope changes by the integral of the curvature. Where that fails most, we
    look closer: what does not vanish there is a jump. A search along one line, of the log-weight
    that the bound listens to most, finds the kinks of functions of the usual kind, and proves
    nothing about others.

    Args:
        bound: a function that reduces dimension 0 and treats the others independently.
        num_particles: K.

    Example:
        >>> has_kinks(lambda log_weights: log_weights.amin(0), 4), has_kinks(log_mean_exp, 4)
        (True, False)
    """
    if bound in (mean, log_mean_exp):
        return False
    shares = _GOLDEN * torch.arange(1, num_particles + 1, dtype=torch.float64) % 1
    profile = torch.special.ndtri(shares).unsqueeze(1)  # spread like normal draws, in no order
    particle = _most_heard(bound, profile)
    reach = _REACH
    center = profile[particle].clone()
    for count in _POINTS:
        points = center + torch.linspace(-reach, reach, count, dtype=torch.float64)
        slope, curvature = _derivatives(bound, profile, particle, points)
        explained = (curvature[1:] + curvature[:-1]) / 2 * points.diff()
        unexplained = (slope.diff() - explained).abs()
        worst = int(unexplained.argmax())
        center, reach = points[worst : worst + 2].mean(), reach / (count - 1)
    return bool(unexplained[worst] > _SMALLEST_JUMP * slope.abs().max())


def _most_heard(bound: Bound, profile: Tensor) -> int:
    with torch.enable_grad():
        leaf = profile.clone().requires_grad_()
        (slope,) = torch.autograd.grad(bound(leaf).sum(), leaf)
    return int(slope.abs().argmax())


def _derivatives(
    bound: Bound, profile: Tensor, particle: int, points: Tensor
) -> tuple[Tensor, Tensor]:
    """Slope and curvature in one log-weight at each of its values."""
    is_own = (torch.arange(len(profile)) == particle).unsqueeze(1)
    with torch.enable_grad():
        own = points.clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            bound(torch.where(is_own, own, profile)).sum(), own, create_graph=True
        )
        curvature = torch.zeros_like(own)
        if slope.requires_grad:
            (curvature,) = torch.autograd.grad(slope.sum(), own)
    return slope.detach(), curvature
