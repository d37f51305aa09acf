"""The private names of PyTorch that graphs are captured, compiled and called by.

Each is looked up when it is used, so that a version without it costs speed and nothing else: what
cannot be called from C is called from Python, what cannot be compiled runs as the captured graph,
and what cannot be captured runs eagerly, each with a warning that names the version.

Two more are bases of classes, or so common that PyTorch itself would not run without them:
`torch.utils._python_dispatch.TorchDispatchMode` and `torch.utils._pytree`.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

__all__ = ["PRIVATE_NAMES", "MissingError", "capsules_of", "internal", "load_cpp"]

PRIVATE_NAMES = {
    "make_fx": "torch.fx.experimental.proxy_tensor",
    "disable_proxy_modes_tracing": "torch.fx.experimental.proxy_tensor",
    "config": "torch._inductor",
    "standalone_compile": "torch._inductor",
    "CppCodeCache": "torch._inductor.codecache",
    "PyCodeCache": "torch._inductor.codecache",
    "_aoti": "torch._C",
}
"""Where each stands."""


class MissingError(RuntimeError):
    """This version of PyTorch lacks a private name."""


def internal(name: str) -> Any:
    """What a private name of PyTorch stands for.

    Args:
        name: one of `PRIVATE_NAMES`.

    Raises:
        MissingError: there is none, with the version of PyTorch.

    Example:
        >>> internal("make_fx").__name__
        'make_fx'
    """
    place = PRIVATE_NAMES[name]
    try:
        module = import_module(place)
        return getattr(module, name) if hasattr(module, name) else import_module(f"{place}.{name}")
    except (ImportError, AttributeError) as error:
        raise MissingError(f"PyTorch {torch.__version__} has no {place}.{name}") from error


def load_cpp(source: str) -> Any:
    """A library made of C++, compiled once for every machine.

    Args:
        source: of functions with C's names.

    Raises:
        MissingError: this version of PyTorch has no such compiler.
        Exception: of any type, where the compiler fails.
    """
    return internal("CppCodeCache").load(source)


def capsules_of(tensors: Sequence[Tensor]) -> list[Any]:
    """New handles of tensors, each in a capsule.

    Args:
        tensors: on any device.

    Raises:
        MissingError: this version of PyTorch has no such call.
    """
    try:
        return internal("_aoti").unsafe_alloc_void_ptrs_from_tensors(list(tensors))
    except AttributeError as error:
        raise MissingError(f"PyTorch {torch.__version__} has no handles of tensors") from error
