"""What an objective decides once for a model and guide, and once for each structure that they have.

Many programs have the same sites at every run. Others do not: they loop over a minibatch, to the
end of its longest sequence, or branch on a latent. Such a pair has a plan for each structure, found
by the signature of a run, and the plans used last are kept.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro_elbo_lab.objectives.gradients.unbiased import Choice
from pyro_elbo_lab.objectives.particles.layout import Layout
from pyro_elbo_lab.objectives.particles.scored import Expectation
from pyro_elbo_lab.objectives.particles.sobol import Placement
from pyro_elbo_lab.programs.structure.analysis import Structure
from pyro_elbo_lab.programs.structure.factors import FactorKey

MOST_PLANS = 64
"""The plans that are kept of one model and guide: a thousand sites take a plan of a megabyte."""


@dataclass(frozen=True)
class Route:
    """How one latent's part of the objective is evaluated.

    Attributes:
        name: for `explain`.
        reason: why not something stronger.
        expectations: what takes the place of log-densities; empty for Monte Carlo.
    """

    name: str
    reason: str = ""
    expectations: Mapping[FactorKey, Expectation] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything that is decided for one structure of a model and guide."""

    structure: Structure
    layout: Layout
    choices: Mapping[str, Choice]
    routes: Mapping[str, Route]
    sobol: Placement | None

    @property
    def expectations(self) -> dict[FactorKey, Expectation]:
        """What takes the place of log-densities."""
        return {k: e for route in self.routes.values() for k, e in route.expectations.items()}

    @property
    def has_cells(self) -> bool:
        """Whether cells of plates have weights of their own."""
        return any(self.layout.cells.values())

    def latents_with(self, *estimators: str) -> frozenset[str]:
        """The latents that have one of these estimators."""
        return frozenset(n for n, choice in self.choices.items() if choice.estimator in estimators)

    def shares(self, name: str) -> bool:
        """Whether inner particles share a latent."""
        return name in self.structure.latents and name not in self.layout.local


@dataclass
class Plans:
    """The plans of a model and guide.

    Attributes:
        latest: of the last evaluation, which the next one is likely to repeat.
        branching: latents on which the program branches, so that its sites depend on them.
        nesting: dimensions to leave to plates, as far as is known.
        sums: whether some runs have sites that are summed out.
        averages: whether some runs have sites that the guide enumerates.
        branches: whether it enumerates some of them sequentially.
        drawn: the guide's sites that are drawn though they are marked to be enumerated.
    """

    latest: Plan
    branching: frozenset[str] = frozenset()
    nesting: int = 0
    sums: bool = False
    averages: bool = False
    branches: bool = False
    drawn: frozenset[str] = frozenset()
    _met: int = 0
    _kept: OrderedDict[tuple[Any, ...], Plan] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.keep(self.latest)

    def __len__(self) -> int:
        """The number of structures that were met."""
        return self._met

    def keep(self, plan: Plan) -> None:
        """Remember a plan, and forget that which was not used for longest, or all others if this
        one draws what they enumerate."""
        if not plan.structure.drawn <= self.drawn:
            self._kept.clear()
            self.drawn |= plan.structure.drawn
        self.averages |= bool(plan.structure.averaged)
        self.branches |= plan.structure.has_branches
        self._met += plan.structure.signature not in self._kept
        self._kept[plan.structure.signature] = self.latest = plan
        if len(self._kept) > MOST_PLANS:
            self._kept.popitem(last=False)

    def recall(self, signature: tuple[Any, ...]) -> Plan | None:
        """The plan of a structure, None if there is none."""
        if signature in self._kept:
            self._kept.move_to_end(signature)
        return self._kept.get(signature)

    def revise(self, change: Callable[[Plan], Plan]) -> None:
        """Put others in the place of all plans."""
        self._kept = OrderedDict((known, change(plan)) for known, plan in self._kept.items())
        self.latest = self._kept.get(self.latest.structure.signature) or change(self.latest)
