"""An objective and its gradients as one graph, compared with eager runs before it is trusted."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unittest.mock import patch

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine import runtime
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from pyro_elbo_lab.compilation.capture.graph import Graph, capture, unvalidated
from pyro_elbo_lab.compilation.capture.guard import CaptureError, storage_of
from pyro_elbo_lab.compilation.capture.writes import State, first_run, put_back
from pyro_elbo_lab.compilation.leaves import places_of, refuse_hooks, without_hooks
from pyro_elbo_lab.compilation.watch.activity import Activity
from pyro_elbo_lab.compilation.watch.environment import Place, Watch
from pyro_elbo_lab.compilation.watch.footprints import (
    refuse_changes,
    refuse_footprints,
    refuse_what_is_too_much,
)
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.state import (
    foreign_random_states,
    gradients_on,
    random_states_kept,
    unconstrained,
)

__all__ = ["Evaluation", "agree", "evaluate"]

Program = Callable[..., Any]
Values = Sequence[Tensor | None]

_SEEDS = 20260001, 20260002
_PERTURBATION = 0.05


@dataclass(frozen=True)
class Evaluation:
    """An objective of one model and guide at arguments of given shapes.

    Attributes:
        graph: (*leaves, *data, *constants, *noise) -> (loss, *gradients), without those that are
            None.
        names: of the parameters, in the order of the leaves.
        leaves: their unconstrained values.
        places: where each is, None for the param store.
        has_gradient: which of them the loss depends on.
        data: the tensors among the arguments, and the weight of the KL terms if it is scheduled.
        numbers: what else it depends on.
    """

    graph: Graph
    names: tuple[str, ...]
    leaves: tuple[Tensor, ...]
    places: tuple[Place | None, ...]
    has_gradient: tuple[bool, ...]
    data: tuple[Tensor, ...]
    numbers: Watch

    @cached_property
    def trained(self) -> list[Tensor]:
        """The leaves that the loss depends on."""
        pairs = zip(self.leaves, self.has_gradient, strict=True)
        return [leaf for leaf, has in pairs if has]

    @cached_property
    def _has_local(self) -> bool:
        return any(self.places)

    @property
    def untrained(self) -> list[Tensor]:
        """The others."""
        pairs = zip(self.leaves, self.has_gradient, strict=True)
        return [leaf.detach() for leaf, has in pairs if not has]

    def data_for(self, objective: ELBO, args: tuple, kwargs: Mapping[str, Any]) -> list[Tensor]:
        """What the graph takes for these arguments, and for the number of the objective's next
        call if the weight of its KL terms is scheduled."""
        data = [x for x in tree_leaves((args, dict(kwargs))) if isinstance(x, Tensor)]
        if len(self.data) > len(data):
            data.append(torch.full_like(self.data[-1], kl_weight(objective)))
        return data

    def difference(self, objective: ELBO, pair: Pair) -> str:
        """Compare the graph with an eager run that draws what the next call will draw.

        The random states are as before afterwards.

        Returns:
            The two losses if value or gradients differ by more than rounding, else nothing.
        """
        with random_states_kept():
            found = self.run(self.data_for(objective, pair.args, pair.kwargs))

        def eager() -> list[Tensor]:
            with random_states_kept():
                return self.eager(objective, pair)

        for _ in range(2):  # an objective that plans anew draws more than it uses
            expected = eager()
            if len(found) == len(expected) and all(map(agree, found, expected)):
                return ""
        with _elsewhere(self.leaves):  # at an optimum gradients are differences of large sums
            away = eager()
        if len(found) == len(away) and all(map(_agree_at_scale, found, expected, away)):
            return ""
        return f"losses {_number(found)} and {_number(expected)}"

    def run(self, data: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Run the graph without compiling it; draws what the program would draw.

        Returns:
            Loss, gradients, and what the state has become, which is put back.
        """
        noise = self.graph.noise.allocate()
        self.graph.noise.fill(noise)
        inputs = [*self.leaves, *(data or self.data), *self.graph.constants, *noise]
        with torch.no_grad(), put_back(self.graph.state):
            found = list(self.graph.module(*inputs))
            return found + [x.clone() for x in self.graph.state]

    def eager(self, objective: ELBO, pair: Pair) -> list[Tensor]:
        """Run the program instead of the graph; returns what `run` returns."""
        return _present(_eager(copy.copy(objective), pair, self.leaves, self.graph.state))

    def is_for(self, arguments: Sequence[Any]) -> bool:
        """Whether the values of arguments that the program read as numbers are the same in these.

        Args:
            arguments: the leaves of the tree of arguments; other arguments are equal.
        """
        if not self.graph.reads.any:
            return True
        data = [x for x in arguments if isinstance(x, Tensor)]
        return self.graph.reads.hold([*data, *self.data[len(data) :]], self.graph.constants)

    def present(self) -> list[Tensor | None]:
        """The parameters that bear the names of the leaves now."""
        store = pyro.get_param_store()._params
        if not self._has_local:
            return [store.get(name) for name in self.names]
        return [
            place.holder.get(place.key) if place else store.get(name)
            for name, place in zip(self.names, self.places, strict=True)
        ]


