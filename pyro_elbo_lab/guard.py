"""What a program must not do while it is captured, and the line of the program that does it."""

import linecache
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["CaptureError", "guarded", "users_line"]

aten = torch.ops.aten

_SILENT_WRITES = {  # positions of the running statistics, which these change if they train
    aten.native_batch_norm.default: (3, 4),
    aten.cudnn_batch_norm.default: (3, 4),
    aten.miopen_batch_norm.default: (3, 4),
}
_TRAINING = 5
_FRESH = (aten.lift_fresh.default, aten.lift_fresh_copy.default)  # torch.tensor(...)
_READS = (Tensor.numpy, Tensor.tolist, Tensor.__array__)


class CaptureError(Exception):
    """The program cannot be one graph; the message says why, and where in the user's code."""


@contextmanager
def guarded(inputs: Sequence[Tensor] = ()) -> Iterator[list[Tensor]]:
    """Within it a program is refused that writes to tensors which outlive it, that makes tensors
    whose shape depends on values, or that reads values as Python numbers. Tracing itself would not
    notice, or would not say where.

    Args:
        inputs: parameters and arguments; their values may not be read either.

    Yields:
        Tensors that the program holds and whose values have decided shapes, masks above all.

    Raises:
        CaptureError: before a tensor is changed.
    """
    guard = _Guard(inputs)
    with _Reads(guard), guard:
        yield guard.decisive


class _Guard(TorchDispatchMode):
    """Tensors are known by their storages, which views share.

    Attributes:
        inputs: those of the inputs.
        own: those that the program has made.
        fixed: those that it has made from nothing but tensors that it holds, and which these are.
        decisive: tensors that it holds and whose values have decided shapes.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.inputs = {_storage(x) for x in inputs}
        self.own: set[int] = set()
        self.fixed: dict[int, list[Tensor]] = {}
        self.decisive: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        given = {_storage(x) for x in tensors}
        if func is aten._local_scalar_dense.default and given <= self.inputs:
            raise CaptureError(_reads_a_number())
        if func is aten._local_scalar_dense.default:
            self.decisive += self._made_from(tensors) or []
        decisive = self._made_from(_counted(func, args))
        if decisive is None:
            raise CaptureError(
                f"a shape depends on a tensor's values, in {func} ({_line_now()}). Select with "
                "pyro.poutine.mask or torch.where, or index with integers from outside"
            )
        self.decisive += decisive
        if any(isinstance(x, torch.Generator) for x in (*args, *kwargs.values())):
            raise CaptureError(f"it draws from a Generator of its own, in {func} ({_line_now()})")
        written = {_storage(x) for x in _written(func, args, kwargs)}
        if not written <= self.own:
            raise CaptureError(
                f"it writes to a tensor that outlives the call, in {func} ({_line_now()}); a "
                "BatchNorm layer in train mode does so"
            )
        result = func(*args, **kwargs)
        made = {_storage(x) for x in _tensors((result,))}
        self.own |= made if func in _FRESH else made - given
        made |= written
        random = torch.Tag.nondeterministic_seeded in func.tags
        sources = None if random else self._made_from(tensors)
        for storage in made:
            self.fixed.pop(storage, None)
            if sources is not None:
                self.fixed[storage] = sources
        return result

    def varies(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on more than what the program holds."""
        return self._made_from([tensor]) is None

    def _made_from(self, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        found: dict[int, Tensor] = {}
        for tensor in tensors:
            storage = _storage(tensor)
            if storage in self.fixed:
                found |= {id(x): x for x in self.fixed[storage]}
            elif storage in self.inputs or storage in self.own:
                return None
            else:
                found[id(tensor)] = tensor
        return list(found.values())


class _Reads(TorchFunctionMode):
    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self.guard = guard

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in _READS:
            if self.guard.varies(args[0]):
                raise CaptureError(_reads_a_number())
            self.guard.decisive += self.guard._made_from([args[0]]) or []
        return func(*args, **(kwargs or {}))


def _reads_a_number() -> str:
    return f"a Python number or branch depends on a tensor's values ({_line_now()})"


def _counted(func: Any, args: tuple) -> list[Tensor]:
    """The tensors whose values decide what shape the result of an operator has."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return []
    if func is aten.index.Tensor:
        return [x for x in _tensors(args[1:]) if x.dtype in (torch.bool, torch.uint8)]
    return list(_tensors(args[1:] if func is aten.masked_select.default else args))


def _written(func: Any, args: tuple, kwargs: dict) -> Iterator[Tensor]:
    if func in _SILENT_WRITES and args[_TRAINING]:
        yield from _tensors([args[i] for i in _SILENT_WRITES[func]])
    if not func._schema.is_mutable:
        return
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors((args[i] if i < len(args) else kwargs.get(argument.name),))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


def _storage(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided:
        raise CaptureError(f"a tensor is {tensor.layout}, not dense ({_line_now()})")
    return tensor.untyped_storage()._cdata


def users_line(error: BaseException) -> str:
    """The innermost line of the traceback that is neither PyTorch's, nor Pyro's, nor ours."""
    return _innermost([frame for frame, _ in traceback.walk_tb(error.__traceback__)])


def _line_now() -> str:
    return _innermost([frame for frame, _ in traceback.walk_stack(None)][::-1])


def _innermost(frames: Sequence[Any]) -> str:
    for frame in reversed(frames):
        path = frame.f_code.co_filename
        if not path.startswith(_FOREIGN):
            line = linecache.getline(path, frame.f_lineno).strip()
            return f"{Path(path).name}, line {frame.f_lineno}: {line}"
    return "no line of the program itself"


_FOREIGN = (
    str(Path(torch.__path__[0])) + "/",
    str(Path(pyro.__path__[0])) + "/",
    str(Path(__file__).parent) + "/",
    str(Path(linecache.__file__).parent / "contextlib.py"),
    "<",  # generated code
)
