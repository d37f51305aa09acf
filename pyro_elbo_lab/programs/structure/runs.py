"""One run of a guide, and of the model on its draws."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger

from pyro_elbo_lab.programs.branches import Branch
from pyro_elbo_lab.programs.pair import Pair, Program
from pyro_elbo_lab.programs.rows import in_named_order, replayed
from pyro_elbo_lab.programs.structure.factors import is_subsample

Again = Callable[[Program, Messenger], tuple[Any, Any]]


def run(
    pair: Pair,
    while_guiding: AbstractContextManager[Any] | None = None,
    first_enumerated_dim: int | None = None,
    branch: Branch | None = None,
    particles: pyro.plate | None = None,
) -> tuple[Any, Any]:
    """Run the guide, then the model on the guide's draws.

    Args:
        pair: model and guide with their arguments.
        while_guiding: a handler that sees the guide's sites but not the model's.
        first_enumerated_dim: give the model's enumerated sites all their values at once, in this
            dimension and those to the left of it; if None they are drawn.
        branch: enumerate the guide's sites too, those that are enumerated sequentially in this
            branch; if None they are drawn.
        particles: a plate around both, of which enumeration is to know.

    Returns:
        The traces (model, guide), each with its subsample sites.

    Raises:
        ValueError: a plate of size 0.
    """
    model, guide = pair.model, pair.guide
    if branch is not None:
        guide = branch.unmarked(guide)
    if particles is not None:
        model, guide = particles(model), particles(guide)
    if first_enumerated_dim is not None:
        first_of_model = first_enumerated_dim if branch is None else None  # None: after the guide's
        model = poutine.enum(model, first_available_dim=first_of_model)
        if branch is not None:
            guide = poutine.enum(guide, first_available_dim=first_enumerated_dim)
    if branch is not None and not isinstance(poutine.unwrap(guide), GuideMessenger):
        guide = branch(guide)
    with naming_empty_plates():
        return _run(pair.with_programs(model, guide), while_guiding or nullcontext())


@contextmanager
def naming_empty_plates() -> Iterator[None]:
    """An error about a plate of size 0 says which."""
    try:
        yield
    except ZeroDivisionError as error:
        plate = _empty_plate(error)
        if plate is None:
            raise
        raise ValueError(
            f"Plate '{plate}' has size 0, expected at least 1: is the data that it ranges over "
            "empty?"
        ) from error


def _run(pair: Pair, while_guiding: AbstractContextManager[Any]) -> tuple[Any, Any]:
    unwrapped = poutine.unwrap(pair.guide)
    if isinstance(unwrapped, GuideMessenger):  # a GuideMessenger runs both at once
        with while_guiding, in_named_order():
            pair.guide(*pair.args, **pair.kwargs)
        subsamples = {n: s for n, s in unwrapped.trace.nodes.items() if is_subsample(s)}
        traces = unwrapped.get_traces()
        for trace in traces:
            trace.nodes.update(subsamples)
        return traces
    return replayed(pair, while_guiding)


def _empty_plate(error: ZeroDivisionError) -> str | None:
    """The plate whose constructor raised, None if something else did."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(frame.f_locals.get("self"), pyro.plate):
            return frame.f_locals.get("name")
    return None


def first_enumerated_dim(nesting: int, at_once: bool = False) -> int:
    """The rightmost dimension for enumerated sites: left of the plates and, if they run at once,
    the particles."""
    return -nesting - 2 if at_once else -nesting - 1
