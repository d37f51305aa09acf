"""What running programs can reach: every place where they may read something, and what is there."""

import argparse
import builtins
import collections
import contextvars
import enum
import functools
import gc
import os
import random
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_messenger import TraceHandler, TraceMessenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_elbo_lab.compilation.watch.activity import Activity
from pyro_elbo_lab.compilation.watch.names import (
    Names,
    is_library,
    names_in,
    stored_by_libraries,
    top,
)

__all__ = ["MISSING", "Reached", "Shelf", "TooMuchError", "reached", "token"]


class _Missing:
    """Where there is nothing."""


MISSING: Any = _Missing()
MOST_ENTRIES = 100_000
_MOST_BYTES = 1 << 20

_SCALARS = (
    bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size,
    np.generic, range, slice, _Missing,
)  # fmt: skip
_WALKED = {
    "types", "collections", "argparse", "functools", "queue", "dataclasses", "weakref",
    "contextlib", "configparser", "threading", "string", "_collections", "_weakrefset",
}  # fmt: skip
_FOLLOWED = {"torch", "pyro", "pyro_elbo_lab", "scipy"}
_NONE: frozenset[str] = frozenset()
_PLAIN = (types.SimpleNamespace, argparse.Namespace)  # like classes of the program
_COUNTERS = {"num_gradients"}  # of an objective, which counts its calls
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_forward_hooks_with_kwargs", "_parametrizations",
)  # fmt: skip
_TABLES = ("_parameters", "_buffers", "_modules", "_pyro_samples", "_pyro_params")
_INTERNAL = {*_HOOKS, *_TABLES, *vars(nn.Module()), "training"}


class TooMuchError(Exception):
    """More can be reached than can be watched."""


class Same:
    """An object that is compared by identity, and kept alive so that no other takes its place."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


SUMMARIES = ("set", "state", "tensor")
"""Kinds of shelves whose value is not what the holder has, but tells whether this is the same."""


class Shelf(NamedTuple):
    """An object and what it holds at some keys.

    Attributes:
        path: how it is reached.
        name: for messages.
        kind: how it is looked up: "dict" at some keys, "class", "attributes", "cells"; "entries" of
            a dictionary, "items" of a sequence, "set"; or "state", which a function tells.
        holder: the object, or the function.
        keys: where.
        values: what is there.
    """

    path: str
    name: str
    kind: str
    holder: Any
    keys: tuple
    values: tuple

    def place(self, key: Any) -> str:
        """A key's name for messages."""
        if self.kind in ("entries", "items"):
            return f"{self.name}[{key!r}]"
        if self.kind in SUMMARIES:
            return self.name
        return f"{self.name}.{key}" if self.name else str(key)


Reached = dict[str, Shelf]


def reached(roots: Mapping[str, Any], activity: Activity | None) -> Reached:
    """Everything that programs can reach.

    Args:
        roots: the programs, by name.
        activity: what they did when they ran; None to take everything as read.

    Raises:
        TooMuchError: the message names a place.
    """
    walk = _Walk(activity)
    for name, root in roots.items():
        walk.visit(root, name, name)
    if activity is not None:
        for function, number in list(activity.functions.items()):
            walk.visit(function, f"{function.__qualname__} {number}", function.__name__)
        for i, variable in enumerate(activity.variables):
            walk.visit(variable, f"variable {i}", variable.name)
        if activity.environment:
            walk.entries(os.environ._data, "environment", "os.environ")  # type: ignore[attr-defined]
    walk.finish()
    return walk.shelves


def token(value: Any) -> Any:
    """What is compared of a value: all of a number, of containers and objects what they are, since
    their contents stand on shelves of their own, and which one it is of everything else."""
    if isinstance(value, _SCALARS):
        return type(value), repr(value) if isinstance(value, float | np.generic) else value
    if isinstance(value, types.FunctionType):
        return types.FunctionType, value.__code__
    if isinstance(value, types.MethodType):
        return types.MethodType, token(value.__func__)
    if isinstance(value, Tensor | type | types.ModuleType | enum.Enum) or _opaque(value):
        return Same(value)
    return type(value)


