"""Operators of PyTorch called from C, with the arguments that they were called with in Python.

PyTorch has a stable interface in C to its dispatcher. An operator that returns new tensors is
called in its form with `out=`, so that results lie where those of the recorded call lie.
"""

import ctypes
import weakref
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pyro_elbo_lab.compilation.native.internals import capsules_of, load_cpp

__all__ = ["LIBTORCH", "Handles", "NativeCall", "bits", "native_call"]

LIBTORCH = str(Path(torch.__path__[0]) / "lib" / "libtorch_cpu.so")


class NativeCall:
    """A call of an operator from C: `function(argument)`, which throws if the operator fails.

    Attributes:
        function: its address.
        argument: an address, valid as long as this object lives.
    """

    def __init__(self, function: Any, description: ctypes.Structure, *keep: Any) -> None:
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        self.function = address
        self.argument = ctypes.addressof(description)
        self._keep = description, keep


def native_call(func: Any, args: tuple, kwargs: dict[str, Any], results: Any) -> NativeCall | None:
    """The same call from C.

    Args:
        func: an overload of an operator of aten.
        args: positional arguments of the recorded call.
        kwargs: keyword arguments of the recorded call.
        results: what it returned, and where the results of every later call shall lie.

    Returns:
        None for random operators, for arguments other than tensors on the CPU, numbers and None,
        and where PyTorch lacks the interface.
    """
    library = _library()
    if library is None:
        return None
    written = tree_flatten(results)[0]
    if torch.Tag.nondeterministic_seeded in func.tags:
        return None
    out = func if func._schema.is_mutable else _with_out(func)
    if out is None or not all(isinstance(x, Tensor) for x in written):
        return None
    if out is not func and _share_memory(written, tree_flatten((args, kwargs))[0]):
        return None
    arguments = out._schema.arguments
    bound = {a.name: a.default_value for a in arguments if a.has_default_value()}
    bound |= dict(zip([a.name for a in arguments], args, strict=False)) | kwargs
    if out is not func:
        bound |= dict(zip([a.name for a in arguments if a.is_out], written, strict=True))
    words = [_word(str(a.type), bound[a.name]) for a in arguments]
    if None in words or len(words) > _MOST_ARGUMENTS:
        return None
    known = [word for word in words if word is not None]
    values = (ctypes.c_uint64 * len(known))(*[word.value for word in known])
    schema = out._schema
    description = _Operator(
        schema.name.encode(),
        schema.overload_name.encode(),
        len(known),
        len(schema.returns),
        ctypes.addressof(values),
        "".join(word.kind for word in known).encode(),
    )
    if out is not func and library.fails(ctypes.byref(description)):
        return None
    return NativeCall(library.call_operator, description, values, known)


