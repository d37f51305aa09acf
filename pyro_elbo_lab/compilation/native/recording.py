"""The kernels that a compiled graph calls, written down once and called again from a loop in C.

A compiled graph (`torch._inductor`) is a Python function that allocates buffers and hands them to
kernels. On the CPU allocation and Python cost more than the arithmetic of a small model. So the
function runs once, while every kernel call is written down with the pointers that it got; the loop
then makes the same calls on the same buffers, as a CUDA graph does on a GPU. What is no kernel of
inductor's, a Cholesky factor say, is called back in Python and its result copied to where the
recorded one lies.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import BuiltinFunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from pyro_elbo_lab.compilation.native.internals import internal, load_cpp
from pyro_elbo_lab.compilation.native.leftovers import modules_thinned
from pyro_elbo_lab.compilation.native.operators import bits, native_call
from pyro_elbo_lab.compilation.native.products import product

__all__ = ["Feed", "NotRecordableError", "Recording", "Replay", "record"]

Compiled = Callable[..., Sequence[Tensor]]


class Feed(NamedTuple):
    """A block of values, one row a step, (steps, *shape), and the tensor that holds one row."""

    rows: Tensor
    tensor: Tensor


class NotRecordableError(Exception):
    """The compiled function does something else than calling kernels and operators."""


@dataclass
class _Kernel:
    """A call of a kernel: its address and its arguments, pointers or integers. If it is scaled, the
    last two of six are the bits of floating-point numbers."""

    address: int
    arguments: list[int]
    scaled: bool = False


@dataclass
class _Operator:
    """A call of an operator by Python, whose results belong where the recorded ones lie."""

    operator: Any
    args: tuple
    kwargs: dict[str, Any]
    results: list[Tensor]

    def __call__(self) -> None:
        found = tree_flatten(self.operator(*self.args, **self.kwargs))[0]
        for old, new in zip(self.results, found, strict=True):
            if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                old.copy_(new)


@dataclass
class _Log:
    """What is done, in order, and what has to stay in memory."""

    calls: list[_Kernel | _Operator] = field(default_factory=list)
    keep: list[Any] = field(default_factory=list)


def record(compiled: Compiled, inputs: Sequence[Tensor]) -> "Recording":
    """Run a compiled function once and write its calls down.

    Args:
        compiled: takes the inputs, may write to them, returns tensors.
        inputs: contiguous or strided CPU tensors; what the function does to them is not undone.

    Raises:
        NotRecordableError: no kernel was seen where there should be one.
        MissingError: this version of PyTorch lacks what it takes.
    """
    log = _Log(keep=[compiled])
    with torch.no_grad(), _Operators(log), _kernels(log):
        outputs = list(compiled(*inputs))
    modules_thinned()
    if not any(isinstance(call, _Kernel) for call in log.calls):
        raise NotRecordableError("inductor's kernels were not found")
    return Recording(log, list(inputs), outputs)


class Recording:
    """Calls of kernels and operators on fixed buffers.

    Attributes:
        inputs: the tensors that it reads and writes.
        outputs: where its results lie after every run.
    """

    def __init__(self, log: _Log, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self._log = log
        self._failure: BaseException | None = None
        self._operators: dict[int, _Operator] = {}
        kernels = [call for call in log.calls if isinstance(call, _Kernel)]
        arities = {len(kernel.arguments) for kernel in kernels if not kernel.scaled}
        self._library = load_cpp(_source(sorted(arities)))
        self._library.replay.restype = ctypes.c_long
        self._library.replay.argtypes = _ARGUMENTS
        pointers = [p for kernel in kernels for p in kernel.arguments]
        self._pointers = (ctypes.c_void_p * len(pointers))(*pointers)
        self._calls = (_Call * len(log.calls))()
        offset = 0
        for i, call in enumerate(log.calls):
            if isinstance(call, _Kernel):
                arity = _SCALED if call.scaled else len(call.arguments)
                self._calls[i] = _Call(call.address, arity, offset)
                offset += len(call.arguments)
            else:
                self._operators[i] = call
                self._calls[i] = _Call(None, 0, 0)
        self._back = _CALLBACK(self._operate)

    @property
    def native(self) -> bool:
        """Whether no step needs Python."""
        return not self._operators

    def run(self, steps: int = 1, feeds: Sequence[Feed] = (), emits: Sequence[Feed] = ()) -> None:
        """Make the calls `steps` times.

        Args:
            steps: how often.
            feeds: before step i row i is copied to the tensor, one of the inputs.
            emits: after step i the tensor, an input or an output, is copied to row i.

        Raises:
            RuntimeError: a kernel failed, for instance at an index out of bounds.
        """
        done = self._library.replay(
            steps,
            self._calls,
            len(self._calls),
            self._pointers,
            _copies(feeds, steps) if feeds else None,
            len(feeds),
            _copies(emits, steps) if emits else None,
            len(emits),
            self._back,
        )
        if done < steps:
            failure, self._failure = self._failure, None
            raise failure or RuntimeError("A compiled kernel failed (an index out of bounds?).")

    @property
    def replay(self) -> "Replay":
        """What other code in C needs to make the calls; valid as long as the recording lives."""
        return Replay(
            ctypes.cast(self._library.replay, ctypes.c_void_p),
            ctypes.addressof(self._calls),
            len(self._calls),
            ctypes.addressof(self._pointers),
            ctypes.cast(self._back, ctypes.c_void_p),
        )

    @property
    def failure(self) -> BaseException | None:
        """What an operator in Python has raised, if other code in C made the calls."""
        return self._failure

    def _operate(self, index: int) -> int:
        try:
            with torch.no_grad():
                self._operators[index]()
        except BaseException as error:  # must not pass through C
            self._failure = error
            return 1
        return 0


class _Call(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_void_p),
        ("num_arguments", ctypes.c_long),
        ("offset", ctypes.c_long),
    )


class Replay(ctypes.Structure):
    """Arguments of `replay`, the function in C that makes the calls: see `_SOURCE`."""

    _fields_ = (
        ("function", ctypes.c_void_p),
        ("calls", ctypes.c_void_p),
        ("num_calls", ctypes.c_long),
        ("pointers", ctypes.c_void_p),
        ("operate", ctypes.c_void_p),
    )


class _Copy(ctypes.Structure):
    _fields_ = (("rows", ctypes.c_void_p), ("tensor", ctypes.c_void_p), ("bytes", ctypes.c_long))


_SCALED = -1

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_long)
_ARRAY = (ctypes.c_void_p, ctypes.c_long)
_ARGUMENTS = (ctypes.c_long, *_ARRAY, ctypes.c_void_p, *_ARRAY, *_ARRAY, _CALLBACK)

_SOURCE = """
#include <cstring>

