"""Rewriting a graph before it is compiled, where that makes it faster or keeps an error alive."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["keep_failures", "simplify"]

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


def keep_failures(module: fx.GraphModule) -> None:
    """Let a factorization that failed give NaN.

    A graph checks for it in an operator without results, which compilers leave out as useless.

    Args:
        module: a graph of aten operators, changed in place.
    """
    graph = module.graph
    for check in list(graph.nodes):
        if check.target is not aten._linalg_check_errors.default:
            continue
        info = check.args[0]
        factors = [
            node
            for node in info.args[0].users
            if node.target is operator.getitem and node.args[1] == 0
        ]
        for factor in factors:
            with graph.inserting_after(check):
                failed = graph.call_function(aten.ne.Scalar, (info, 0))
            for _ in range(2):
                with graph.inserting_after(failed):
                    failed = graph.call_function(aten.unsqueeze.default, (failed, -1))
            with graph.inserting_after(failed):
                kept = graph.call_function(aten.masked_fill.Scalar, (factor, failed, math.nan))
            late = {node for node in graph.nodes if node > kept}
            factor.replace_all_uses_with(kept, lambda user, late=late: user in late)
        graph.erase_node(check)
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