class Handles:
    """Tensors as PyTorch's interface in C takes them. They keep the tensors' memory, and are freed
    with this object.

    Args:
        tensors: any tensors.

    Attributes:
        addresses: of the handles, valid as long as this object lives.

    Raises:
        MissingError, AttributeError, OSError: PyTorch lacks the interface.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        free = ctypes.CDLL(LIBTORCH).aoti_torch_delete_tensor_object
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
        capsules = capsules_of(tensors)
        self.addresses: list[int] = [pointer(capsule, None) for capsule in capsules]
        weakref.finalize(self, _free, free, tuple(self.addresses)).atexit = False


def _free(free: Any, addresses: Sequence[int]) -> None:
    for address in addresses:
        free(ctypes.c_void_p(address))


def bits(number: float) -> int:
    """A floating-point number of double precision as an integer of the same 64 bits."""
    return int(np.float64(number).view(np.int64))


def _with_out(func: Any) -> Any:
    """The overload with the same arguments and then `out=`, if there is one."""
    own = [(a.name, str(a.type)) for a in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        overload = getattr(func.overloadpacket, name)
        arguments = overload._schema.arguments
        first = [(a.name, str(a.type)) for a in arguments[: len(own)]]
        rest = arguments[len(own) :]
        if first == own and rest and all(a.is_out for a in rest):
            return overload
    return None


def _share_memory(written: Sequence[Any], read: Sequence[Any]) -> bool:
    storages = {x.untyped_storage().data_ptr() for x in read if isinstance(x, Tensor)}
    return any(x.untyped_storage().data_ptr() in storages for x in written)


class _Word(NamedTuple):
    """An argument on the dispatcher's stack.

    Attributes:
        kind: "t" for a tensor's handle, "l" for the address of a length and as many handles, 0 for
            None, or "v" for a number, also 0 for None.
        value: the word.
        keep: what has to stay in memory.
    """

    kind: str
    value: int
    keep: Any = None


def _word(kind: str, value: Any) -> _Word | None:
    """None if the argument is of no kind that is known here."""
    if value is None and kind.startswith("Optional["):
        return _Word("v", 0)
    if kind == "Tensor" and _on_cpu(value):
        own = Handles([value])
        return _Word("t", own.addresses[0], own)
    if kind == "List[Optional[Tensor]]" and all(x is None or _on_cpu(x) for x in value):
        several = Handles([x for x in value if x is not None])
        found = iter(several.addresses)
        words = [len(value), *[0 if x is None else next(found) for x in value]]
        array = (ctypes.c_uint64 * len(words))(*words)
        return _Word("l", ctypes.addressof(array), (array, several))
    if kind in ("int", "bool") and isinstance(value, int):
        return _Word("v", value)
    if kind == "float" and isinstance(value, int | float):
        return _Word("v", bits(value))
    return None


def _on_cpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"


@cache
def _library() -> Any:
    try:
        return load_cpp(_SOURCE.replace("MOST_ARGUMENTS", str(_MOST_ARGUMENTS)))
    except Exception:  # of any type: a compiler that fails, a symbol that is not there
        return None


class _Operator(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("overload", ctypes.c_char_p),
        ("num_arguments", ctypes.c_long),
        ("num_results", ctypes.c_long),
        ("values", ctypes.c_void_p),
        ("kinds", ctypes.c_char_p),
    )


_MOST_ARGUMENTS = 32

_SOURCE = """
#include <cstddef>
#include <cstdint>

extern "C" int32_t aoti_torch_call_dispatcher(const char*, const char*, uint64_t*);
extern "C" int32_t aoti_torch_new_tensor_handle(void*, void**);
extern "C" int32_t aoti_torch_delete_tensor_object(void*);
extern "C" int32_t torch_new_list_reserve_size(size_t, void**);
extern "C" int32_t torch_list_push_back(void*, uint64_t);

struct Operator {
    const char* name; const char* overload; long num_arguments; long num_results;
    const uint64_t* values; const char* kinds;
};

static uint64_t another(uint64_t handle) {  // the dispatcher keeps what it is given
    void* result;
    if (aoti_torch_new_tensor_handle((void*)handle, &result)) throw 1;
    return (uint64_t)result;
}

static uint64_t list_of(const uint64_t* words) {
    void* list;
    if (torch_new_list_reserve_size(words[0], &list)) throw 1;
    for (uint64_t i = 1; i <= words[0]; ++i) {
        uint64_t element = words[i] ? (uint64_t) new uint64_t(another(words[i])) : 0;
        if (torch_list_push_back(list, element)) throw 1;
    }
    return (uint64_t)list;
}

extern "C" void call_operator(const Operator* op) {
    uint64_t stack[MOST_ARGUMENTS];
    for (long i = 0; i < op->num_arguments; ++i)
        switch (op->kinds[i]) {
        case 't': stack[i] = another(op->values[i]); break;
        case 'l': stack[i] = list_of((const uint64_t*)op->values[i]); break;
        default: stack[i] = op->values[i];
        }
    if (aoti_torch_call_dispatcher(op->name, op->overload, stack)) throw 1;
    for (long i = 0; i < op->num_results; ++i) aoti_torch_delete_tensor_object((void*)stack[i]);
}

extern "C" int fails(const Operator* op) {
    try {
        call_operator(op);
        return 0;
    } catch (...) {
        return 1;
    }
}
"""
