"""What Python programs read besides their arguments.

A captured graph keeps the Python numbers that it was made with. `watch` finds where a program gets
such numbers from: closures, globals, attributes of objects and modules. Its snapshot tells when one
has changed. What it cannot see (files, clocks, C extensions) is left to comparisons with eager
runs.
"""

import functools
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Snapshot", "Watch", "contents", "watch"]

Snapshot = tuple[Any, ...]


class Place(NamedTuple):
    """Where a value is: a dictionary and its key, or a cell of a closure and None."""

    holder: Any
    key: Any
    name: str


class _Identity(int):
    """Of an object that is not compared by its contents."""


_MOST_PLACES = 400
_SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_LIBRARIES = {"torch", "pyro", "numpy", "pyro_elbo_lab", "scipy"} | set(sys.stdlib_module_names)
_COUNTERS = ("num_gradients",)  # of an objective, which counts its calls
_SMALL = 16
_MOST_COMPARED = 100_000


class Watch:
    """The places where programs read numbers besides their arguments.

    Args:
        places: where they are.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = list(places)
        self._plain: list[tuple[Place, Any]] = []
        self._compound: list[tuple[Place, Any]] = []

    def snapshot(self) -> Snapshot:
        """What is there now. Two snapshots are equal unless one of the numbers, strings, small
        containers of them or tensors (as objects) was replaced in between."""
        return tuple(_fingerprint(_look_up(place)) for place in self._places)

    def look(self) -> None:
        """From now on compare with what is there now."""
        values = [_look_up(place) for place in self._places]
        prints = [_fingerprint(value) for value in values]
        everything = list(zip(self._places, values, prints, strict=True))
        compound = tuple | list | dict | np.ndarray
        self._plain = [(place, v) for place, v, _ in everything if not isinstance(v, compound)]
        self._compound = [(place, p) for place, v, p in everything if isinstance(v, compound)]

    def changed_by(self, run: Callable[[], Any]) -> list[str]:
        """Run the programs, and stop watching the objects that this replaces, such as caches.

        Returns:
            The names of numbers that the run has changed.
        """
        before = self.snapshot()
        run()
        now = self.snapshot()
        pairs = list(zip(self._places, before, now, strict=True))
        self._places = [place for place, one, other in pairs if one == other]
        self.look()
        return [place.name for place, one, other in pairs if _another_number(one, other)]

    def changed(self) -> list[str]:
        """Names of the places where something else is than at the last look."""
        plain = [place.name for place, value in self._plain if _look_up(place) is not value]
        compound = [p.name for p, known in self._compound if _fingerprint(_look_up(p)) != known]
        return [*plain, *compound]

    def unchanged(self) -> bool:
        """Whether everything is as at the last look."""
        for (holder, key, _), value in self._plain:
            if (holder.get(key) if key is not None else holder.cell_contents) is not value:
                return False
        return all(_fingerprint(_look_up(place)) == known for place, known in self._compound)


def watch(*programs: Any) -> Watch:
    """Find the numbers that programs read besides their arguments.

    Args:
        programs: functions, methods, modules or other callables.

    Example:
        >>> settings = types.SimpleNamespace(beta=1.0)
        >>> model = functools.partial(print, settings)
        >>> numbers = watch(model)
        >>> before = numbers.snapshot()
        >>> numbers.look()
        >>> settings.beta = 0.5
        >>> numbers.unchanged(), numbers.snapshot() == before
        (False, False)
    """
    places: list[Place] = []
    seen: set[int] = set()
    for program in programs:
        places += _places_of(program, seen)
    return Watch(places[:_MOST_PLACES])


def contents(value: Any) -> Snapshot:
    """What an argument holds: equal unless its numbers or tensors have been replaced."""
    return _fingerprint(value), watch(value).snapshot()


def _look_up(place: Place) -> Any:
    holder, key, _ = place
    if key is None:
        try:
            return holder.cell_contents
        except ValueError:  # an empty cell
            return None
    return holder.get(key)


def _fingerprint(value: Any) -> Any:
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, np.ndarray) and value.size <= _MOST_COMPARED:
        return value.tobytes()
    if isinstance(value, tuple | list) and len(value) <= _SMALL:
        return tuple(map(_fingerprint, value))
    if isinstance(value, dict) and len(value) <= _SMALL:
        return tuple((key, _fingerprint(entry)) for key, entry in value.items())
    return _Identity(id(value))


def _another_number(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        return any(map(_another_number, one, other))
    return one != other and not isinstance(one, tuple | _Identity) and type(one) is type(other)


def _places_of(value: Any, seen: set[int]) -> Iterator[Place]:
    if id(value) in seen or isinstance(value, (*_SCALARS, Tensor, np.ndarray)):
        return
    seen.add(id(value))
    if isinstance(value, types.FunctionType):
        yield from _of_function(value, seen)
    elif isinstance(value, types.MethodType):
        yield from _places_of(value.__func__, seen)
        yield from _places_of(value.__self__, seen)
    elif isinstance(value, functools.partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _places_of(part, seen)
    elif isinstance(value, torch.nn.Module):
        for module in value.modules():
            yield from _of_object(module, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        yield from _of_object(value, seen)


def _of_function(function: types.FunctionType, seen: set[int]) -> Iterator[Place]:
    if _is_library(function.__module__):
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        place = Place(cell, None, name)
        yield place
        yield from _places_of(_look_up(place), seen)
    for value in function.__defaults__ or ():
        yield from _places_of(value, seen)
    for name in _names(function.__code__):
        if name not in function.__globals__:
            continue
        value = function.__globals__[name]
        if isinstance(value, types.ModuleType):
            if not _is_library(value.__name__):
                names = (n for n in _names(function.__code__) if n in vars(value))
                yield from (Place(vars(value), n, n) for n in names)
            continue
        yield Place(function.__globals__, name, name)
        yield from _places_of(value, seen)


def _of_object(value: Any, seen: set[int]) -> Iterator[Place]:
    own = vars(value)
    foreign = _is_library(type(value).__module__)
    for name, entry in own.items():
        if name.startswith("__") or (foreign and name.startswith("_")) or name in _COUNTERS:
            continue
        if isinstance(entry, (*_SCALARS, Tensor, np.ndarray, list, tuple, dict)):
            yield Place(own, name, name)
        elif isinstance(entry, types.FunctionType | types.MethodType | functools.partial):
            yield from _places_of(entry, seen)
    buffers = own.get("_buffers") or {}
    yield from (Place(buffers, name, name) for name in buffers)
    for base in type(value).__mro__:
        if not _is_library(base.__module__):
            for entry in vars(base).values():
                if isinstance(entry, types.FunctionType):
                    yield from _places_of(entry, seen)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_library(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _LIBRARIES
