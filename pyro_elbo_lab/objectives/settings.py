"""What an objective is, apart from the programs that it is given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pyro_elbo_lab.objectives.bounds import mean
from pyro_elbo_lab.objectives.gradients.unbiased import UNBIASED, Gradient, Method
from pyro_elbo_lab.objectives.particles.scored import Particles
from pyro_elbo_lab.objectives.particles.sobol import Sampler
from pyro_elbo_lab.objectives.plans import Route
from pyro_elbo_lab.objectives.target import Target
from pyro_elbo_lab.programs.enumeration import Site
from pyro_elbo_lab.programs.pair import Program
from pyro_elbo_lab.programs.structure.analysis import (
    Structure,
)
from pyro_elbo_lab.programs.structure.factors import (
    FactorKey,
)

LocalPlates = str | tuple[str, ...]
Weights = Literal["cells", "complete", "joint"]
Draw = Callable[..., Particles]
Source = Callable[[Draw, Structure, Program], Particles]
FindRoutes = Callable[[Structure, Mapping[FactorKey, Site]], Mapping[str, Route]]


@dataclass(frozen=True)
class Settings:
    """An objective's parts and options.

    Attributes:
        name: for messages.
        target: the bound, its outer mean, and the numbers of particles in both.
        num_inner: K.
        num_outer: M.
        gradient: the estimator that was asked for.
        method: the family of gradient estimators.
        weights: "cells", "complete" or "joint".
        local_plates: "auto", names of plates, or ().
        latent_scale: the present weight of the KL terms.
        source: where particles come from, None for the guide.
        find_routes: exact expectations in place of Monte Carlo terms.
        sampler: "random" or "sobol".
        vectorize: run all particles at once.
        least_nesting: at least so many dimensions are left to the program's plates.
    """

    name: str
    target: Target
    num_inner: int
    num_outer: int
    gradient: Gradient
    method: Method
    weights: Weights
    local_plates: LocalPlates
    latent_scale: float | Tensor
    source: Source | None
    find_routes: FindRoutes | None
    sampler: Sampler
    vectorize: bool
    least_nesting: int

    @property
    def num(self) -> int:
        """The number of particles."""
        return self.num_inner * self.num_outer

    @property
    def takes_any_sites(self) -> bool:
        """Whether particles may differ in their sites: their latents are prepared one by one."""
        return self.method is UNBIASED and self.source is None and self.sampler == "random"

    @property
    def is_average(self) -> bool:
        """Whether value and gradient are those of a mean over log-weights."""
        return self.is_linear and self.target.outer is mean and self.method is UNBIASED

    @property
    def is_linear(self) -> bool:
        """Whether the bound is linear in the log-weights."""
        if self.target.inner is mean:
            return True
        probe = torch.tensor([[-1.5, 2.0]])
        return self.num_inner == 1 and torch.allclose(self.target.inner(probe), probe[0])
