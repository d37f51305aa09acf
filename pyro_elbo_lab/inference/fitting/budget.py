"""When a fit compares its graph with an eager run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["SHARE", "Budget"]

SHARE = 0.02
"""The share of a fit's time so far that all comparisons but the last may take."""

_APART = 40


class Budget:
    """Comparisons are made after steps 1, 2, 4, 8, ..., and whenever 40 times what one takes has
    passed since the last; in either case only if they do not exceed their share of the time.

    Args:
        started: when the fit began, by `time.perf_counter`.

    Attributes:
        spent: seconds of all comparisons so far.
        count: how many these were.
    """

    def __init__(self, started: float) -> None:
        self.spent = 0.0
        self.count = 0
        self._started = started
        self._ended = started
        self._cost = 0.0
        self._step = 0

    def is_due(self, step: int) -> bool:
        """Whether to compare after so many steps."""
        now = time.perf_counter()
        early = step.bit_length() > self._step.bit_length()
        long_ago = now - self._ended > _APART * self._cost
        affordable = self.spent + 2 * self._cost <= SHARE * (now - self._started)
        return affordable and (early or long_ago)

    @contextmanager
    def spending(self, step: int, compared: bool = True) -> Iterator[None]:
        """The block is part of a comparison after so many steps.

        Args:
            step: their number.
            compared: whether it is the comparison itself, rather than what goes with it.
        """
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._ended = time.perf_counter()
            self.spent += self._ended - begun
            self.count += compared
            self._cost = self.spent / max(self.count, 1)
            self._step = step