def _opaque(value: Any) -> bool:
    """Whether nothing is known of what the object holds."""
    known = (
        list, tuple, dict, set, frozenset, collections.deque, functools.partial, np.ndarray,
        weakref.ref, types.MappingProxyType, *_STATES,
    )  # fmt: skip
    if isinstance(value, known):
        return False
    if isinstance(value, Trace):
        return True
    if isinstance(value, nn.Module | Messenger):
        return False
    package = top(type(value).__module__)
    if is_library(package) and package not in _WALKED | _FOLLOWED:
        return True
    kind: Any = type(value)
    return not hasattr(value, "__dict__") and not _slots(kind)


class _Walk:
    def __init__(self, activity: Activity | None) -> None:
        self.activity = activity
        self.complete = activity is not None and activity.complete
        self.names = activity.names if activity else Names(_NONE, _NONE, _NONE, _NONE, True)
        self.everything = not self.complete or self.names.computed
        self.shelves: Reached = {}
        self.seen: dict[int, Any] = {}
        self.queue: collections.deque[tuple[Any, str, str]] = collections.deque()
        self.left = MOST_ENTRIES

    def visit(self, value: Any, path: str, name: str) -> None:
        if not isinstance(value, _SCALARS) and id(value) not in self.seen:
            self.seen[id(value)] = value
            self.queue.append((value, path, name))

    def finish(self) -> None:
        while self.queue:
            self._expand(*self.queue.popleft())

    def shelf(self, kind: str, holder: Any, path: str, name: str, keys: Any, values: Any) -> None:
        """Put down what a holder has, and visit it."""
        keys, values = tuple(keys), tuple(values)
        self.left -= len(values)
        if self.left < 0:
            raise TooMuchError(name)
        if not keys and kind not in ("entries", "items"):
            return
        path = f"{path} {kind}"
        number = 0
        while path in self.shelves:
            path, number = f"{path} {number}", number + 1
        shelf = Shelf(path, name, kind, holder, keys, values)
        self.shelves[path] = shelf
        if kind in SUMMARIES:
            return
        for key, value in zip(keys, values, strict=True):
            if not isinstance(value, _SCALARS):
                self.visit(value, f"{path} {key}", shelf.place(key))

    def entries(self, value: Mapping, path: str, name: str) -> None:
        self.shelf("entries", value, path, name, value.keys(), value.values())

    def state(self, read: Callable[[], Any], path: str, name: str) -> None:
        self.shelf("state", read, path, name, ("",), (read(),))

    def _expand(self, value: Any, path: str, name: str) -> None:
        for kinds, expand in _EXPANSIONS:
            if isinstance(value, kinds):
                expand(self, value, path, name)
                return
        if is_library(type(value).__module__):
            self._library_object(value, path, name)
        else:
            self._object(value, path, name)

    def _function(self, function: types.FunctionType, path: str, name: str) -> None:
        code = function.__code__
        if self.complete and self.activity and code not in self.activity.codes:
            return
        cells = function.__closure__ or ()
        self.shelf("cells", cells, path, "", code.co_freevars, map(_in_cell, cells))
        if is_library(function.__globals__.get("__name__")):
            return
        keys = ("__code__", "__defaults__", "__kwdefaults__")
        values = [getattr(function, key) for key in keys]
        self.shelf("attributes", function, path, function.__name__, keys, values)
        self._globals(function, path)
        if vars(function):
            self._named(function, path, function.__name__)

    def _globals(self, function: types.FunctionType, path: str) -> None:
        mentioned = names_in(_codes_in(function.__code__))
        within, names = function.__globals__, sorted(mentioned.globals)
        for module in sorted(mentioned.imports & set(sys.modules)):
            self.visit(sys.modules[module], f"{path} {module}", module)
        own = [name for name in names if name in within]
        self.shelf("dict", within, path, "", own, [within[name] for name in own])
        others = [n for n in names if n not in within and hasattr(builtins, n)]
        self.shelf("dict", within, path, "", others, [MISSING] * len(others))
        known = vars(builtins)
        self.shelf("dict", known, f"{path} builtins", "", others, [known[n] for n in others])

    def _method(self, method: types.MethodType, path: str, name: str) -> None:
        self.visit(getattr(method, "__func__", None), f"{path} function", name)
        self.visit(method.__self__, f"{path} self", type(method.__self__).__name__)

    def _partial(self, value: functools.partial, path: str, name: str) -> None:
        self.visit(value.func, f"{path} func", name)
        for part in ("args", "keywords"):
            self.visit(getattr(value, part), f"{path} {part}", name)

    def _class(self, kind: type, path: str, name: str) -> None:
        """What a class has and instances read, with its bases, as far as they are the program's."""
        bases = [base for base in kind.__mro__ if not is_library(base.__module__)]
        own = sorted({key for base in bases for key in vars(base)})
        for base in bases:
            keys = [k for k in own if self._may_read(k) and k not in ("__dict__", "__doc__")]
            values = [vars(base).get(key, MISSING) for key in keys]
            self.shelf("class", vars(base), f"{path} {base.__name__}", base.__name__, keys, values)
        if not is_library(type(kind).__module__):
            self.visit(type(kind), f"{path} metaclass", type(kind).__name__)
        if issubclass(kind, enum.Enum):
            self.visit(kind._member_map_, f"{path} members", kind.__name__)

    def _module(self, module: types.ModuleType, path: str, name: str) -> None:
        within = vars(module)
        if is_library(module.__name__):
            if top(module.__name__) not in ("torch", "pyro", "numpy", "math"):
                return
            keys = [k for k in self.names.attributes if k in within]
            path = f"{path} {module.__name__} dict"
            values = tuple(within[key] for key in keys)
            self.shelves[path] = Shelf(path, module.__name__, "dict", within, tuple(keys), values)
            for key, value in zip(keys, values, strict=True):
                if isinstance(value, types.ModuleType):
                    self.visit(value, f"{path} {key}", value.__name__)
            return
        keys = [k for k in within if k in self.names.attributes or not self.complete]
        short = module.__name__.rpartition(".")[2]
        self.shelf("dict", within, path, short, keys, [within[key] for key in keys])

    def _descriptor(self, value: Any, path: str, name: str) -> None:
        for part in ("fget", "fset", "func", "__func__", "__wrapped__"):
            function = getattr(value, part, None)
            if function is not None:
                self.visit(function, f"{path} {part}", name)

    def _torch_module(self, module: nn.Module, path: str, name: str) -> None:
        within = vars(module)
        name = name or type(module).__name__
        for table in _TABLES:
            if within.get(table) is not None:
                self.entries(within[table], f"{path} {table}", name)
        for hooks in _HOOKS:
            if hooks in within:
                self.entries(within[hooks], f"{path} {hooks}", f"{name}.{hooks}")
        self.shelf("dict", within, path, name, ["training"], [within.get("training", MISSING)])
        if "forward" not in within:
            self.shelf("dict", within, path, name, ["forward"], [MISSING])
        self._attributes(module, path, name)

    def _library_object(self, value: Any, path: str, name: str) -> None:
        package = top(type(value).__module__)
        if package in _WALKED | _FOLLOWED and type(value) is not Trace:
            self._attributes(value, path, name or type(value).__name__)

    def _object(self, value: Any, path: str, name: str) -> None:
        name = name or type(value).__name__
        self._attributes(value, path, name)
        if hasattr(type(value), "__array__"):
            self._array(value, path, name)

    def _attributes(self, value: Any, path: str, name: str) -> None:
        """The attributes of an object, but those that its library keeps for itself."""
        kind: Any = type(value)
        within = getattr(value, "__dict__", {})
        if within:
            foreign = is_library(kind.__module__) and kind not in _PLAIN
            theirs = stored_by_libraries(kind) | _INTERNAL | _COUNTERS | _normalized(within)
            keys = [
                key
                for key in within
                if key not in theirs
                and (not key.startswith("_") if foreign else self._may_read(key))
            ]
            if isinstance(value, enum.Enum) or (foreign and top(kind.__module__) in _WALKED):
                keys = [key for key in within if not key.startswith("__")]
            self.shelf("dict", within, path, name, keys, [within[key] for key in keys])
        slots = [slot for slot in _slots(kind) if self._may_read(slot)]
        if slots:
            values = [getattr(value, slot, MISSING) for slot in slots]
            self.shelf("attributes", value, path, name, slots, values)
        if not is_library(kind.__module__):
            self.shelf("attributes", value, path, name, ["__class__"], [kind])
            if hasattr(value, "__dict__"):
                self._shadows(value, path, name)
            self.visit(kind, f"{path} class", kind.__name__)

    def _shadows(self, value: Any, path: str, name: str) -> None:
        """Attributes that come from the class, until the object gets its own."""
        within = vars(value)
        own = {k for b in type(value).__mro__ if not is_library(b.__module__) for k in vars(b)}
        keys = sorted(k for k in own if k in self.names.attributes and k not in within)
        self.shelf("dict", within, path, name, keys, [MISSING] * len(keys))

    def _named(self, value: Any, path: str, name: str) -> None:
        within = vars(value)
        keys = [key for key in within if self._may_read(key) and key != "__wrapped__"]
        self.shelf("dict", within, path, name, keys, [within[key] for key in keys])

    def _may_read(self, key: Any) -> bool:
        return self.everything or key in self.names.attributes

    def _dict(self, value: dict, path: str, name: str) -> None:
        self.entries(value, path, name)
        if hasattr(value, "__dict__"):
            self._object(value, path, name)

    def _items(self, value: Any, path: str, name: str) -> None:
        self.shelf("items", value, path, name, range(len(value)), value)
        if hasattr(value, "__dict__") or not is_library(type(value).__module__):
            self._attributes(value, path, name)

    def _set(self, value: Any, path: str, name: str) -> None:
        self.shelf("set", value, path, name, ("",), (frozenset(map(token, value)),))

    def _proxy(self, value: types.MappingProxyType, path: str, name: str) -> None:
        for inner in gc.get_referents(value):
            self.visit(inner, path, name)

    def _tensor(self, value: Tensor, path: str, name: str) -> None:
        if isinstance(value, nn.Parameter) or value.layout is not torch.strided:
            return
        self.shelf("tensor", value, path, name, ("",), (geometry(value),))

    def _array(self, value: Any, path: str, name: str) -> None:
        if getattr(value, "nbytes", 0) > _MOST_BYTES:
            raise TooMuchError(name)
        self.state(functools.partial(_bytes, value), path, name)

    def _weakly(self, value: weakref.ref, path: str, name: str) -> None:
        self.state(functools.partial(_referent, value), path, name)
        self.visit(value(), f"{path} referent", name)

    def _variable(self, value: contextvars.ContextVar, path: str, name: str) -> None:
        read = functools.partial(value.get, MISSING)
        self.state(functools.partial(_once, read), path, value.name)
        self.visit(read(), f"{path} value", value.name)

    def _local(self, value: threading.local, path: str, name: str) -> None:
        self.entries(vars(value), path, name)

    def _tracer(self, value: Any, path: str, name: str) -> None:
        """The trace of a handler, for whoever looks at it afterwards."""
        messenger = getattr(value, "msngr", value)
        self.shelf(
            "dict", vars(messenger), path, name, ["trace"], [vars(messenger).get("trace", MISSING)]
        )
        self.visit(getattr(value, "fn", None), f"{path} fn", name)

    def _stateful(self, value: Any, path: str, name: str) -> None:
        self.state(functools.partial(_state, value), path, name)
        if isinstance(value, types.GeneratorType) and value.gi_frame is not None:
            for key, local in value.gi_frame.f_locals.items():
                self.visit(local, f"{path} {key}", key)


