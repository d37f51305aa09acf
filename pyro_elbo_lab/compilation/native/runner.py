"""A graph, compiled by `torch._inductor` and run on fixed tensors in the fastest way there is.

On the CPU the compiled graph's kernels are recorded and called from C (see `recording`), on a GPU
the whole graph is one CUDA graph. Either is used once it has given what the graph itself gives.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from pyro_elbo_lab.compilation.capture.simplify import keep_failures, simplify
from pyro_elbo_lab.compilation.native.internals import MissingError, internal
from pyro_elbo_lab.compilation.native.leftovers import leftovers_dropped
from pyro_elbo_lab.compilation.native.recording import Feed, NotRecordableError, record
from pyro_elbo_lab.programs.messages import first_line, warn
from pyro_elbo_lab.programs.precision import as_written
from pyro_elbo_lab.programs.state import random_states_kept

__all__ = ["MOST_NODES", "Runner", "checked_runner", "compile_graph", "runner_of"]

Compiled = Callable[..., Sequence[Tensor]]

MOST_NODES = 6000
"""Larger graphs take minutes to compile."""

_COMPARISONS = 2
_ULPS = 1e3


class Runner(Protocol):
    """A graph on fixed tensors."""

    outputs: list[Tensor]

    def run(
        self, steps: int = 1, feeds: Sequence[Feed] = (), emits: Sequence[Feed] = ()
    ) -> None: ...


def checked_runner(
    module: fx.GraphModule,
    inputs: Sequence[Tensor],
    refill: Callable[[], None],
    written: Sequence[Tensor] = (),
) -> tuple[Runner, str]:
    """The compiled graph, once its outputs are those of the graph.

    Args:
        module: takes tensors, may write to some of them, returns a tuple of tensors.
        inputs: the tensors that will hold its inputs at every run; as before afterwards, but for
            what `refill` changes.
        refill: draws new random inputs.
        written: the inputs that it writes to, or other tensors of the same memory.

    Returns:
        The runner; and if it runs the graph without compiling it, why.
    """
    storages = {x.untyped_storage()._cdata for x in written}
    places = [i for i, x in enumerate(inputs) if x.untyped_storage()._cdata in storages]
    inputs = [x.detach() for x in inputs]
    saved = [inputs[i].clone() for i in places]

    def restored() -> list[Tensor]:
        for i, before in zip(places, saved, strict=True):
            inputs[i].copy_(before)
        return inputs

    refill()  # an index that was never drawn may be out of bounds
    runner, reason = _runner_or_why_not(module, restored, refill, places)
    if runner is None:
        runner = _Plain(module, restored())
    restored()
    return runner, reason


def _runner_or_why_not(
    module: fx.GraphModule,
    restored: Callable[[], list[Tensor]],
    refill: Callable[[], None],
    places: Sequence[int],
) -> tuple[Runner | None, str]:
    size = len(module.graph.nodes)
    if size > MOST_NODES:
        return None, (
            f"the graph has {size} operators (a loop over time steps?) and would take minutes to "
            f"compile; at most {MOST_NODES} are compiled"
        )
    try:
        runner = runner_of(compile_graph(module, restored()), restored())
    except Exception as error:  # inductor has no one type for what it cannot do
        return None, f"it could not be compiled: {first_line(error)}"
    for _ in range(_COMPARISONS):
        refill()
        with random_states_kept(), torch.no_grad():
            own = [x.clone() for x in restored()]
            expected = [x.clone() for x in module(*own)]
        with random_states_kept():
            inputs = restored()
            runner.run()
        state = [inputs[i] for i in places]
        if not (_close(runner.outputs, expected) and _close(state, [own[i] for i in places])):
            return None, (
                "the compiled graph does not give what the graph gives (losses "
                f"{float(runner.outputs[0]):.7g} and {float(expected[0]):.7g})"
            )
    return runner, ""


def _close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether values are equal to rounding at the scale of the largest among them: small gradients
    may be differences of large terms."""
    finite = [x[torch.isfinite(x)] for x in expected]
    scale = max([1.0, *(float(x.abs().max()) for x in finite if x.numel())])
    return all(
        torch.allclose(
            a, b, rtol=0.0, atol=_ULPS * torch.finfo(b.dtype).eps * scale, equal_nan=True
        )
        if b.is_floating_point()
        else torch.equal(a, b)
        for a, b in zip(found, expected, strict=True)
    )


