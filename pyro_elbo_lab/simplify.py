"""Rewriting a graph so that what two operators compute alike is computed once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["simplify"]

aten = torch.ops.aten


def simplify(module: fx.GraphModule) -> None:
    """Let the logistic function and the Bernoulli log-likelihood of one tensor share exp(-|x|).

    Both decompose into exponentials of their own otherwise, which is most of the work in a logistic
    regression.

    Args:
        module: a graph of aten operators, changed in place.
    """
    graph = module.graph
    exponentials: dict[fx.Node, fx.Node] = {}

    def exponential(x: fx.Node) -> fx.Node:
        if x not in exponentials:
            with graph.inserting_after(x):
                size = graph.call_function(aten.abs.default, (x,))
            with graph.inserting_after(size):
                minus = graph.call_function(aten.neg.default, (size,))
            with graph.inserting_after(minus):
                exponentials[x] = graph.call_function(aten.exp.default, (minus,))
        return exponentials[x]

    likelihoods = {node.args[0] for node in graph.nodes if _is_likelihood(node)}
    for node in list(graph.nodes):
        if _is_likelihood(node):
            _replace(graph, node, exponential(node.args[0]), _likelihood)
        elif node.target is aten.sigmoid.default and node.args[0] in likelihoods:
            _replace(graph, node, exponential(node.args[0]), _logistic)
    module.recompile()


def _is_likelihood(node: fx.Node) -> bool:
    return (
        node.target is aten.binary_cross_entropy_with_logits.default
        and node.args[2:4] in ((), (None, None))
        and node.args[4:] == (0,)
    )


def _likelihood(e: Tensor, x: Tensor, y: Tensor, *_: object) -> Tensor:
    return x.clamp(min=0) - x * y + e.log1p()


def _logistic(e: Tensor, x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, e) / (1 + e)


def _replace(graph: fx.Graph, node: fx.Node, e: fx.Node, formula: Callable[..., Tensor]) -> None:
    tracer = fx.proxy.GraphAppendingTracer(graph)
    with graph.inserting_before(node):
        given = [fx.Proxy(x, tracer) if isinstance(x, fx.Node) else x for x in node.args]
        result: Any = formula(fx.Proxy(e, tracer), *given)
    node.replace_all_uses_with(result.node)
    graph.erase_node(node)
