"""Programs that read what may change between calls, or that leave something behind, by kinds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO
from torch.distributions import constraints

from pyro_elbo_lab.objectives.lower_bounds import StandardELBO

X = torch.tensor([0.4, -1.1, 2.3, 0.9])


@dataclass(frozen=True)
class Case:
    """What is called, and what happens in between.

    Attributes:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        change: what the user of the program does between the second call and the third.
        seen: what the user of the program can see of it after a call, beside the loss.
        objective: the loss.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple = ()
    change: Callable[[], Any] = lambda: None
    seen: Callable[[], Any] = lambda: None
    objective: ELBO | None = None


Outcome = Literal["seen", "eager", "captured"]
"""A change is seen, and perhaps captured anew; or the program runs eagerly from the first call on,
with a warning; or it is captured and stays so without a word."""


@dataclass(frozen=True)
class Row:
    """One program.

    Attributes:
        build: makes it anew.
        outcome: what is expected.
        reason: words that the warning has to contain if it runs eagerly.
        moves: whether every run of it moves something on, as a counter: then its numbers depend on
            how often it has been tried out before.
    """

    build: Callable[[], Case]
    outcome: Outcome
    reason: str
    moves: bool

    @property
    def name(self) -> str:
        module = self.build.__module__.rpartition(".")[2]
        return f"{module}: {self.build.__name__.replace('_', ' ')}"


ROWS: dict[str, Row] = {}


def sneaky(
    outcome: Outcome, reason: str = "", moves: bool = False
) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Enter a function that builds a program into the table, under its name."""

    def enter(build: Callable[[], Case]) -> Callable[[], Case]:
        row = Row(build, outcome, reason, moves)
        assert row.name not in ROWS, f"two programs are called '{row.name}'"
        ROWS[row.name] = row
        return build

    return enter


def gaussian(mean: Any = 0.0, sd: Any = 1.0, x: torch.Tensor = X) -> torch.Tensor:
    """z ~ N(0, 1), x ~ N(z + mean, sd)."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z + mean, sd).expand(x.shape).to_event(x.dim()), obs=x)
    return z


def guide(*args: Any, **kwargs: Any) -> torch.Tensor:
    loc = pyro.param("loc", torch.tensor(0.2))
    sd = pyro.param("sd", torch.tensor(0.7), constraint=constraints.positive)
    return pyro.sample("z", dist.Normal(loc, sd))


def reading(read: Callable[[], Any], change: Callable[[], Any] = lambda: None) -> Case:
    """The standard deviation of the data is read from somewhere, and changed between calls."""

    def model() -> None:
        gaussian(0.0, read())

    return Case(model, guide, change=change)


def default_objective(case: Case) -> ELBO:
    return case.objective or StandardELBO()