struct Call { void* address; long num_arguments; long offset; };
struct Copy { char* rows; char* tensor; long bytes; };

static inline void call(void* f, void** p, long n) {
    double factors[2];
    switch (n) {
    case -1:
        std::memcpy(factors, p + 4, sizeof(factors));
        ((void (*)(void*, void*, void*, void*, double, double))f)(
            p[0], p[1], p[2], p[3], factors[0], factors[1]);
        break;
CASES
    }
}

extern "C" long replay(long steps, const Call* calls, long num_calls, void** pointers,
                       const Copy* feeds, long num_feeds, const Copy* emits, long num_emits,
                       int (*operate)(long)) {
    long step = 0;
    try {
        for (; step < steps; ++step) {
            for (long i = 0; i < num_feeds; ++i)
                std::memcpy(feeds[i].tensor, feeds[i].rows + step * feeds[i].bytes, feeds[i].bytes);
            for (long i = 0; i < num_calls; ++i) {
                if (calls[i].address)
                    call(calls[i].address, pointers + calls[i].offset, calls[i].num_arguments);
                else if (operate(i))
                    return step;
            }
            for (long i = 0; i < num_emits; ++i)
                std::memcpy(emits[i].rows + step * emits[i].bytes, emits[i].tensor, emits[i].bytes);
        }
    } catch (...) {
    }
    return step;
}
"""


def _source(arities: Sequence[int]) -> str:
    cases = [
        f"        case {n}: (({_signature(n)})f)({', '.join(f'p[{i}]' for i in range(n))}); break;"
        for n in arities
    ]
    return _SOURCE.replace("CASES", "\n".join(cases))


def _signature(arity: int) -> str:
    return f"void (*)({', '.join(['void*'] * arity)})"


def _copies(feeds: Sequence[Feed], steps: int) -> Any:
    copies = (_Copy * len(feeds))()
    for i, (rows, tensor) in enumerate(feeds):
        if not rows.is_contiguous() or not tensor.is_contiguous() or len(rows) < steps:
            raise ValueError("Rows and tensors that are fed must be contiguous, one row a step.")
        copies[i] = _Copy(rows.data_ptr(), tensor.data_ptr(), tensor.numel() * tensor.itemsize)
    return copies


_ALLOCATIONS = (torch.ops.aten.empty_strided.default, torch.ops.aten.empty.memory_format)


class _Operators(TorchDispatchMode):
    """Writes down operators, except those that only make a view."""

    def __init__(self, log: _Log) -> None:
        super().__init__()
        self.log = log

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        if func.is_view or func in _ALLOCATIONS:
            return results
        in_python = _Operator(func, args, kwargs or {}, tree_flatten(results)[0])
        native = _product(in_python, self.log) or self._dispatched(in_python, results)
        if native is not None:
            self.log.keep.append((args, kwargs, results))
        self.log.calls.append(native or in_python)
        return results

    def _dispatched(self, operator: _Operator, results: Any) -> _Kernel | None:
        call = native_call(operator.operator, operator.args, operator.kwargs, results)
        if call is None:
            return None
        self.log.keep.append(call)
        return _Kernel(call.function, [call.argument])


def _product(operator: _Operator, log: _Log) -> _Kernel | None:
    found = product(operator.operator, operator.args, operator.kwargs)
    if found is None:
        return None
    log.keep.append(found.keep)
    factors = [bits(factor) for factor in found.factors]
    return _Kernel(found.address, found.arguments + factors, scaled=bool(factors))


@contextmanager
def _kernels(log: _Log) -> Iterator[None]:
    """Writes down the calls of kernels in every module that inductor has generated."""
    saved: list[tuple[dict[str, Any], str, Any]] = []
    for module in internal("PyCodeCache").modules:
        for name, value in list(vars(module).items()):
            if name.startswith("cpp_fused") and isinstance(value, BuiltinFunctionType):
                saved.append((vars(module), name, value))
                vars(module)[name] = _recorder(value, log)
    try:
        yield
    finally:
        for namespace, name, value in saved:
            namespace[name] = value


def _recorder(kernel: Any, log: _Log) -> Callable[..., Any]:
    library = ctypes.CDLL(kernel.__self__.__file__)
    address = ctypes.cast(library.kernel, ctypes.c_void_p).value
    assert address is not None

    def call(*arguments: Any) -> Any:
        log.keep.append((library, arguments))
        log.calls.append(_Kernel(address, [_word(a) for a in arguments]))
        return kernel(*arguments)

    return call


def _word(argument: Any) -> int:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if isinstance(argument, int):
        return argument
    raise NotRecordableError(f"a kernel takes a {type(argument).__name__}")
