"""A function of tensors that runs Pyro programs, captured as one graph of aten operators."""

import linecache
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_elbo_lab.noise import Noise, hoist
from pyro_elbo_lab.scans import DECOMPOSITIONS

__all__ = ["CaptureError", "Graph", "capture", "users_line"]

aten = torch.ops.aten


class CaptureError(Exception):
    """The program cannot be one graph; the message says why, and where in the user's code."""


@dataclass(frozen=True)
class Graph:
    """A graph as a function (*leaves, *data, *constants, *noise) -> outputs.

    Attributes:
        module: the graph.
        constants: tensors that the program holds itself; always the current ones are read.
        noise: what to draw for the last inputs.
        num_nodes: the size of the graph, which tells how long compiling it takes.
    """

    module: fx.GraphModule
    constants: tuple[Tensor, ...]
    noise: Noise

    @property
    def num_nodes(self) -> int:
        return len(self.module.graph.nodes)


def capture(
    function: Callable[..., tuple[Tensor, ...]], leaves: Sequence[Tensor], data: Sequence[Tensor]
) -> Graph:
    """Run a function once and write its operators down.

    Args:
        function: of the data tensors; it reads the leaves by itself.
        leaves: parameters that must become inputs.
        data: the arguments.

    Raises:
        CaptureError: control flow or Python numbers that depend on a tensor's values, a tensor that
            outlives the function and is written to.
    """
    try:
        with poutine.block(), pyro.validation_enabled(False), _numbers_of(leaves):
            module = make_fx(function, DECOMPOSITIONS)(*data)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(_why(error)) from error
    _refuse_writes(module)
    constants = _lift(module, leaves)
    noise = hoist(module)
    for node in module.graph.nodes:
        node.meta.clear()
    return Graph(module, constants, noise)


def users_line(error: BaseException) -> str:
    """The innermost line of the traceback that is neither PyTorch's, nor Pyro's, nor ours."""
    return _innermost([frame for frame, _ in traceback.walk_tb(error.__traceback__)])


def _innermost(frames: Sequence[Any]) -> str:
    for frame in reversed(frames):
        path = frame.f_code.co_filename
        if not path.startswith(("<", *_FOREIGN)):
            line = linecache.getline(path, frame.f_lineno).strip()
            return f"{Path(path).name}, line {frame.f_lineno}: {line}"
    return "no line of the program itself"


_FOREIGN = (
    str(Path(torch.__path__[0])) + "/",
    str(Path(pyro.__path__[0])) + "/",
    str(Path(__file__).parent) + "/",
    str(Path(linecache.__file__).parent / "contextlib.py"),
)


def _why(error: Exception) -> str:
    text = str(error)
    if "_local_scalar_dense" in text or "data-dependent" in text.lower():
        return f"a Python number or branch depends on a tensor's values ({users_line(error)})"
    first = text.strip().splitlines()[0] if text.strip() else ""
    return f"{type(error).__name__}: {first} ({users_line(error)})"


@contextmanager
def _numbers_of(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Refuses Python numbers read from parameters, which tracing itself would silently keep."""
    with _NumberGuard({id(leaf) for leaf in leaves}):
        yield


class _NumberGuard(TorchDispatchMode):
    def __init__(self, leaves: set[int]) -> None:
        super().__init__()
        self.leaves = leaves

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is aten._local_scalar_dense.default and id(args[0]) in self.leaves:
            frames = [frame for frame, _ in traceback.walk_stack(None)]
            raise CaptureError(
                f"a Python number is read from a parameter ({_innermost(frames[::-1])})"
            )
        return func(*args, **(kwargs or {}))


def _refuse_writes(module: fx.GraphModule) -> None:
    """Graphs may write to tensors that they make, not to those that they are given."""
    given: set[fx.Node] = set()
    for node in module.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            given.add(node)
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        schema = node.target._schema
        if node.target.is_view and node.args and node.args[0] in given:
            given.add(node)
        for i, argument in enumerate(schema.arguments):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and i < len(node.args) and node.args[i] in given:
                where = node.meta.get("stack_trace") or ""
                raise CaptureError(
                    f"it writes to a tensor that it is given or that outlives it "
                    f"({schema.name.removeprefix('aten::')}, as the running statistics of a batch "
                    f"normalisation in train mode){where}"
                )


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