def evaluate(objective: ELBO, pair: Pair) -> Evaluation:
    """Capture an objective, and compare the graph with eager runs before it is trusted.

    Value and gradients are compared under the same seed, at the parameters as they are and at
    others; a further eager run must repeat the first. The caller's random states and parameters
    are as before afterwards.

    Args:
        objective: the loss.
        pair: model and guide with their arguments.

    Raises:
        CaptureError: why this has to run eagerly.
        Exception: what the objective itself raises.
    """
    handler = handler_around()
    if handler:
        raise CaptureError(f"a handler around the call, {handler}, may change what it does")
    with random_states_kept(), _store_kept(), gradients_on():
        return _evaluate(objective, pair)


def _evaluate(objective: ELBO, pair: Pair) -> Evaluation:
    if not hasattr(objective, "differentiable_loss"):
        raise CaptureError(f"{type(objective).__name__} has no differentiable loss")
    model, guide, args, kwargs = pair.model, pair.guide, pair.args, dict(pair.kwargs)
    activity = Activity()
    with activity.recorded():
        (names, leaves), state = first_run(lambda: _parameters(objective, pair))
    written = [x.tensor for x in state]
    if any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves((args, kwargs))):
        raise CaptureError("an argument requires a gradient, which only eager runs give. Detach it")
    refuse_hooks(objective, names, leaves)
    _refuse_writes(state, [*leaves, *tree_leaves((args, kwargs))])
    places = places_of(names, leaves, model, guide)

    def eager(seed: int, mine: ELBO | None = None) -> list[Tensor | None]:
        torch.manual_seed(seed)
        mine = copy.copy(objective) if mine is None else mine
        return _eager(mine, pair, leaves, written)

    before, store_before = foreign_random_states(), dict(pyro.get_param_store()._params)
    runs: list[list[Tensor | None]] = []
    mine = copy.copy(objective)
    refuse_footprints(
        activity, lambda: runs.append(eager(_SEEDS[0], mine)), args, kwargs,
        model=model, guide=guide, objective=mine,
    )  # fmt: skip
    first = runs[0]
    for name, leaf in pyro.get_param_store()._params.items():
        if store_before.get(name) is not leaf:
            raise CaptureError(f"every run of it replaces '{name}' in the param store, an average")
    for source, now in foreign_random_states().items():
        if now != before[source]:
            raise CaptureError(f"it draws from {source}, whose numbers a graph keeps. Use torch")
    has_gradient = tuple(gradient is not None for gradient in first[1 : 1 + len(leaves)])
    flat, spec = tree_flatten((args, kwargs))
    tensors = [i for i, x in enumerate(flat) if isinstance(x, Tensor)]
    data = [flat[i] for i in tensors]
    scheduled = callable(getattr(objective, "kl_weight", None))
    if scheduled:
        data.append(torch.tensor(kl_weight(objective), device=_device(leaves)))

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        entries = list(flat)
        for i, x in zip(tensors, inputs, strict=False):
            entries[i] = x
        own_args, own_kwargs = tree_unflatten(entries, spec)
        mine = _with_weight(objective, inputs[-1]) if scheduled else copy.copy(objective)
        with _pyro_keeps_tensors(objective), without_hooks(leaves):
            own = replace(pair, args=own_args, kwargs=own_kwargs)
            values = _loss_and_gradients(mine, own, leaves)
        return tuple(x for x in values if x is not None)

    graph = capture(function, leaves, data, written, moving=data[-1:] if scheduled else ())
    if any(x.requires_grad for x in graph.constants):
        raise CaptureError(
            "it holds a tensor that requires a gradient and is not in the param store. Give its "
            "module to pyro.module, or detach it"
        )
    with refuse_what_is_too_much():
        numbers = Watch(activity, model=model, guide=guide, objective=objective)
    evaluation = Evaluation(graph, names, tuple(leaves), places, has_gradient, tuple(data), numbers)
    _compare(evaluation, activity, eager, first)
    return evaluation


