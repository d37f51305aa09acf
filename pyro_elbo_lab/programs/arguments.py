"""Checks of arguments, which say what was found and what was expected."""

import math
import operator
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from typing import Any

__all__ = ["check_count", "check_nesting", "check_programs", "choice", "integer", "number"]


def integer(name: str, value: Any, least: int) -> int:
    """An integer of Python or numpy, at least so large.

    Args:
        name: of the argument, for the message.
        value: what was given for it.
        least: the smallest that is allowed.

    Raises:
        ValueError: anything else.

    Example:
        >>> integer("num_steps", 5, least=1)
        5
        >>> integer("num_steps", 5.5, least=1)
        Traceback (most recent call last):
        ValueError: num_steps must be at least 1 and an integer, got 5.5.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be at least {least} and an integer, got {value!r}.")
    return int(value)


def number(
    name: str,
    value: Any,
    expected: str,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
) -> float:
    """A finite number of Python or numpy within bounds.

    Args:
        name: of the argument, for the message.
        value: what was given for it.
        expected: what it should be, for the message.
        least: the smallest that is allowed.
        most: the largest that is allowed.
        above: what it must exceed.

    Raises:
        ValueError: anything else.

    Example:
        >>> number("average", 0.5, "a share of the steps, from 0 to 1", least=0, most=1)
        0.5
        >>> number("average", float("nan"), "a share of the steps, from 0 to 1", least=0, most=1)
        Traceback (most recent call last):
        ValueError: average must be a share of the steps, from 0 to 1, got nan.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and least <= value <= most and value > above):
        raise ValueError(f"{name} must be {expected}, got {value!r}.")
    return float(value)


def choice(name: str, value: Any, allowed: Collection[Any]) -> None:
    """One of a few strings or truth values; no number stands for a truth value.

    Args:
        name: of the argument, for the message.
        value: what was given for it.
        allowed: all that it may be.

    Raises:
        ValueError: anything else.

    Example:
        >>> choice("compile", "never", (True, False, "auto"))
        Traceback (most recent call last):
        ValueError: compile must be one of True, False, 'auto', got 'never'.
    """
    if not any(type(value) is type(option) and value == option for option in allowed):
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"{name} must be one of {names}, got {value!r}.")


def check_nesting(name: str, keywords: Mapping[str, Any]) -> None:
    """Check what an objective was given for the number of nested plates and for vectorizing.

    Args:
        name: of the objective, for the message.
        keywords: those of `pyro.infer.ELBO`.

    Raises:
        ValueError: neither a count of plates, nor infinity, which means that Pyro counts them; or
            `vectorize_particles` that is neither True nor False.
    """
    for keyword in ("max_plate_nesting", "max_iarange_nesting"):
        value = keywords.get(keyword)
        if value is not None and not (isinstance(value, float) and value == math.inf):
            integer(f"{name}: {keyword}", value, least=0)
    choice(
        f"{name}: vectorize_particles", keywords.get("vectorize_particles", False), (True, False)
    )


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
