"""Steps of `pyro.infer.SVI`, one after the other, and what a fit asks of any way to take steps."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from pyro.infer import ELBO, SVI
from pyro.optim import PyroOptim
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from pyro_elbo_lab.compilation.captured import parameters
from pyro_elbo_lab.inference.fitting.update_rules import move_schedules
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.state import random_states_kept

__all__ = ["Average", "Rewindable", "Steps", "SviSteps", "Task", "svi_step"]

Program = Callable[..., Any]


class Task(NamedTuple):
    """What is to be fitted.

    Attributes:
        pair: model and guide, with the arguments of the first step.
        objective: the loss.
        optimizer: as SVI takes it.
        batches: positional arguments, one tuple a step, without end.
        varying: whether arguments differ from step to step.
        average_from: the step from which parameters are averaged, or None.
        num_steps: how many steps are planned.
        one_by_one: whether somebody looks on after every step.
    """

    pair: Pair
    objective: ELBO
    optimizer: PyroOptim
    batches: Iterator[tuple]
    varying: bool
    average_from: int | None
    num_steps: int
    one_by_one: bool

    def svi(self) -> SVI:
        """Pyro's own way to take a step."""
        return SVI(self.pair.model, self.pair.guide, self.optimizer, loss=self.objective)


class Steps(Protocol):
    """A way to take steps.

    Attributes:
        note: how steps are taken, and why.
        seconds: what it took to capture and compile.
        latest: the arguments of the latest step.
    """

    note: str
    seconds: float

    @property
    def latest(self) -> tuple: ...

    def take(self, losses: list[float]) -> None:
        """Take one step or some, and add their losses, of which the last may be NaN. If earlier
        steps turn out to be wrong, they are undone instead, and their losses removed."""

    def confirm(self, losses: list[float]) -> bool:
        """Whether the steps so far stand. If not, they are undone as by `take`."""

    def settle(self) -> None:
        """Bring the parameters and the optimizer up to date."""

    def averages(self) -> dict[str, Tensor]:
        """The averaged unconstrained parameters by name, if they were asked for."""


class Rewindable:
    """The arguments of the steps, which can be gone through again from a mark.

    Args:
        forever: positional arguments, one tuple a step, without end.
        first: the first of them.
        keep: whether they differ and are to be kept.

    Attributes:
        num_bytes: of what is kept.
        latest: the arguments of the latest step, of the first before there is one.
    """

    def __init__(self, forever: Iterator[tuple], first: tuple, keep: bool = False) -> None:
        self._forever = forever
        self._keep = keep
        self._kept: list[tuple[tuple, Tensor | None]] = []
        self._again: deque[tuple[tuple, Tensor | None]] = deque()
        self.num_bytes = 0
        self.latest = first

    def next(self) -> tuple:
        """The arguments of the next step."""
        if self._again:
            batch, state = self._again.popleft()
            if state is not None:
                torch.set_rng_state(state)
            self.latest = batch
            return batch
        if not self._keep:
            self.latest = next(self._forever)
            return self.latest
        before = torch.get_rng_state()
        batch = next(self._forever)
        after = torch.get_rng_state()  # a DataLoader draws its order when an epoch begins
        copied = tree_map_only(Tensor, lambda x: x.detach().clone(), batch)
        self._kept.append((copied, None if torch.equal(before, after) else after))
        self.num_bytes += _size(batch)
        self.latest = batch
        return batch

    def mark(self) -> None:
        """Keep the last ones and those to come, and no earlier ones."""
        del self._kept[:-1]
        self.num_bytes = sum(_size(batch) for batch, _ in self._kept)

    def put_back(self) -> None:
        """The last ones come again; keep nothing more."""
        if self._keep:
            self._again.appendleft((self._kept[-1][0], None))
        self._kept, self._keep = [], False

    def rewind(self) -> None:
        """Go through everything again from the last ones before the mark; keep nothing more."""
        self._again.extendleft(reversed(self._kept))
        self._kept, self._keep = [], False


class Average:
    """The mean of the parameters over the last steps.

    Args:
        first: the number of the first step that counts; None for no average.
        means: of earlier steps.
    """

    def __init__(self, first: int | None, means: Mapping[str, Tensor] | None = None) -> None:
        self.first = first
        self.means = dict(means or {})

    def counts(self, number: int) -> bool:
        """Whether the parameters after this step count."""
        return self.first is not None and number >= self.first

    def add(self, number: int, leaves: Mapping[str, Tensor]) -> None:
        """Count the parameters after a step that counts."""
        assert self.first is not None
        for name, leaf in leaves.items():
            mean = self.means.setdefault(name, leaf.detach().clone())
            mean += (leaf.detach() - mean) / (number - self.first + 1)


class SviSteps:
    """Steps of `pyro.infer.SVI`.

    Args:
        task: what is to be fitted.
        note: how steps are taken, and why.
        batches: the arguments; by default those of the task.
        means: averages so far.
    """

    def __init__(
        self,
        task: Task,
        note: str,
        batches: Rewindable | None = None,
        means: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.note = note
        self.seconds = 0.0
        self._task = task
        self._svi = task.svi()
        self._batches = batches or Rewindable(task.batches, task.pair.args)
        self._average = Average(task.average_from, means)

    @property
    def latest(self) -> tuple:
        """The arguments of the latest step."""
        return self._batches.latest

    def take(self, losses: list[float]) -> None:
        """Take one step."""
        loss = svi_step(self._svi, self._task, self._batches.next())
        if self._average.counts(len(losses)):
            self._average.add(len(losses), _leaves(self._task))
        losses.append(loss)

    def confirm(self, losses: list[float]) -> bool:
        """They stand."""
        return True

    def settle(self) -> None:
        """Everything is up to date."""

    def averages(self) -> dict[str, Tensor]:
        """The averaged unconstrained parameters by name, if they were asked for."""
        return self._average.means


def svi_step(svi: SVI, task: Task, batch: tuple) -> float:
    """One step of SVI and of the learning rate schedule; its loss."""
    loss = svi.step(*batch, **task.pair.kwargs)
    move_schedules(task.optimizer, loss)
    return loss


def _leaves(task: Task) -> dict[str, Tensor]:
    with random_states_kept():
        names, leaves = parameters(task.objective, task.pair)
    return dict(zip(names, leaves, strict=True))


def _size(batch: tuple) -> int:
    return sum(x.numel() * x.itemsize for x in tree_leaves(batch) if isinstance(x, Tensor))