def _normalized(within: Mapping[str, Any]) -> set[str]:
    """Weights that PyTorch computes from others before every call, under their old names."""
    own = within.get("_parameters") or {}
    return {name[:-5] for name in own if name.endswith("_orig")} | {
        name[:-2] for name in own if name.endswith("_v")
    }


def _in_cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def _codes_in(code: types.CodeType) -> list[types.CodeType]:
    """With the functions that it makes."""
    codes = [code]
    for inner in codes:
        codes += [x for x in inner.co_consts if isinstance(x, types.CodeType)]
    return codes


@functools.lru_cache(maxsize=4096)
def _slots(kind: Any) -> tuple[str, ...]:
    return tuple(
        name
        for base in kind.__mro__
        if not is_library(base.__module__)
        for name, entry in vars(base).items()
        if isinstance(entry, types.MemberDescriptorType)
    )


def geometry(value: Tensor) -> tuple:
    """Where a tensor's memory is, and how it is laid out."""
    return value.data_ptr(), value.shape, value.stride()


def _bytes(value: Any) -> Any:
    array = np.asarray(value)
    return repr(array.tolist()) if array.dtype.hasobject else (array.shape, array.tobytes())


def _once(read: Callable[[], Any]) -> Any:
    return token(read())


def _referent(reference: weakref.ref) -> int:
    return id(reference())


