"""What is optimized: an inner bound in every cell, an outer one over independent estimates.

    T_m = sum of the shared factors + sum over cells of scale * F(l_cell,m,1..K),   m = 1..M
    value = B(T_1, ..., T_M)

B is the mean for most objectives. With F and B both log-mean-exp every exp(T_m) is an unbiased
estimate of p(x), so that the value is an importance-weighted bound over shared latents too; a
subsampled sum inside B would not be, and is refused.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_elbo_lab.objectives.bounds import Bound, derivatives, mean
from pyro_elbo_lab.objectives.particles.scored import Particles
from pyro_elbo_lab.programs.dims import subsampled_plate


@dataclass(frozen=True)
class Target:
    """F within cells, B over the outer particles.

    Attributes:
        inner: F.
        outer: B.
        upper: whether the value bounds log p(x) from above, and is minimized.
        num_inner: K, the number of log-weights that F is given.
        num_outer: M, the number of estimates that B is given.
    """

    inner: Bound
    outer: Bound = mean
    upper: bool = False
    num_inner: int = 1
    num_outer: int = 1

    @property
    def sign(self) -> int:
        """+1 where the value is maximized, -1 where it is minimized."""
        return -1 if self.upper else 1


def totals(particles: Particles, inner: Bound) -> Tensor:
    """T_m, the estimate of every outer particle: (M,), in nats."""
    num_outer = particles.num_outer
    total = particles.zero.expand(num_outer)
    for factor in particles.shared:
        total = total + factor.weight * factor.value.reshape(num_outer, -1).sum(1)
    for block in particles.cells:
        total = total + block.weight * inner(block.log_weights).reshape(num_outer, -1).sum(1)
    return total


def value(particles: Particles, target: Target) -> Tensor:
    """B(T_1, ..., T_M), a scalar in nats.

    Raises:
        ValueError: a subsampled plate inside a non-linear B.
    """
    if target.outer is not mean and particles.num_outer > 1:
        _check_full_data(particles)
    return target.outer(totals(particles, target.inner))


def outer_derivatives(particles: Particles, target: Target) -> tuple[Tensor, Tensor]:
    """dB/dT and diag(d2B/dT2), each (M,), detached."""
    if target.outer is mean:
        slope = torch.full_like(particles.zero.expand(particles.num_outer), 1.0)
        return slope / particles.num_outer, torch.zeros_like(slope)
    with torch.no_grad():
        estimates = totals(particles, target.inner)
    return derivatives(target.outer, estimates)


def along_outer(per_outer: Tensor, num_dims: int) -> Tensor:
    """(M,) with dimensions of size 1 to its right, `num_dims` in all."""
    return per_outer.reshape(-1, *[1] * (num_dims - 1))


def _check_full_data(particles: Particles) -> None:
    plate = subsampled_plate(site for run in particles.runs for site in run.sites.values())
    if plate:
        raise ValueError(
            f"Plate '{plate.name}' is subsampled ({plate.size} of {plate.full_size}) "
            "inside a bound over outer particles. A subsampled sum inside a logarithm is "
            "biased: it bounds nothing. Use all data, or a bound whose outer particles "
            "are averaged (outer='mean')."
        )
