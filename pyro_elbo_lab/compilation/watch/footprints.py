"""What a run of a program leaves behind in Python, which a graph would not."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_elbo_lab.compilation.capture.guard import CaptureError
from pyro_elbo_lab.compilation.watch.activity import Activity
from pyro_elbo_lab.compilation.watch.environment import Watch, contents
from pyro_elbo_lab.compilation.watch.reach import TooMuchError

__all__ = ["refuse_changes", "refuse_footprints", "refuse_what_is_too_much"]


def refuse_footprints(
    activity: Activity, run: Callable[[], Any], args: tuple, kwargs: dict, **programs: Any
) -> None:
    """Run a program, and refuse it if this leaves something behind at every run.

    Things that are set up once, such as caches, are no reason: a second run leaves them alone.

    Args:
        activity: what an earlier run has shown; adds to it.
        run: runs the programs.
        args: positional arguments, which it may change too.
        kwargs: keyword arguments.
        programs: model, guide and objective, by name.

    Raises:
        CaptureError: something changes that outlives the run, or the program reads what nothing can
            watch, such as a file or the clock.
    """
    with refuse_what_is_too_much():
        for value in tree_leaves((args, kwargs)):
            if not isinstance(value, Tensor):
                contents(value)
        held = _Held(args, kwargs)  # which is looked at as long as it is there
        before = Watch(activity, **programs, arguments=held)
        for _ in range(3):
            names = activity.names
            activity.unseen.clear()
            before.look()
            with activity.recorded():
                run()
            changed = before.changed()
            if not changed and activity.names == names:  # or there are more places to look at
                break
    for source, function in activity.unseen.items():
        raise CaptureError(
            f"it draws from {source}, whose numbers a graph keeps. Use torch"
            if "random" in source or "generator" in source
            else f"it reads {source}, with {function}(), whose answers a graph keeps. Read it "
            "outside, and pass what changes as a tensor argument"
        )
    refuse_changes(changed)
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    for name, place in before.holders_of(tensors):
        if name in activity.names.stored:
            raise CaptureError(f"it keeps an argument in '{place}', which a graph would not do")


def refuse_changes(changed: list[str]) -> None:
    """Raises:
    CaptureError: something has changed in a run.
    """
    if changed:
        raise CaptureError(
            f"every run of it changes '{changed[0]}', which outlives the run: a graph would leave "
            "it as it is. Return nothing this way, and pass what changes as a tensor argument"
        )


@contextmanager
def refuse_what_is_too_much() -> Iterator[None]:
    """More places than can be watched are a reason to run eagerly."""
    try:
        yield
    except TooMuchError as error:
        raise CaptureError(
            f"'{error}' holds more numbers than can be watched for changes (100000 entries of "
            "lists and dictionaries, a megabyte of an array). Make it a tensor"
        ) from error


class _Held:
    """Arguments, as something to look through."""

    def __init__(self, args: tuple, kwargs: dict) -> None:
        self.args, self.kwargs = args, kwargs
