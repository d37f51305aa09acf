"""Programs of float32 tensors run in float64."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["InFloat64", "as_written", "to_float64"]

_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
_CASTS = {Tensor.float: Tensor.double, Tensor.half: Tensor.double, Tensor.bfloat16: Tensor.double}
_ACTIVE = threading.local()
_WRITES = {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"}
_OF_THE_OBJECT = {"__hash__", "__repr__", "__set__", "__delete__", "__deepcopy__", "type"}


class InFloat64(TorchFunctionMode):
    """Every operation takes float32 tensors as float64 ones, and makes float64 ones.

    Whatever a program keeps to itself, in globals, closures, modules or distributions, takes part
    with all its digits, and nothing of it is changed.

    Attributes:
        found: the shape of a tensor that was not float64, None if all were.
        paused: whether operations run as they are written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: tuple[int, ...] | None = None
        self.paused = False
        self._outer: InFloat64 | None = None

    def __enter__(self) -> "InFloat64":
        """The mode that is active in this thread: itself, or the one that it is entered in."""
        self._outer = getattr(_ACTIVE, "mode", None)
        if self._outer is not None:
            return self._outer
        _ACTIVE.mode = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._outer is None:
            _ACTIVE.mode = None
            super().__exit__(*error)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if self.paused or name in _OF_THE_OBJECT:
            return func(*args, **(kwargs or {}))
        if _writes(name) and args and isinstance(args[0], Tensor) and args[0].dtype in _WIDER:
            raise TypeError(
                f"The model writes to a {str(args[0].dtype).removeprefix('torch.')} tensor of "
                f"shape {tuple(args[0].shape)} that it keeps ({name}), and NUTS runs in float64. "
                "Make it float64, or a new tensor in every run."
            )
        wider = {key: self._widened(value) for key, value in (kwargs or {}).items()}
        return _CASTS.get(func, func)(*map(self._widened, args), **wider)

    def _widened(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.dtype not in _WIDER:
                return value
            self.found = tuple(value.shape)
            return value.to(_WIDER[value.dtype])
        if isinstance(value, torch.dtype):
            return _WIDER.get(value, value)
        if type(value) in (tuple, list):
            return type(value)(map(self._widened, value))
        return value


@contextmanager
def as_written() -> Iterator[None]:
    """Operations run as they are written, within `InFloat64` too: those of a compiler, which must
    not find float64 where it has float32 patterns of its own."""
    mode = getattr(_ACTIVE, "mode", None)
    if mode is None or mode.paused:
        yield
        return
    mode.paused = True
    try:
        yield
    finally:
        mode.paused = False


def to_float64(value: Any) -> Any:
    """Floating-point tensors as float64, also inside tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.to(torch.float64) if value.is_floating_point() else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(to_float64, value))
    if isinstance(value, tuple | list):
        return type(value)(map(to_float64, value))
    if isinstance(value, dict):
        return {key: to_float64(entry) for key, entry in value.items()}
    return value


def _writes(name: str) -> bool:
    return name in _WRITES or (name.endswith("_") and not name.endswith("__"))
