"""What a row of the table of awkward programs is, and how one gets into it."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pyro.infer import ELBO
from torch import Tensor

from pyro_elbo_lab.objectives.lower_bounds import StandardELBO

Outcome = Literal["captured", "eager", "either"]
HERE = "# here"


def _nothing() -> dict[str, Tensor]:
    return {}


def _nowhere(call: int) -> AbstractContextManager:
    return nullcontext()


@dataclass(frozen=True)
class Run:
    """What SVI is given.

    Attributes:
        model: a Pyro model.
        guide: a Pyro guide.
        objective: the loss.
        args: positional arguments of model and guide.
        kwargs: their keyword arguments.
        each: call number -> the positional arguments of this call; may change what the user of
            the program would change between calls.
        around: call number -> a context that this call happens in.
        state: what the program itself changes, to be compared after the last call.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    objective: ELBO = field(default_factory=StandardELBO)
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    each: Callable[[int], tuple] | None = None
    around: Callable[[int], AbstractContextManager] = _nowhere
    state: Callable[[], Mapping[str, Tensor]] = _nothing

    def arguments(self, call: int) -> tuple:
        return self.each(call) if self.each else self.args


@dataclass(frozen=True)
class Program:
    """One row.

    Attributes:
        build: makes the program anew, in an empty param store.
        outcome: "captured", "eager", or "either" where both are right.
        reason: words that the warning has to contain if it runs eagerly.
        same_stream: whether it draws the same numbers under the same seed, compiled or not; where
            not, means over calls are compared.
        repeats: whether a run leaves the next one as it would have been; where not, there is no
            telling what the numbers of a call should be.
        settled: whether model and guide are run once before the first call, so that both sides
            start from the same parameters.
        compiles: whether the table compiles it for real too.
    """

    build: Callable[[], Run]
    outcome: Outcome
    reason: str = ""
    same_stream: bool = True
    repeats: bool = True
    settled: bool = True
    compiles: bool = False

    @property
    def name(self) -> str:
        return self.build.__name__.replace("_", " ")

    @property
    def place(self) -> str:
        """File and line of what is marked as the culprit, empty where nothing is."""
        lines, first = inspect.getsourcelines(self.build)
        marked = [first + i for i, line in enumerate(lines) if HERE in line]
        return f"{Path(inspect.getfile(self.build)).name}, line {marked[0]}" if marked else ""


PROGRAMS: dict[str, Program] = {}


def program(outcome: Outcome, **traits: Any) -> Callable[[Callable[[], Run]], Callable[[], Run]]:
    """Enter a function that builds a program into the table, under the function's name."""

    def enter(build: Callable[[], Run]) -> Callable[[], Run]:
        row = Program(build, outcome, **traits)
        assert row.name not in PROGRAMS, f"two programs are called '{row.name}'"
        PROGRAMS[row.name] = row
        return build

    return enter
