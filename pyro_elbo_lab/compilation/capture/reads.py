"""The values of arguments and held tensors that a program has read as Python numbers or shapes.

A graph is right as long as they are the same. They are outputs of the traced graph, so that the
part of it which computes them can be run again.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from pyro_elbo_lab.compilation.capture.guard import CaptureError

__all__ = ["Reads", "take_reads"]

_COPIED = 1 << 16  # bytes


class Reads:
    """What was read, as a function of the inputs that it depends on.

    Args:
        module: takes some of the inputs, returns what was read of them.
        positions: which of (*data, *constants) it takes.
        values: what was read when the graph was captured.
        lines: of the program, which have read it.

    Attributes:
        changed: the line that has read something else in the arguments that were looked at last.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        positions: Sequence[int],
        values: Sequence[Tensor],
        lines: Sequence[str],
    ) -> None:
        self._module = module
        self._positions = tuple(positions)
        self._values = tuple(values)
        self._lines = tuple(lines)
        self.changed = ""
        self._seen: list[tuple[Tensor, int, int, Tensor | None]] = []

    @property
    def any(self) -> bool:
        """Whether something was read of arguments or held tensors."""
        return bool(self._positions)

    def hold(self, data: Sequence[Tensor], constants: Sequence[Tensor]) -> bool:
        """Whether of these arguments and held tensors the same would be read."""
        num_data = len(data)
        inputs = [data[i] if i < num_data else constants[i - num_data] for i in self._positions]
        if len(inputs) == len(self._seen) and all(map(_untouched, inputs, self._seen)):
            return True
        try:
            with torch.no_grad():
                found = self._module(*[x.detach() for x in inputs])
        except (RuntimeError, IndexError, ValueError):  # it has shapes that other values had
            self.changed = self._lines[0]
            return False
        for one, other, line in zip(found, self._values, self._lines, strict=True):
            if not _same(one, other):
                self.changed = line
                return False
        self._seen = [(x, x._version, x.data_ptr(), _copy(x)) for x in inputs]
        return True


def take_reads(
    module: fx.GraphModule,
    num_outputs: int,
    leaves: Sequence[Tensor],
    data: Sequence[Tensor],
    constants: Sequence[Tensor],
    lines: Sequence[str],
) -> Reads:
    """Take what was read out of a graph, where it is among the outputs.

    Args:
        module: takes (*leaves, *data, *constants, *noise), returns what was computed and then what
            was read; the latter is removed.
        num_outputs: how many outputs were computed.
        leaves: parameters.
        data: arguments.
        constants: held tensors.
        lines: of the program, which have read the values.

    Raises:
        CaptureError: what was read depends on other inputs too, or on a tensor that is written to.
    """
    graph = module.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    outputs: Any = output.args[0]
    kept, read = outputs[:num_outputs], outputs[num_outputs:]
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    free = placeholders[len(leaves) : len(leaves) + len(data) + len(constants)]
    needed = _ancestors(graph, read)
    positions = [i for i, node in enumerate(free) if node in needed]
    if any(node in needed for node in placeholders if node not in free):
        raise CaptureError("a Python number depends on a parameter or on what was drawn")
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {free[i]: part.placeholder(f"x{i}") for i in positions}
    for node in graph.nodes:
        if node in needed and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in read))
    output.args = (tuple(kept),)
    graph.eliminate_dead_code()
    module.recompile()
    part.eliminate_dead_code()
    function = fx.GraphModule(nn.Module(), part)
    tensors = [*data, *constants]
    with torch.no_grad():
        values = function(*[tensors[i].detach() for i in positions]) if positions else ()
    return Reads(function, positions, values, lines)


def _ancestors(graph: fx.Graph, nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """What the nodes are computed from, with what is written to it in place."""
    found: set[fx.Node] = set()
    memory = {node: _memory(node) for node in graph.nodes if _is_write(node)}
    todo = list(nodes)
    while todo:
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo += node.all_input_nodes
        todo += [node for node, own in memory.items() if node not in found and found & own]
    for node in found & set(memory):
        if any(x.op == "placeholder" for x in memory[node]):
            raise CaptureError("a Python number depends on a tensor that every run writes to")
    return found


def _is_write(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _memory(node: fx.Node) -> set[fx.Node]:
    """The nodes that share the memory that a node writes to, back to where it comes from."""
    target: Any = node.target
    found: set[fx.Node] = set()
    todo: list[fx.Node] = []
    for i, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            todo += [x for x in tree_leaves(given) if isinstance(x, fx.Node)]
    while todo:
        part = todo.pop()
        found.add(part)
        if _shares(part):
            todo += [x for x in part.all_input_nodes[:1] if x not in found]
    return found


def _shares(node: fx.Node) -> bool:
    """Whether a node is a view of its first input, or that input, written to."""
    target = node.target
    return target is operator.getitem or (
        isinstance(target, torch._ops.OpOverload)
        and any(result.alias_info is not None for result in target._schema.returns)
    )


def _copy(tensor: Tensor) -> Tensor | None:
    return tensor.detach().clone() if tensor.numel() * tensor.itemsize <= _COPIED else None


def _untouched(tensor: Tensor, seen: tuple[Tensor, int, int, Tensor | None]) -> bool:
    """Memory may be written to without PyTorch's notice: by numpy, or through `.data`."""
    same = tensor is seen[0] and tensor._version == seen[1] and tensor.data_ptr() == seen[2]
    if not same or not tensor.untyped_storage().resizable():
        return False
    return seen[3] is None or torch.equal(tensor, seen[3])


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)
