"""What Python programs read besides their arguments.

A captured graph keeps the Python numbers that it was made with. A `Watch` knows every place that
the programs can reach (see `reach`) and tells, in microseconds, whether something has been put
there since. What it cannot see (files, clocks, C extensions) is refused by `unseen`, or left to
comparisons with eager runs.
"""

import contextlib
import operator
import types
import weakref
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

from pyro_elbo_lab.compilation.watch.activity import Activity
from pyro_elbo_lab.compilation.watch.reach import (
    MISSING,
    SUMMARIES,
    Reached,
    Shelf,
    geometry,
    reached,
    token,
)

__all__ = ["Place", "Snapshot", "Watch", "contents"]

Snapshot = tuple[Any, ...]
Tokens = dict[str, tuple[Shelf, tuple]]


class Place(NamedTuple):
    """Where a value is: a dictionary and its key."""

    holder: Any
    key: Any
    name: str


class Watch:
    """The places where programs read things besides their arguments.

    Args:
        activity: what the programs did when they ran; None to take everything in reach as read.
        programs: functions, methods, modules or other objects, by name.

    Raises:
        TooMuchError: more can be reached than can be watched.

    Example:
        >>> settings = types.SimpleNamespace(beta=1.0)
        >>> numbers = Watch(None, settings=settings)
        >>> settings.beta = 0.5
        >>> numbers.unchanged(), numbers.changed()
        (False, ['settings.beta'])
    """

    def __init__(self, activity: Activity | None, **programs: Any) -> None:
        self._activity = activity
        self._programs = {name: _weakly(program) for name, program in programs.items()}
        self.look()

    def look(self) -> None:
        """From now on compare with what is there now."""
        found = self._reached()
        self._known = _tokens(found)
        self._probes = _Probes(found)

    def unchanged(self) -> bool:
        """Whether everything is as at the last look."""
        return self._probes.agree() or not self.changed()

    def changed(self) -> list[str]:
        """Names of the places where something else is than at the last look."""
        found = self._reached()
        names = list(_differences(self._known, _tokens(found)))
        if not names:  # equal things have taken the place of others
            self._probes = _Probes(found)
        return names

    def snapshot(self) -> Snapshot:
        """What is there now: two of them are equal unless something has changed in between."""
        return tuple((path, seen) for path, (_, seen) in _tokens(self._reached()).items())

    def holders_of(self, values: list[Any]) -> Iterator[tuple[str, str]]:
        """Attributes where some objects are, with the name of the place."""
        for shelf, _ in self._known.values():
            if shelf.kind in ("dict", "attributes"):
                for key, value in zip(shelf.keys, shelf.values, strict=True):
                    if any(value is x for x in values):
                        yield key, shelf.place(key)

    def _reached(self) -> Reached:
        programs = {name: program() for name, program in self._programs.items()}
        return reached(programs, self._activity)


def contents(value: Any) -> Snapshot:
    """What an argument holds: equal unless its numbers or tensors have been replaced.

    Raises:
        TooMuchError: it holds more than can be compared.
    """
    found = _tokens(reached({"argument": value}, None))
    return token(value), *((path, seen) for path, (_, seen) in found.items())


def _weakly(program: Any) -> Callable[[], Any]:
    if not isinstance(program, types.MethodType):
        with contextlib.suppress(TypeError):
            return weakref.ref(program)
    return lambda: program


def _tokens(found: Reached) -> Tokens:
    return {path: (shelf, _tokens_of(shelf)) for path, shelf in found.items()}


def _tokens_of(shelf: Shelf) -> tuple:
    if shelf.kind in SUMMARIES:
        return shelf.values
    if shelf.kind == "entries":
        return tuple((token(k), token(v)) for k, v in zip(shelf.keys, shelf.values, strict=True))
    return tuple(map(token, shelf.values))


def _differences(before: Tokens, now: Tokens) -> Iterator[str]:
    for path, (shelf, seen) in now.items():
        old, expected = before.get(path, (shelf, seen))
        if shelf.keys == old.keys and seen == expected:
            continue
        known = dict(zip(old.keys, expected, strict=True))
        found = dict(zip(shelf.keys, seen, strict=True))
        if shelf.kind in ("entries", "items") and known.keys() != found.keys():
            yield shelf.name
            continue
        places = [key for key in found if key in known and found[key] != known[key]]
        if places:
            yield shelf.place(places[0])
        elif shelf.kind == "entries":
            yield shelf.name  # the order


class _Probes:
    """The same objects in the same places, as fast as it can be asked in Python."""

    def __init__(self, found: Reached) -> None:
        shelves: dict[str, list[Shelf]] = {}
        for shelf in found.values():
            shelves.setdefault(shelf.kind, []).append(shelf)
        self.dicts = _columns(shelves.get("dict", []))
        self.classes = _columns(shelves.get("class", []))
        self.attributes = _columns(shelves.get("attributes", []))
        cells = shelves.get("cells", [])
        full = [
            (cell, value)
            for shelf in cells
            for cell, value in zip(shelf.holder, shelf.values, strict=True)
            if value is not MISSING
        ]
        self.cells = [cell for cell, _ in full], [value for _, value in full]
        tables = shelves.get("entries", [])
        lists = [s for s in shelves.get("items", []) if not isinstance(s.holder, tuple)]
        self.entries = [(s.holder, s.keys, s.values) for s in tables if s.keys]
        self.items = [(s.holder, s.values) for s in lists if s.keys]
        self.empty = [s.holder for s in (*tables, *lists) if not s.keys]
        self.sets = [(s.holder, s.values[0]) for s in shelves.get("set", [])]
        self.sets = [x for x in self.sets if not isinstance(x[0], frozenset)]
        tensors = shelves.get("tensor", [])
        self.tensors = [s.holder for s in tensors]
        self.geometry = [s.values[0] for s in tensors]
        self.states = [(s.holder, s.values[0]) for s in shelves.get("state", [])]

    def agree(self) -> bool:
        """Whether every place has what it had, by identity."""
        try:
            return self._agree()
        except (AttributeError, ValueError, RuntimeError):  # gone, or changing just now
            return False

    def _agree(self) -> bool:
        same = operator.is_
        holders, keys, values = self.dicts
        if not all(map(same, map(dict.get, holders, keys, repeat(MISSING)), values)):
            return False
        holders, keys, values = self.classes
        proxy = types.MappingProxyType
        if not all(map(same, map(proxy.get, holders, keys, repeat(MISSING)), values)):
            return False
        holders, keys, values = self.attributes
        if not all(map(same, map(getattr, holders, keys, repeat(MISSING)), values)):
            return False
        if not all(map(same, map(_contents_of_cell, self.cells[0]), self.cells[1])):
            return False
        if any(self.empty):
            return False
        for table, known, there in self.entries:
            if len(table) != len(known) or not all(map(same, table.values(), there)):
                return False
            if not all(map(operator.eq, table, known)):
                return False
        for sequence, known in self.items:
            if len(sequence) != len(known) or not all(map(same, sequence, known)):
                return False
        if any(frozenset(map(token, held)) != known for held, known in self.sets):
            return False
        if list(map(geometry, self.tensors)) != self.geometry:
            return False
        return all(read() == known for read, known in self.states)


_contents_of_cell = operator.attrgetter("cell_contents")


def _columns(shelves: list[Shelf]) -> tuple[list[Any], list[Any], list[Any]]:
    return (
        [shelf.holder for shelf in shelves for _ in shelf.keys],
        [key for shelf in shelves for key in shelf.keys],
        [value for shelf in shelves for value in shelf.values],
    )