def _refuse_writes(state: Sequence[State], inputs: Sequence[Any]) -> None:
    own = {storage_of(x) for x in inputs if isinstance(x, Tensor)}
    for x in state:
        if storage_of(x.tensor) in own:
            raise CaptureError(f"it writes to a parameter or an argument ({x.line})")


def parameters(objective: ELBO, pair: Pair) -> tuple[tuple[str, ...], list[Tensor]]:
    """Names and unconstrained values of the parameters that an objective reads.

    What every run writes to, running means of a BatchNorm layer, is as before afterwards.
    """
    return first_run(lambda: _parameters(objective, pair))[0]


def _parameters(objective: ELBO, pair: Pair) -> tuple[tuple[str, ...], list[Tensor]]:
    with poutine.block(), poutine.trace(param_only=True) as captured, torch.no_grad():
        try:
            copy.copy(objective).loss(pair.model, pair.guide, *pair.args, **pair.kwargs)
        except NotImplementedError as error:
            reason = str(error).rstrip(".") or f"{type(objective).__name__} has no loss"
            raise CaptureError(reason) from error
    sites = {name: s for name, s in captured.trace.nodes.items() if s["type"] == "param"}
    leaves = {name: unconstrained(site["value"]) for name, site in sites.items()}
    unique = {id(leaf): (name, leaf) for name, leaf in leaves.items()}  # some have two names
    return tuple(name for name, _ in unique.values()), [leaf for _, leaf in unique.values()]


def handler_around() -> str:
    """The kind of a handler around the call that does more than hide or collect parameters."""
    for handler in runtime._PYRO_STACK:
        kind = type(handler)
        if not (kind is BlockMessenger or (kind is TraceMessenger and handler.param_only)):
            return kind.__name__
    return ""


def kl_weight(objective: Any) -> float:
    """The present weight of the KL terms of an objective whose weight is scheduled."""
    return float(objective.kl_weight(objective.num_gradients))


def _with_weight(objective: Any, weight: Tensor) -> Any:
    mine = copy.copy(objective)
    mine.kl_weight = lambda step: weight
    return mine


@contextmanager
def _pyro_keeps_tensors(objective: ELBO) -> Iterator[None]:
    """Pyro's own losses turn tensors into Python numbers, to add them up and to look for NaN; in a
    graph they have to stay tensors."""
    instead = {
        "torch_item": lambda x: x.detach() if isinstance(x, Tensor) else x,
        "warn_if_nan": lambda x, *_, **__: x,
    }
    with ExitStack() as stack:
        for kind in type(objective).__mro__:
            for name, function in instead.items():
                if kind.__module__.startswith("pyro.infer"):
                    module = sys.modules[kind.__module__]
                    if hasattr(module, name):
                        stack.enter_context(patch.object(module, name, function))
        yield


def _device(leaves: Sequence[Tensor]) -> torch.device:
    return leaves[0].device if leaves else torch.device("cpu")


def _eager(
    objective: ELBO, pair: Pair, leaves: Sequence[Tensor], state: Sequence[Tensor]
) -> list[Tensor | None]:
    with poutine.block(), unvalidated(), without_hooks(leaves), put_back(state):
        values = _loss_and_gradients(objective, pair, leaves)
        return values + [x.clone() for x in state]