def _state(value: Any) -> Any:
    """What there is to know of an iterator or a generator without moving it on."""
    if isinstance(value, types.GeneratorType):
        frame = value.gi_frame
        return None if frame is None else (frame.f_lasti, _tokens(frame.f_locals))
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, functools._lru_cache_wrapper):
        return value.cache_info()[1:]
    if hasattr(value, "tell"):
        try:
            return value.tell()
        except (OSError, ValueError):  # in the middle of its lines, or closed
            return Same(object())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # iterators will lose this method one day
        return tuple(map(token, _flat(value.__reduce__())))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for part in value:
            yield from _flat(part)
    elif type(value).__name__.endswith("iterator") or type(value) in _ITERATORS:
        yield from _flat(value.__reduce__())
    else:
        yield value


def _tokens(values: Mapping[str, Any]) -> tuple:
    return tuple((key, token(value)) for key, value in values.items())


_EMPTY: list[Any] = [[], (), {}, set(), "", b"", range(0), {}.values(), {}.items()]
_ITERATORS = (
    *(type(iter(empty)) for empty in _EMPTY),
    zip, map, filter, enumerate, reversed,
    *(kind for kind in vars(__import__("itertools")).values() if isinstance(kind, type)),
)  # fmt: skip
_STATES = (
    types.GeneratorType, random.Random, np.random.Generator, np.random.RandomState,
    torch.Generator, functools._lru_cache_wrapper, __import__("_io")._IOBase, *_ITERATORS,
)  # fmt: skip

_EXPANSIONS: list[tuple[Any, Callable[..., None]]] = [
    (types.FunctionType, _Walk._function),
    ((types.MethodType, types.BuiltinMethodType, types.MethodWrapperType), _Walk._method),
    (functools.partial, _Walk._partial),
    (Tensor, _Walk._tensor),
    (nn.Module, _Walk._torch_module),
    (np.ndarray, _Walk._array),
    (type, _Walk._class),
    (types.ModuleType, _Walk._module),
    ((property, staticmethod, classmethod, functools.cached_property), _Walk._descriptor),
    ((TraceHandler, TraceMessenger), _Walk._tracer),
    (_STATES, _Walk._stateful),
    (dict, _Walk._dict),
    ((list, tuple, collections.deque), _Walk._items),
    ((set, frozenset), _Walk._set),
    (types.MappingProxyType, _Walk._proxy),
    (weakref.ref, _Walk._weakly),
    (contextvars.ContextVar, _Walk._variable),
    (threading.local, _Walk._local),
]
