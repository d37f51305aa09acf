"""Arguments that are wrong are named before any work is done."""

import operator
from typing import Any

__all__ = ["check_count", "check_programs"]


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse what is no integer, or too small.

    Args:
        name: of the argument.
        value: what was passed.
        least: the smallest that is allowed.

    Raises:
        TypeError: no integer; True and False are none here.
        ValueError: less than `least`.

    Example:
        >>> check_count("num_samples", 0)
        Traceback (most recent call last):
            ...
        ValueError: num_samples must be at least 1, got 0.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(
            f"{name} must be an integer of at least {least}, got {value!r} "
            f"({type(value).__name__})."
        )
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_programs(**programs: Any) -> None:
    """Refuse a model or a guide that cannot be called.

    Args:
        programs: by the name of the argument.

    Raises:
        TypeError: one is no function and no module.
    """
    for name, program in programs.items():
        if not callable(program):
            raise TypeError(f"{name} must be a Pyro program (a callable), got {program!r}.")
