"""A graph, compiled by `torch._inductor` and run on fixed tensors in the fastest way there is.

On the CPU the compiled graph's kernels are recorded and called from C (see `recording`), on a GPU
the whole graph is one CUDA graph. Either is used only once it has given what the graph itself gives.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, fx
from torch._inductor import config

from pyro_elbo_lab.recording import Feed, NotRecordableError, record

__all__ = ["Runner", "compile_graph", "runner_of"]

Compiled = Callable[..., Sequence[Tensor]]

_SETTINGS = {"fallback_random": True}


class Runner(Protocol):
    """A graph on fixed tensors."""

    outputs: list[Tensor]

    def run(
        self, steps: int = 1, feeds: Sequence[Feed] = (), emits: Sequence[Feed] = ()
    ) -> None: ...


def compile_graph(module: fx.GraphModule, inputs: Sequence[Tensor]) -> Compiled:
    """Compile a graph.

    Args:
        module: takes tensors, may write to them, returns a tuple of tensors.
        inputs: tensors of the shapes, strides, types and devices that it will get.

    Returns:
        A function of such tensors that does the same, to rounding.
    """
    with torch.no_grad(), warnings.catch_warnings(), config.patch(_SETTINGS):
        warnings.simplefilter("ignore")  # of no concern to who fits a model
        return torch._inductor.standalone_compile(
            module, [x.detach() for x in inputs], dynamic_shapes="from_example_inputs"
        )


def runner_of(compiled: Compiled, inputs: Sequence[Tensor]) -> Runner:
    """The fastest runner of a compiled graph. It runs the graph once: inputs that the graph writes to
    change.

    Args:
        compiled: from `compile_graph`, or the graph itself.
        inputs: the tensors that will hold its inputs at every run.
    """
    inputs = [x.detach() for x in inputs]
    if any(x.device.type == "cuda" for x in inputs):
        return _CudaGraph(compiled, inputs)
    if isinstance(compiled, fx.GraphModule):
        return _Plain(compiled, inputs)
    try:
        return record(compiled, inputs)
    except NotRecordableError:
        return _Plain(compiled, inputs)


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