@leftovers_dropped()
def compile_graph(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Compiled:
    """What inductor makes of a graph, which stays as it is.

    Args:
        module: takes tensors, may write to them, returns a tuple of tensors.
        inputs: of the shapes, strides and types that it will be called with.

    Raises:
        Exception: of any type, if inductor cannot compile the graph.
    """
    module = fx.GraphModule(module, copy.deepcopy(module.graph))
    simplify(module)
    keep_failures(module)
    examples: list[Any] = [x.detach() for x in inputs]
    # Every setting that PyTorch patches on its way stays in the context for ever: it gets its own.
    return copy_context().run(_compiled, module, examples)


def _compiled(module: fx.GraphModule, examples: Sequence[Tensor]) -> Compiled:
    with torch.no_grad(), as_written(), _silence(), internal("config").patch(_settings()):
        return internal("standalone_compile")(
            module, examples, dynamic_shapes="from_example_inputs"
        )


def _settings() -> dict[str, Any]:
    settings: dict[str, Any] = {"fallback_random": True}
    config = internal("config")
    if config.cpp.vec_isa_ok is None and torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        # PyTorch itself runs on these instructions. Trying them takes a compiler six seconds.
        settings["cpp.vec_isa_ok"] = True
    return settings


@contextmanager
def _silence() -> Iterator[None]:
    """What PyTorch has to say about its own compiler is of no concern to who fits a model."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_LOGGERS = ("torch.utils.cpp_extension", "torch._inductor.standalone_compile")


def runner_of(compiled: Compiled, inputs: Sequence[Tensor]) -> Runner:
    """The fastest runner of a compiled graph. It runs the graph: what this writes to changes.

    Args:
        compiled: what inductor made of a graph, or the graph itself.
        inputs: the tensors that will hold its inputs at every run.
    """
    inputs = [x.detach() for x in inputs]
    devices = {x.device.type for x in inputs}
    if "cuda" in devices:
        # A CUDA graph would keep for ever what the CPU had for it when it was captured.
        return (_CudaGraph if devices == {"cuda"} else _Plain)(compiled, inputs)
    if isinstance(compiled, fx.GraphModule):
        return _Plain(compiled, inputs)
    try:
        return record(compiled, inputs)
    except NotRecordableError:
        return _Plain(compiled, inputs)
    except MissingError as error:
        _say(str(error))
        return _Plain(compiled, inputs)


@cache
def _say(missing: str) -> None:
    warn(f"Compiled graphs are called from Python, which is slower: {missing}.")


class _Plain:
    """Calls the function at every step."""

    def __init__(self, function: Compiled, inputs: list[Tensor]) -> None:
        self._function = function
        self._inputs = inputs
        self.outputs: list[Tensor] = []
        self._step()

    def run(self, steps: int = 1, feeds: Sequence[Feed] = (), emits: Sequence[Feed] = ()) -> None:
        for i in range(steps):
            for rows, tensor in feeds:
                tensor.copy_(rows[i], non_blocking=True)
            self._step()
            for rows, tensor in emits:
                rows[i].copy_(tensor, non_blocking=True)

    def _step(self) -> None:
        with torch.no_grad():
            found = list(self._function(*self._inputs))
        if not self.outputs:
            self.outputs = [x.clone() for x in found]
        for kept, new in zip(self.outputs, found, strict=True):
            kept.copy_(new)


class _CudaGraph(_Plain):
    """Replays one CUDA graph at every step, without waiting for the device."""

    def __init__(self, function: Compiled, inputs: list[Tensor]) -> None:
        self._graph: Any = None
        super().__init__(function, inputs)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            super()._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            super()._step()
        self._graph = graph

    def _step(self) -> None:
        if self._graph is None:
            super()._step()
        else:
            self._graph.replay()
