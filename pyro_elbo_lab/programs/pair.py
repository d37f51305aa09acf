"""A model and a guide with the arguments of both: what objectives and judges are given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyro import poutine

__all__ = ["Pair", "Program", "traced"]

Program = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Pair:
    """A model and a guide with the arguments of both.

    Attributes:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
    """

    model: Program
    guide: Program
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    def once[T](self, question: Callable[["Pair"], T]) -> T:
        """The answer to a question about this pair, which is worked out when it is first asked.

        Args:
            question: a function of the pair.

        Example:
            >>> def sum_of_both(pair):
            ...     print("adding")
            ...     return pair.model() + pair.guide()
            >>> pair = Pair(lambda: 1, lambda: 2)
            >>> pair.once(sum_of_both), pair.once(sum_of_both)
            adding
            (3, 3)
        """
        if question not in self._known:
            self._known[question] = question(self)
        return self._known[question]

    def with_programs(self, model: Program | None = None, guide: Program | None = None) -> "Pair":
        """Another model or guide with the same arguments; nothing is known of it.

        Args:
            model: if another.
            guide: if another.
        """
        model = self.model if model is None else model
        return replace(self, model=model, guide=self.guide if guide is None else guide, _known={})

    def at(self, args: tuple) -> "Pair":
        """The same model and guide with other positional arguments; nothing is known of them.

        Args:
            args: positional arguments of both.
        """
        return replace(self, args=args, _known={})


def traced(program: Program, pair: Pair) -> Any:
    """The trace of one run of a program with a pair's arguments.

    Args:
        program: the pair's model or guide, with handlers around it.
        pair: whose arguments.
    """
    return poutine.trace(program).get_trace(*pair.args, **pair.kwargs)
