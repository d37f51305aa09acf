"""Matrix products called from C: PyTorch's usual ones, or oneDNN's where the usual ones are slow.

PyTorch's `mm` calls MKL, which runs its best kernels on Intel's processors only. On another
processor with AVX-512, oneDNN multiplies float32 matrices twice as fast.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_elbo_lab.compilation.native.internals import load_cpp
from pyro_elbo_lab.compilation.native.operators import LIBTORCH, Handles

__all__ = ["Product", "product"]

aten = torch.ops.aten


class Product(NamedTuple):
    """A call in C.

    Attributes:
        address: of the function.
        arguments: addresses.
        factors: beta and alpha, the last two arguments, if the function takes them: doubles.
        keep: what has to stay in memory.
    """

    address: int
    arguments: list[int]
    factors: tuple[float, ...] = ()
    keep: Any = None


def product(func: Any, args: tuple, kwargs: dict[str, Any]) -> Product | None:
    """A product of matrices as a call in C; None if it is none, or cannot be called from C.

    Args:
        func: an overload of an operator.
        args: positional arguments of its call.
        kwargs: keyword arguments of its call.
    """
    if func not in _SHIMS:
        return None
    return _by_onednn(func, args, kwargs) or _by_default(func, args, kwargs)


_SHIMS = {
    aten.mm.out: "aoti_torch_cpu_mm_out",
    aten.bmm.out: "aoti_torch_cpu_bmm_out",
    aten.addmm.out: "aoti_torch_cpu_addmm_out",
}


def _by_default(func: Any, args: tuple, kwargs: dict[str, Any]) -> Product | None:
    """Through the C interface that PyTorch has for compiled models."""
    try:
        address = _address(getattr(ctypes.CDLL(LIBTORCH), _SHIMS[func]))
        own = Handles([kwargs["out"], *args])
    except (AttributeError, OSError):
        return None
    factors = (kwargs.get("beta", 1), kwargs.get("alpha", 1)) if func is aten.addmm.out else ()
    return Product(address, own.addresses, factors, own)


LEAST_OPERATIONS = 8_000_000
"""Multiplications and additions below which oneDNN's overhead outweighs its speed."""


def _by_onednn(func: Any, args: tuple, kwargs: dict[str, Any]) -> Product | None:
    *bias, a, b = args
    out: Tensor = kwargs["out"]
    if a.dim() != 2 or 2 * a.numel() * b.shape[1] < LEAST_OPERATIONS:
        return None
    if bias and (bias[0].dim() != 1 or {kwargs.get("beta", 1), kwargs.get("alpha", 1)} != {1}):
        return None
    if any(x.dtype != torch.float32 for x in (*args, out)) or not out.is_contiguous():
        return None
    library = _library() if _mkl_is_slow() else None
    if library is None:
        return None
    own = Handles([a, b.t(), *bias])
    x, weight, *rest = own.addresses
    description = _Linear(x, weight, rest[0] if rest else 0, out.data_ptr(), out.nbytes)
    return Product(
        _address(library.linear), [ctypes.addressof(description)], (), (description, own, out)
    )


@cache
def _mkl_is_slow() -> bool:
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


@cache
def _library() -> Any:
    try:
        return load_cpp(_SOURCE)
    except Exception:  # of any type: a compiler that fails, a symbol that is not there
        return None


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


class _Linear(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("bytes", ctypes.c_long),
    )


_SOURCE = """
#include <cstdint>
#include <cstring>

extern "C" int32_t aoti_torch_cpu__linear_pointwise(
    void*, void*, void**, const char*, const double**, int64_t, const char**, void**);
extern "C" int32_t aoti_torch_get_data_ptr(void*, void**);
extern "C" int32_t aoti_torch_delete_tensor_object(void*);

struct Linear { void* x; void* weight; void* bias; void* out; long bytes; };

extern "C" void linear(Linear* p) {
    void *result, *values;
    const char* algorithm = "";
    if (aoti_torch_cpu__linear_pointwise(p->x, p->weight, p->bias ? &p->bias : nullptr, "none",
                                         nullptr, 0, &algorithm, &result)) throw 1;
    int32_t failed = aoti_torch_get_data_ptr(result, &values);
    if (!failed) std::memcpy(p->out, values, p->bytes);
    aoti_torch_delete_tensor_object(result);
    if (failed) throw 1;
}
"""
