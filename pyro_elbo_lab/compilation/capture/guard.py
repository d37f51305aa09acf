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

from pyro_elbo_lab.compilation.native.internals import internal

__all__ = [
    "CaptureError",
    "guarded",
    "line_now",
    "made_by",
    "reads_a_number",
    "refuse_generators",
    "storage_of",
    "tensors_in",
    "users_line",
    "written_by",
]

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
def guarded(
    leaves: Sequence[Tensor], state: Sequence[Tensor] = ()
) -> Iterator[list[tuple[Tensor, str]]]:
    """Within it a program is refused that writes to tensors which outlive it, that makes tensors
    whose shape depends on parameters or on what was drawn, or that reads these as Python numbers.
    Tracing itself would not notice, or would not say where.

    What depends on nothing but arguments and on what the program holds may decide shapes and
    numbers: it is written down, and with other values it is another graph.

    Args:
        leaves: parameters, or whatever else has new values at every run.
        state: tensors that the program holds and may write to, but not read as numbers.

    Yields:
        What was read, as part of the graph that is traced, each with the line that did.

    Raises:
        CaptureError: before a tensor is changed.
    """
    guard = _Guard([*leaves, *state], state)
    with _Reads(guard), guard:
        yield guard.reads


class _Guard(TorchDispatchMode):
    """Tensors are known by their storages, which views share.

    Attributes:
        varying: those that depend on more than arguments and what the program holds.
        own: those that the program has made.
        state: those that it may write to.
        reads: copies of tensors whose values have decided shapes or numbers, with the lines.
    """

    def __init__(self, varying: Sequence[Tensor], state: Sequence[Tensor]) -> None:
        super().__init__()
        self.varying = {storage_of(x) for x in varying}
        self.state = {storage_of(x) for x in state}
        self.own: set[int] = set()
        self.reads: list[tuple[Tensor, str]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(tensors_in((*args, *kwargs.values())))
        given = {storage_of(x) for x in tensors}
        if torch.Tag.data_dependent_output in func.tags:
            return self._number(func, args, kwargs)
        self._note_shape(func, args)
        refuse_generators(func, (*args, *kwargs.values()))
        written = {storage_of(x) for x in written_by(func, args, kwargs)}
        if not written <= self.own | self.state:
            raise CaptureError(
                f"it writes to a tensor that outlives the call, in {func} ({line_now()})"
            )
        result = func(*args, **kwargs)
        made = made_by(func, given, result)
        self.own |= made
        random = torch.Tag.nondeterministic_seeded in func.tags
        if random or given & self.varying:
            self.varying |= made | written
        else:
            self.varying -= made - self.state
        return result

    def varies(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on more than arguments and what the program holds."""
        return storage_of(tensor) in self.varying

    def _number(self, func: Any, args: tuple, kwargs: dict) -> Any:
        read = list(tensors_in((*args, *kwargs.values())))
        if any(map(self.varies, read)):
            raise CaptureError(reads_a_number())
        if func is not aten.equal.default:
            self.note(read)
        elif read[0].shape == read[1].shape:
            self.note([(read[0] == read[1]).all()])
        with internal("disable_proxy_modes_tracing")():
            return func(*args, **kwargs)

    def _note_shape(self, func: Any, args: tuple) -> None:
        deciding = _counted(func, args)
        if any(map(self.varies, deciding)):
            raise CaptureError(
                f"a shape depends on a tensor's values, in {func} ({line_now()}). Select with "
                "pyro.poutine.mask or torch.where, or index with integers from outside"
            )
        self.note(deciding)

    def note(self, tensors: Sequence[Tensor]) -> None:
        self.reads += [(x.detach().clone(), line_now()) for x in tensors]


class _Reads(TorchFunctionMode):
    def __init__(self, guard: _Guard) -> None:
        super().__init__()
        self.guard = guard

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in _READS:
            if self.guard.varies(args[0]):
                raise CaptureError(reads_a_number())
            self.guard.note(args[:1])
        return func(*args, **(kwargs or {}))


def refuse_generators(func: Any, values: Sequence[Any]) -> None:
    """Raise if an operator draws from a generator of the program's own."""
    if any(isinstance(x, torch.Generator) for x in values):
        raise CaptureError(f"it draws from a Generator of its own, in {func} ({line_now()})")


def made_by(func: Any, given: set[int], result: Any) -> set[int]:
    """The storages that an operator has made, from those of its arguments and its result."""
    found = {storage_of(x) for x in tensors_in((result,))}
    return found if func in _FRESH else found - given


def reads_a_number() -> str:
    """What is wrong with the present line."""
    return f"a Python number or branch depends on a tensor's values ({line_now()})"


def _counted(func: Any, args: tuple) -> list[Tensor]:
    """The tensors whose values decide what shape the result of an operator has."""
    if func is aten._pack_padded_sequence.default:
        return [args[1]]
    if torch.Tag.dynamic_output_shape not in func.tags:
        return []
    if func is aten.index.Tensor:
        return [x for x in tensors_in(args[1:]) if x.dtype in (torch.bool, torch.uint8)]
    return list(tensors_in(args[1:] if func is aten.masked_select.default else args))


def written_by(func: Any, args: tuple, kwargs: dict) -> Iterator[Tensor]:
    """The tensors that an operator writes to."""
    if func in _SILENT_WRITES and args[_TRAINING]:
        yield from tensors_in([args[i] for i in _SILENT_WRITES[func]])
    if not func._schema.is_mutable:
        return
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_in((args[i] if i < len(args) else kwargs.get(argument.name),))


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments of an operator, and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from tensors_in(value)


def storage_of(tensor: Tensor) -> int:
    """What tells memory apart."""
    if tensor.layout is not torch.strided:
        raise CaptureError(f"a tensor is {tensor.layout}, not dense ({line_now()})")
    return tensor.untyped_storage()._cdata


def users_line(error: BaseException) -> str:
    """The innermost line of the traceback that is neither PyTorch's, nor Pyro's, nor ours."""
    return _innermost([frame for frame, _ in traceback.walk_tb(error.__traceback__)])


def line_now() -> str:
    """The innermost line of the program that runs, as `users_line` has it."""
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
    str(Path(__file__).parents[2]) + "/",
    str(Path(linecache.__file__).parent / "contextlib.py"),
    "<",  # generated code
)
