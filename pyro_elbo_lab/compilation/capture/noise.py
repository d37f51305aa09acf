"""The random numbers of a graph, drawn before it runs.

A random operator inside a compiled graph is slow, and cannot be drawn for many steps at once. Those
that depend on nothing (standard normals, uniforms, permutations, dropout masks) are taken out of
the graph and become inputs. Drawn one by one, in the program's order, they are the numbers that
the program itself would have drawn from the same random state; `Noise.block` draws many steps at
once, from the same distributions but as another stream.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Noise", "hoist"]

aten = torch.ops.aten

_EMPTY: tuple[Any, ...] = (
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
)


@dataclass(frozen=True)
class Draw:
    """One random operator that depends on nothing.

    Attributes:
        operator: its overload, in place (`normal_`) or a factory (`randperm`).
        args: without the tensor that an operator in place fills.
        kwargs: its keyword arguments.
        in_place: which of the two it is.
        shape: of its result.
        dtype: of its result.
        device: of its result.
    """

    operator: Any
    args: tuple
    kwargs: dict[str, Any]
    in_place: bool
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def into(self, rows: Tensor) -> None:
        """Fill a contiguous tensor with one draw, or with many if every element is independent."""
        if self.in_place:
            self.operator(rows, *self.args, **self.kwargs)
        else:
            rows.copy_(self.operator(*self.args, **self.kwargs))

    @property
    def elementwise(self) -> bool:
        """Whether elements are independent and alike, so that many draws are one large one."""
        return self.in_place


@dataclass(frozen=True)
class Noise:
    """The inputs of a graph that hold its random numbers.

    Attributes:
        draws: the random operators, in the program's order.
        rest: names of random operators that stay in the graph.
    """

    draws: tuple[Draw, ...]
    rest: tuple[str, ...]

    def allocate(self) -> list[Tensor]:
        """One tensor a draw, of arbitrary values."""
        return [torch.empty(d.shape, dtype=d.dtype, device=d.device) for d in self.draws]

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Draw one step, as the program would."""
        for draw, tensor in zip(self.draws, tensors, strict=True):
            draw.into(tensor)

    def block(self, steps: int) -> list[Tensor]:
        """Many steps at once, one tensor (steps, *shape) a draw.

        Elementwise draws of one kind come from one call of the generator.
        """
        blocks: list[Tensor | None] = [None] * len(self.draws)
        alike: dict[Any, list[int]] = {}
        for i, draw in enumerate(self.draws):
            if draw.elementwise:
                key = (draw.operator, draw.args, str(draw.kwargs), draw.dtype, draw.device)
                alike.setdefault(key, []).append(i)
                continue
            rows = torch.empty((steps, *draw.shape), dtype=draw.dtype, device=draw.device)
            for row in rows:
                draw.into(row)
            blocks[i] = rows
        for indices in alike.values():
            first = self.draws[indices[0]]
            sizes = [steps * math.prod(self.draws[i].shape) for i in indices]
            values = torch.empty(sum(sizes), dtype=first.dtype, device=first.device)
            first.into(values)
            for i, part in zip(indices, values.split(sizes), strict=True):
                blocks[i] = part.view(steps, *self.draws[i].shape)
        return [block for block in blocks if block is not None]


def hoist(module: fx.GraphModule) -> Noise:
    """Turn random operators that depend on nothing into inputs, after those that are there.

    Once an operator has to stay in the graph, all later ones stay too: the order of draws is the
    program's.

    Args:
        module: a graph of aten operators, with `meta["val"]` at its nodes; changed in place.

    Returns:
        What to draw for the new inputs.
    """
    graph = module.graph
    draws: list[Draw] = []
    rest: list[str] = []
    last_input = [node for node in graph.nodes if node.op == "placeholder"][-1:]
    for node in list(graph.nodes):
        if not _is_random(node):
            continue
        draw = None if rest else _independent(node)
        if draw is None:
            rest.append(str(node.target))
            continue
        with graph.inserting_after(last_input[0]) if last_input else graph.inserting_before():
            new = graph.placeholder(f"noise{len(draws)}")
        last_input = [new]
        if draw.in_place:
            empty = node.args[0]
            empty.replace_all_uses_with(new)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        draws.append(draw)
    graph.eliminate_dead_code()
    module.recompile()
    return Noise(tuple(draws), tuple(rest))


def _is_random(node: fx.Node) -> bool:
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
    )


def _independent(node: fx.Node) -> Draw | None:
    value = node.meta.get("val")
    assert isinstance(node.target, torch._ops.OpOverload)
    if not isinstance(value, Tensor):
        return None
    in_place = node.target._schema.is_mutable
    args: tuple = node.args
    if in_place:
        empty, *others = args
        if not (isinstance(empty, fx.Node) and empty.target in _EMPTY):
            return None
        if any(user is not node and user < node for user in empty.users):
            return None
        args = tuple(others)
    elif node.target._schema.name.endswith("_like"):
        return None
    inputs = [*args, *node.kwargs.values()]
    if any(isinstance(x, fx.Node | torch.Generator) for x in inputs):
        return None
    return Draw(
        node.target, args, dict(node.kwargs), in_place, value.shape, value.dtype, value.device
    )