def _loss_and_gradients(
    objective: ELBO, pair: Pair, leaves: Sequence[Tensor]
) -> list[Tensor | None]:
    loss = objective.differentiable_loss(pair.model, pair.guide, *pair.args, **pair.kwargs)
    if not isinstance(loss, Tensor):
        raise CaptureError("the loss does not depend on a tensor")
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(trained)
    if loss.requires_grad and trained:
        found = torch.autograd.grad(loss, trained, allow_unused=True)
    gradients = dict(zip(map(id, trained), found, strict=True))
    return [loss.detach(), *[gradients.get(id(leaf)) for leaf in leaves]]


def _compare(
    evaluation: Evaluation,
    activity: Activity,
    eager: Callable[[int], list[Tensor | None]],
    first: Values,
) -> None:
    torch.manual_seed(_SEEDS[0])
    _demand(evaluation, first, "at the present parameters")
    with _elsewhere(evaluation.leaves):
        try:
            other = eager(_SEEDS[1])
        except (ValueError, RuntimeError):  # the program does not run there
            other = None
        if other is not None:
            torch.manual_seed(_SEEDS[1])
            _demand(evaluation, other, "at other values of the parameters")
    with refuse_what_is_too_much():
        evaluation.numbers.look()
        with activity.recorded():
            again = eager(_SEEDS[0])
        refuse_changes(evaluation.numbers.changed())
        evaluation.numbers.look()
    if not all(map(agree, _present(first), _present(again))):
        raise CaptureError(
            f"two eager runs with the same seed of PyTorch differ (losses {_number(first)} and "
            f"{_number(again)}): it reads random numbers of another source, or a Python number "
            "that changes from call to call. Pass such a number as a tensor argument"
        )


def _demand(evaluation: Evaluation, expected: Values, where: str) -> None:
    found = evaluation.run()
    wanted = _present(expected)
    if len(found) != len(wanted) or not all(map(agree, found, wanted)):
        raise CaptureError(
            f"the graph does not repeat an eager run with the same seed {where} (losses "
            f"{_number(found)} and {_number(expected)}): it reads a Python number that depends on "
            "parameters or changes from call to call, or seeds its own random numbers"
        )


def _present(values: Values) -> list[Tensor]:
    return [x for x in values if x is not None]


def _number(values: Values) -> str:
    return f"{float(_present(values)[0]):.7g}"


def agree(one: Tensor, other: Tensor, digits: float = 1e3) -> bool:
    """Whether two tensors are equal to rounding, at the scale of their largest element.

    Args:
        one: any tensor.
        other: a tensor of the same shape.
        digits: how many units in the last place they may differ.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    finite = one.detach()[torch.isfinite(one)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    tolerance = digits * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def _agree_at_scale(found: Tensor, expected: Tensor, away: Tensor) -> bool:
    """Whether two tensors are equal to rounding, at the scale of a third."""
    error, scale = (found - expected).abs().max(), away.abs().max()
    return bool(error <= 1e3 * torch.finfo(found.dtype).eps * scale)


@contextmanager
def _store_kept() -> Iterator[None]:
    """Parameters that the block replaces in the store are put back."""
    store = pyro.get_param_store()
    before = dict(store._params)
    try:
        yield
    finally:
        for name, leaf in before.items():
            new = store._params.get(name)
            if new is not None and new is not leaf:
                del store._param_to_name[new]
                store._params[name], store._param_to_name[leaf] = leaf, name


@contextmanager
def _elsewhere(leaves: Sequence[Tensor]) -> Iterator[None]:
    """Moves parameters a little, and back to the bit."""
    saved = [leaf.detach().clone() for leaf in leaves]
    generator = torch.Generator().manual_seed(_SEEDS[0])
    try:
        with torch.no_grad():
            for leaf in leaves:
                noise = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
                leaf.add_((_PERTURBATION * noise).to(leaf.dtype).to(leaf.device))
        yield
    finally:
        with torch.no_grad():
            for leaf, value in zip(leaves, saved, strict=True):
                leaf.copy_(value)
