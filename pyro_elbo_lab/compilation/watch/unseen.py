"""Sources of numbers that nothing can watch: clocks, files, sockets, generators of random numbers.

They are known by the functions, written in C, that read them.
"""

import _io
import datetime
import io
import random
import sys
import types
from typing import Any

import numpy as np
import torch

from pyro_elbo_lab.compilation.watch.names import is_library, top

__all__ = ["unseen_source"]

_CLOCK = "the clock"
_FILES = "files or the operating system"
_SOURCES = {
    "time": _CLOCK,
    "posix": _FILES,
    "nt": _FILES,
    "io": _FILES,
    "_io": _FILES,
    "_socket": "a socket",
    "_ssl": "a socket",
    "select": "a socket",
    "_sqlite3": "a data base",
    "sqlite3": "a data base",
    "mmap": _FILES,
    "_posixsubprocess": "another process",
    "_thread": "a thread that it starts",
    "_queue": "a queue",
}
_LAWFUL = {
    "sleep", "fspath", "write", "putenv", "unsetenv", "getpid", "allocate_lock", "RLock",
    "get_ident", "get_native_id", "lock", "acquire", "release", "text_encoding", "StringIO",
    "BytesIO", "flush", "strftime", "localtime",
}  # fmt: skip
_METHODS: list[tuple[tuple[type, ...], set[str] | None, str]] = [
    ((np.random.RandomState,), None, "numpy.random"),
    ((np.random.Generator, np.random.BitGenerator), None, "a generator of numpy's"),
    ((random.Random,), None, "Python's random"),
    ((torch.Generator,), None, "a Generator of its own"),
    ((_io._IOBase,), {"read", "readline", "readlines", "seek", "tell", "readinto"}, _FILES),
]
_DATES = {"now", "today", "utcnow"}
_PASSING_ON = {"logging", "warnings", "linecache", "tokenize", "inspect", "traceback", "importlib"}
_TORCHES = {torch.initial_seed, torch.get_rng_state, torch.seed}


def unseen_source(function: Any, first: Any, frame: types.FrameType) -> str:
    """What a call of a function reads that cannot be watched, or nothing.

    Args:
        function: what is called.
        first: its first argument, which for a method is the object.
        frame: of the caller.
    """
    source = _source(function, first)
    return source if source and _asked_for_by_the_program(frame, source) else ""


def _source(function: Any, first: Any) -> str:
    if isinstance(function, types.FunctionType):
        return "PyTorch's random state" if function in _TORCHES else ""
    if isinstance(function, types.BuiltinFunctionType):
        name, owner = function.__name__, function.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            module = owner.__name__ if owner is not None else function.__module__
            return _SOURCES.get(module or "", "") if name not in _LAWFUL else ""
        if isinstance(owner, type):
            return _CLOCK if issubclass(owner, datetime.date) and name in _DATES else ""
    elif isinstance(function, types.MethodDescriptorType):
        name, owner = function.__name__, first
    elif isinstance(function, type):
        return _SOURCES.get(function.__module__, "") if function.__name__ not in _LAWFUL else ""
    else:
        return ""
    for kinds, names, source in _METHODS:
        if isinstance(owner, kinds) and (names is None or name in names):
            return "" if isinstance(owner, io.StringIO | io.BytesIO) else source
    return _SOURCES.get(type(owner).__module__, "") if name not in _LAWFUL else ""


def _asked_for_by_the_program(frame: types.FrameType | None, source: str) -> bool:
    """Whether it is the program that reads, perhaps through Python's own modules, and not a
    library that does so for purposes of its own; what libraries read from files counts too."""
    while frame is not None:
        module = frame.f_globals.get("__name__")
        package = top(module)
        if package in _PASSING_ON or module == "importlib._bootstrap":
            return False
        if not is_library(module):
            return True
        if package not in sys.stdlib_module_names and source is not _FILES:
            return False
        if package == "pyro_elbo_lab":
            return False
        frame = frame.f_back
    return False
