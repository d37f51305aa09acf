"""A function of tensors that runs Pyro programs, captured as one graph of aten operators."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import pyro
import torch
from pyro import poutine
from torch import Tensor, fx
from torch.distributions import Distribution

from pyro_elbo_lab.compilation.capture.guard import CaptureError, guarded, storage_of, users_line
from pyro_elbo_lab.compilation.capture.noise import Noise, hoist
from pyro_elbo_lab.compilation.capture.reads import Reads, take_reads
from pyro_elbo_lab.compilation.capture.rewrites import rewritten
from pyro_elbo_lab.compilation.capture.scans import DECOMPOSITIONS
from pyro_elbo_lab.compilation.capture.writes import put_back
from pyro_elbo_lab.compilation.native.internals import internal
from pyro_elbo_lab.compilation.native.leftovers import leftovers_dropped

__all__ = ["Graph", "capture", "unvalidated"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Graph:
    """A graph as a function (*leaves, *data, *constants, *noise) -> outputs.

    Attributes:
        module: the graph.
        constants: tensors that the program holds itself; always the current ones are read.
        noise: what to draw for the last inputs.
        reads: the values that have decided Python numbers and shapes: with others it is another
            graph.
        state: tensors that every run writes to, by way of the constants.
        num_nodes: the size of the graph, which tells how long compiling it takes.
    """

    module: fx.GraphModule
    constants: tuple[Tensor, ...]
    noise: Noise
    reads: Reads
    state: tuple[Tensor, ...]

    @property
    def num_nodes(self) -> int:
        return len(self.module.graph.nodes)


@leftovers_dropped()
def capture(
    function: Callable[..., tuple[Tensor, ...]],
    leaves: Sequence[Tensor],
    data: Sequence[Tensor],
    state: Sequence[Tensor] = (),
    moving: Sequence[Tensor] = (),
) -> Graph:
    """Run a function once and write its operators down.

    Args:
        function: of the data tensors; it reads the leaves by itself.
        leaves: parameters that must become inputs.
        data: the arguments.
        state: tensors that the program holds and that every run writes to; as before afterwards.
        moving: those of the data that have other values at every call, so that no number may
            depend on them.

    Raises:
        CaptureError: control flow or Python numbers that depend on parameters or on what was drawn,
            another tensor that outlives the function and is written to.
    """
    own = {storage_of(x) for x in state}
    num_outputs = 0

    def traced(*inputs: Tensor) -> tuple[Tensor, ...]:
        nonlocal num_outputs
        with rewritten():
            outputs = function(*inputs)
        num_outputs = len(outputs)
        return (*outputs, *[x for x, _ in read])

    try:
        with ExitStack() as stack:
            for context in (poutine.block(), unvalidated(), put_back(state)):
                stack.enter_context(context)
            read = stack.enter_context(guarded([*leaves, *moving], state))
            # aliases: a model may hold the very tensor that it is called with
            module = internal("make_fx")(traced, DECOMPOSITIONS)(*[x.detach() for x in data])
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(_why(error)) from error
    constants = _lift(module, leaves)
    noise = hoist(module)
    reads = take_reads(module, num_outputs, leaves, data, constants, [line for _, line in read])
    for node in module.graph.nodes:
        node.meta.clear()
    written = [x for x in constants if storage_of(x) in own]
    if len(written) > len(own):
        raise CaptureError("it writes to a tensor that it also holds a view of")
    return Graph(module, constants, noise, reads, tuple(state))


def _why(error: Exception) -> str:
    text = str(error)
    if "_local_scalar_dense" in text or "data-dependent" in text.lower():
        return f"a Python number or branch depends on a tensor's values ({users_line(error)})"
    first = text.strip().splitlines()[0] if text.strip() else ""
    return f"{type(error).__name__}: {first} ({users_line(error)})"


@contextmanager
def unvalidated() -> Iterator[None]:
    """Distributions check no values, not even those that were made to, outside of the program."""
    unchecked = patch.object(Distribution, "_validate_sample", lambda self, value: None)
    with unchecked, pyro.validation_enabled(False):
        yield


def _lift(module: fx.GraphModule, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Turn the tensors that the graph refers to into inputs: leaves before the data, the others
    after it."""
    graph = module.graph
    data = [node for node in graph.nodes if node.op == "placeholder"]
    first = next(iter(graph.nodes))
    inputs: dict[int, fx.Node] = {}
    for i, leaf in enumerate(leaves):
        with graph.inserting_before(data[0] if data else first):
            inputs[id(leaf)] = graph.placeholder(f"leaf{i}")
    last = data[-1] if data else list(inputs.values())[-1] if inputs else None
    storages = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    constants: list[Tensor] = []
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        tensor = getattr(module, node.target)
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"it holds a {type(tensor).__name__} that cannot be an input")
        if id(tensor) not in inputs:
            if tensor.numel() and tensor.untyped_storage().data_ptr() in storages:
                raise CaptureError("it reads a parameter through .data or numpy")
            with graph.inserting_after(last) if last else graph.inserting_before(first):
                last = inputs[id(tensor)] = graph.placeholder(f"constant{len(constants)}")
            inputs[id(tensor)].meta = dict(node.meta)
            constants.append(tensor)
        node.replace_all_uses_with(inputs[id(tensor)])
        graph.erase_node(node)
    return tuple(constants)
