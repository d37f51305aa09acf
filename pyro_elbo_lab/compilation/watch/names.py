"""The names that Python code mentions: what it can read and write by them."""

import dis
import functools
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

__all__ = ["LIBRARIES", "Names", "is_library", "names_in", "stored_by_libraries", "top"]

LIBRARIES = {
    "torch", "pyro", "numpy", "pyro_elbo_lab", "scipy", "pandas", "xarray", "tqdm", "matplotlib",
    "funsor", "opt_einsum", "IPython", "_pytest", "pytest", "pluggy", "sympy", "mpmath", "networkx",
    "jinja2", "filelock", "fsspec", "triton", "functorch", "typing_extensions", "lazy_loader",
} | (set(sys.stdlib_module_names) - {"__main__"})  # fmt: skip

_CALLED_BY_LIBRARIES = {"forward", "__call__"}
_READS_ANY_NAME = {
    "getattr", "vars", "__dict__", "attrgetter", "asdict", "astuple", "fields", "dir", "__slots__",
}  # fmt: skip


class Names(NamedTuple):
    """What code mentions.

    Attributes:
        globals: names that it looks up in globals or assigns there.
        imports: modules that it imports.
        attributes: names of attributes, and strings and names of functions that may be some.
        stored: names of attributes that it assigns.
        computed: whether it may look up attributes by names that it computes.
    """

    globals: frozenset[str]
    imports: frozenset[str]
    attributes: frozenset[str]
    stored: frozenset[str]
    computed: bool


@functools.lru_cache(maxsize=4096)
def _in_code(code: types.CodeType) -> Names:
    found: dict[str, set[str]] = {
        "GLOBAL": set(), "IMPORT": set(), "ATTR": set(), "STORE": set()
    }  # fmt: skip
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        if name in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL"):
            found["GLOBAL"].add(value)
        elif name == "IMPORT_NAME":
            found["IMPORT"].add(value)
        elif name in ("STORE_ATTR", "DELETE_ATTR"):
            found["STORE"].add(value)
        elif "ATTR" in name or "METHOD" in name or name == "IMPORT_FROM":
            found["ATTR"].add(value)
    attributes = found["ATTR"] | found["STORE"] | {code.co_name} | _CALLED_BY_LIBRARIES
    attributes |= set(_strings(code.co_consts))
    computed = not _READS_ANY_NAME.isdisjoint(found["GLOBAL"] | found["ATTR"])
    return Names(
        frozenset(found["GLOBAL"]),
        frozenset(found["IMPORT"]),
        frozenset(attributes),
        frozenset(found["STORE"]),
        computed,
    )


def names_in(codes: Iterable[types.CodeType]) -> Names:
    """What any of these mention."""
    each = [_in_code(code) for code in codes]
    return Names(
        frozenset().union(*(names.globals for names in each)),
        frozenset().union(*(names.imports for names in each)),
        frozenset().union(*(names.attributes for names in each)),
        frozenset().union(*(names.stored for names in each)),
        any(names.computed for names in each),
    )


@functools.lru_cache(maxsize=4096)
def stored_by_libraries(kind: Any) -> frozenset[str]:
    """Attributes that methods of a class's library bases assign, other than where they are made."""
    return frozenset(
        stored
        for base in kind.__mro__
        if is_library(base.__module__)
        for name, entry in vars(base).items()
        if isinstance(entry, types.FunctionType) and name != "__init__"
        for stored in _stored_in_itself(entry.__code__)
    )


def _stored_in_itself(code: types.CodeType) -> Iterator[str]:
    """Attributes that a method assigns to the object that it is called for."""
    before: Any = None
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_ATTR" and before is not None:
            loaded = before[-1] if isinstance(before, tuple) else before
            if code.co_argcount and loaded == code.co_varnames[0]:
                yield instruction.argval
        before = instruction.argval if "LOAD_FAST" in instruction.opname else None


@functools.lru_cache(maxsize=4096)
def is_library(module: Any) -> bool:
    """Whether a module is PyTorch's, Pyro's, Python's own or the like."""
    package = top(module)
    return package in LIBRARIES or package.startswith("namedtuple_")


def top(module: Any) -> str:
    """The package that a module belongs to."""
    return module.partition(".")[0] if isinstance(module, str) else ""


def _strings(constants: Iterable[Any]) -> Iterator[str]:
    for constant in constants:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple | frozenset):
            yield from _strings(constant)
