"""An objective that runs as a compiled graph wherever that gives what the objective gives."""

import math
import operator
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine import runtime
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from pyro_elbo_lab.compilation.capture.guard import CaptureError
from pyro_elbo_lab.compilation.capture.writes import put_back
from pyro_elbo_lab.compilation.captured import Evaluation, evaluate, handler_around, kl_weight
from pyro_elbo_lab.compilation.leaves import accumulate, announced
from pyro_elbo_lab.compilation.native.runner import Runner, checked_runner, runner_of
from pyro_elbo_lab.compilation.watch.environment import Snapshot, contents
from pyro_elbo_lab.compilation.watch.footprints import refuse_what_is_too_much
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.pair import Pair, Program
from pyro_elbo_lab.programs.state import gradients_on, random_states_kept

__all__ = ["CompiledELBO", "compiled"]

Backend = Literal["inductor", "graph"]

MOST_GRAPHS = 8
"""Graphs kept for one model and guide; more kinds of arguments than that run eagerly."""

MOST_CHANGES = 3
"""How often a number that the programs read may change before they run eagerly."""

MOST_READINGS = 4
"""Graphs for arguments of the same shapes, if the program reads their values as Python numbers;
more values than that run eagerly."""

_LONG = 100  # calls after which it is no matter that parameters or memory have been replaced
_SMALL = 64  # elements below which data is copied at every call: a check would cost as much

CHECK_EVERY = 1024
"""A graph is compared with an eager run at its calls 2, 4, 8, ... and then this often."""


def compiled(objective: ELBO, backend: Backend = "inductor") -> "CompiledELBO":
    """The same objective, run as a compiled graph.

    It takes the place of the objective in `pyro.infer.SVI`. The first call with a model, a guide
    and arguments of some shapes captures model, guide, objective and gradient as one graph of
    tensor operators, compares it with eager runs and compiles it; later calls run the compiled
    graph. Random numbers are drawn as the program draws them: losses and gradients are those of the
    objective itself under the same seed, to rounding.

    What cannot be one graph runs eagerly, with one warning that says why: branches and Python
    numbers that depend on parameters or on what was drawn, random numbers from elsewhere than
    PyTorch, files, the clock, and whatever a run leaves behind in Python, such as counters, lists
    of values or the trace of a handler. Python numbers that the programs read from closures,
    globals and attributes belong to the graph: a new value means a new graph, and one that keeps
    changing means eager runs. So do the values of arguments and held tensors that
    they read, as in `range(lengths.max())`, `torch.equal` or a boolean index; four such values have
    graphs, others run eagerly. Tensors that every call writes to, such as the running means of a
    BatchNorm layer, are written to by the graph, and hooks on gradients of parameters are called.
    Beyond that, a graph is compared with an eager run now and then, and given up if they differ.

    Args:
        objective: any of this package, or another `pyro.infer.ELBO` with a differentiable loss.
        backend: "inductor", or "graph" to run the captured graph without compiling it, which
            needs no compiler and saves a smaller part of the time.

    Returns:
        The loss. `status` tells what became of a model and guide.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro.optim import Adam
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> guide = AutoNormal(model)
        >>> loss = compiled(Trace_ELBO(), backend="graph")
        >>> svi = SVI(model, guide, Adam({"lr": 0.05}), loss=loss)
        >>> losses = [svi.step(torch.tensor(3.0)) for _ in range(300)]
        >>> loss.status(model, guide, torch.tensor(3.0))
        'captured'
    """
    return CompiledELBO(objective, backend)


@dataclass
class _Compiled:
    """A graph, ready to run, and what it is valid for."""

    evaluation: Evaluation
    runner: Runner
    data: list[Tensor]
    noise: list[Tensor]
    condition: list[Any]
    calls: int = 0
    checked: int = 0
    seen: list[tuple[Tensor, int, int]] = field(default_factory=list)

    def still_has(self, leaves: Sequence[Tensor | None]) -> bool:
        return self.is_of(leaves) and self.condition == _condition(self.evaluation)

    def is_of(self, leaves: Sequence[Tensor | None]) -> bool:
        own = self.evaluation.leaves
        return len(leaves) == len(own) and all(map(operator.is_, leaves, own))

    def is_present(self) -> bool:
        """Whether parameters, and what it depends on besides arguments, are as they were."""
        return self.evaluation.numbers.unchanged() and self.still_has(self.evaluation.present())

    def is_valid(self, arguments: Sequence[Any]) -> bool:
        """Whether what it read of these arguments is as it was, too."""
        return self.is_present() and self.evaluation.is_for(arguments)


@dataclass
class _History:
    """What is known about a model and guide.

    Attributes:
        graphs: those for each signature, the latest last.
        captured: how many there have been.
        changed: how many of them because a number had changed.
        moved: how many because parameters or memory had been replaced soon after the last.
        reason: why they run eagerly.
    """

    graphs: "OrderedDict[Any, list[_Compiled]]" = field(default_factory=OrderedDict)
    captured: int = 0
    changed: int = 0
    moved: int = 0
    reason: str = ""
    others: str = ""


@dataclass
class _Last:
    """The last call, which the next one mostly repeats."""

    model: Program
    guide: Program
    args: tuple
    mode: tuple
    graph: _Compiled

    def is_for(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> bool:
        return (
            model is self.model
            and guide is self.guide
            and not kwargs
            and len(args) == len(self.args)
            and all(map(operator.is_, args, self.args))
            and _mode() == self.mode
            and not any(isinstance(x, Tensor) and x.requires_grad for x in args)
            and self.graph.is_valid(args)
        )


Histories = WeakKeyDictionary[Any, WeakKeyDictionary[Any, _History]]


class CompiledELBO(ELBO):
    """See `compiled`.

    Attributes:
        objective: the objective that it runs.
    """

    def __init__(self, objective: ELBO, backend: Backend = "inductor") -> None:
        if backend not in ("inductor", "graph"):
            raise ValueError(f"backend must be 'inductor' or 'graph', got {backend!r}.")
        super().__init__(num_particles=objective.num_particles)
        self.objective = objective
        self.backend = backend
        self._histories: Histories = WeakKeyDictionary()
        self._last: _Last | None = None

    def __repr__(self) -> str:
        return f"compiled({self.objective!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_histories": None, "_last": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _histories=WeakKeyDictionary())

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss, eagerly: it is the gradients that are compiled."""
        return self.objective.loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss; its gradients are added to the parameters' `.grad`."""
        if not torch.is_grad_enabled():
            with gradients_on():
                return self.loss_and_grads(model, guide, *args, **kwargs)
        graph = self._ready(model, guide, args, kwargs)
        if graph is None:
            return self.objective.loss_and_grads(model, guide, *args, **kwargs)
        loss, gradients = self._run(graph)
        accumulate(graph.evaluation.trained, gradients)
        return loss

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """An estimate of the loss as a scalar tensor that can be differentiated once."""
        graph = self._ready(model, guide, args, kwargs)
        if graph is None:
            return self.objective.differentiable_loss(model, guide, *args, **kwargs)
        loss, gradients = self._run(graph)
        total = torch.tensor(loss)
        for leaf, gradient in zip(graph.evaluation.trained, gradients, strict=True):
            term = (leaf * gradient.clone()).sum()
            total = total + (term - term.detach())
        return total

    def status(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> str:
        """What a call with these arguments runs: "captured", or "eager: " and the reason."""
        graph = self._ready(model, guide, args, kwargs)
        history = self._history(model, guide)
        reason = history.reason or (history.others if graph is None else "")
        return f"eager: {reason}" if reason else "captured"

    def explain(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """What the objective's own `explain` says, and whether it runs as a graph."""
        explanation = self.objective.explain(model, guide, *args, **kwargs)
        note = f"runs: {self.status(model, guide, *args, **kwargs)}"
        return replace(explanation, notes=(*explanation.notes, note))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("the objective draws its particles itself")

    def _history(self, model: Program, guide: Program) -> _History:
        guides = self._histories.setdefault(model, WeakKeyDictionary())
        if guide not in guides:
            guides[guide] = _History()
        return guides[guide]

    def _ready(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> _Compiled | None:
        """The graph for these arguments, with the data in place; None to run eagerly."""
        if not torch.is_grad_enabled():
            return None
        last = self._last if not handler_around() else None
        if last is not None and last.is_for(model, guide, args, kwargs):
            graph = last.graph
            self._bind(graph, args, kwargs)
            graph.calls += 1
            if not _is_due(graph.calls):
                _announce(graph.evaluation)
                return graph
            graph.calls -= 1
        return self._find(Pair(model, guide, args, kwargs))

    def _find(self, pair: Pair) -> _Compiled | None:
        history = self._history(pair.model, pair.guide)
        if history.reason:
            return None
        try:
            graph = self._graph(history, pair)
            if graph is None:
                return None
            self._bind(graph, pair.args, pair.kwargs)
            graph.calls += 1
            if graph.calls > 1 and _is_due(graph.calls):
                self._check(graph, pair)
        except CaptureError as error:
            history.reason = str(error)
            history.graphs.clear()
            self._last = None
            warn(f"{self.objective!r} runs eagerly: {error}.")
            return None
        self._last = None
        if all(isinstance(x, Tensor | bool | int | float | None) for x in pair.args):
            self._last = _Last(pair.model, pair.guide, pair.args, _mode(), graph)
        _announce(graph.evaluation)
        return graph

    def _graph(self, history: _History, pair: Pair) -> _Compiled | None:
        """The graph that is valid now, captured if there is none; None if there are too many for
        values that the program reads."""
        arguments = _flat(pair.args, pair.kwargs)
        with refuse_what_is_too_much():
            key = signature(pair)
        known = history.graphs.get(key, [])
        around = handler_around()
        valid = [] if around else [graph for graph in known if graph.is_valid(arguments)]
        if valid:
            return valid[-1]
        present = [graph for graph in known if not around and graph.is_present()]
        if len(present) >= MOST_READINGS:
            self._refuse_readings(history, present)
            return None
        if known and not present:
            _refuse_restlessness(history, known[-1])
        elif not known:
            _refuse_restless_arguments(history, key)
        graph = self._capture(history, pair)
        kept = [x for x in known if x.still_has(x.evaluation.present())]
        # the program may have set up things only now, which an argument's contents show
        history.graphs[signature(pair)] = [*kept, graph]
        while len(history.graphs) > MOST_GRAPHS:
            history.graphs.popitem(last=False)
        return graph

    def _refuse_readings(self, history: _History, graphs: Sequence[_Compiled]) -> None:
        if not history.others:
            changed = graphs[-1].evaluation.graph.reads.changed
            history.others = (
                f"{MOST_READINGS} graphs were captured for as many values of what it reads as a "
                f"Python number or a shape ({changed})"
            )
            warn(f"{self.objective!r} runs eagerly: {history.others}.")

    def _capture(self, history: _History, pair: Pair) -> _Compiled:
        history.captured += 1
        if history.captured > 4 * MOST_GRAPHS:
            raise CaptureError(
                f"{4 * MOST_GRAPHS} graphs were captured for one model and guide: its arguments' "
                "shapes or its parameters change all the time. Pass batches of one size"
            )
        evaluation = evaluate(self.objective, pair)
        noise = evaluation.graph.noise.allocate()
        data = [x.clone(memory_format=torch.preserve_format) for x in evaluation.data]
        inputs = [*evaluation.leaves, *data, *evaluation.graph.constants, *noise]
        module = evaluation.graph.module
        with random_states_kept():
            refill = partial(evaluation.graph.noise.fill, noise)
            if self.backend == "graph":
                refill()
                with put_back(evaluation.graph.state):
                    runner, why = runner_of(module, inputs), ""
            else:
                runner, why = checked_runner(module, inputs, refill, evaluation.graph.state)
        if why:
            warn(f"{self.objective!r} runs as a graph, uncompiled: {why}.")
        return _Compiled(evaluation, runner, data, noise, _condition(evaluation))

    def _bind(self, graph: _Compiled, args: tuple, kwargs: Mapping[str, Any]) -> None:
        tensors = [x for x in _flat(args, kwargs) if isinstance(x, Tensor)]
        if not _same(tensors, graph.seen):
            with torch.no_grad():
                for kept, new in zip(graph.data, tensors, strict=False):
                    kept.copy_(new)
            graph.seen = [(x, x._version, x.data_ptr()) for x in tensors]
        if len(graph.data) > len(tensors):
            graph.data[-1].fill_(kl_weight(self.objective))

    def _run(self, graph: _Compiled) -> tuple[float, list[Tensor]]:
        graph.evaluation.graph.noise.fill(graph.noise)
        graph.runner.run()
        if hasattr(self.objective, "num_gradients"):
            self.objective.num_gradients += 1
        loss, *gradients = graph.runner.outputs
        number = float(loss)
        if math.isnan(number):
            raise ValueError(
                f"The loss of {self.objective!r} is NaN. Check the data for NaN, the parameters "
                "for a learning rate that is too large, and the guide's support: the loss of the "
                "objective without compiled() names the site."
            )
        return number, gradients

    def _check(self, graph: _Compiled, pair: Pair) -> None:
        """Compare the graph with an eager run that draws what the next call will draw."""
        difference = graph.evaluation.difference(self.objective, pair)
        if difference:
            raise CaptureError(
                f"at call {graph.calls} the graph did not repeat an eager run ({difference}): "
                f"something that model or guide read has changed since call {graph.checked}, and "
                "losses since then may be wrong. Pass what changes as a tensor argument"
            )
        graph.checked = graph.calls


def _announce(evaluation: Evaluation) -> None:
    """Show the parameters to handlers such as SVI's, which collects what to optimize."""
    stack, store = runtime._PYRO_STACK, pyro.get_param_store()
    collects = len(stack) == 1 and type(stack[0]) is TraceMessenger and stack[0].param_only
    places = zip(evaluation.names, evaluation.places, evaluation.leaves, strict=True)
    for name, place, leaf in places if stack else ():
        if collects:  # what pyro.param comes to, in a tenth of its time
            value = announced(leaf) if place else store[name]
            stack[0].trace.add_node(name, type="param", name=name, value=value)
        elif place:
            runtime.effectful(type="param")(lambda *_, leaf=leaf, **__: announced(leaf))(name=name)
        else:
            pyro.param(name)


def _refuse_restlessness(history: _History, last: _Compiled) -> None:
    """Nothing is captured again and again.

    Args:
        history: counts.
        last: the graph that is not valid any more.

    Raises:
        CaptureError: it has been too often already.
    """
    changed = last.evaluation.numbers.changed()
    history.changed += bool(changed)
    if changed and history.changed > MOST_CHANGES:
        raise CaptureError(
            f"'{changed[0]}', which it may read, has changed {history.changed} times. Pass what "
            "changes as a tensor argument"
        )
    soon = _LONG if last.is_of(last.evaluation.present()) else 3
    history.moved += not changed and last.calls < soon
    if history.moved > MOST_CHANGES:
        raise CaptureError(
            "parameters, tensors that it holds, or their memory (`.data =`) are replaced all the "
            "time. Copy new values into them instead"
        )


def _refuse_restless_arguments(history: _History, key: Any) -> None:
    """Raises:
    CaptureError: Python arguments have had many values already.
    """
    alike = [other for other in history.graphs if _without_values(other) == _without_values(key)]
    real = any(kind[0] is float for kind in key[1] if len(kind) == 2)
    if len(alike) <= (MOST_CHANGES if real else MOST_GRAPHS - 1):
        return
    values = [kind[1] for kind, other in zip(key[1], alike[-1][1], strict=True) if kind != other]
    found = f"{values[0]!r}" if isinstance(values[0], bool | int | float | str) else "an object"
    raise CaptureError(
        f"an argument that is no tensor ({found} by now) has had {len(alike) + 1} values. Pass "
        "changing numbers as tensors"
    )


def _without_values(key: Any) -> Any:
    spec, kinds, *rest = key
    return spec, [kind if len(kind) > 2 else kind[0] for kind in kinds], rest


def _condition(evaluation: Evaluation) -> list[Any]:
    """Where parameters and constants lie, which `.data = ` moves; whether they are trained, have
    hooks."""
    graph, leaves = evaluation.graph, evaluation.leaves
    found: list[Any] = [x.data_ptr() for x in (*leaves, *graph.constants)]
    found += [x.requires_grad for x in graph.constants]
    for x in leaves:
        found += (x.requires_grad, not x._backward_hooks, not x._post_accumulate_grad_hooks)
    return found


def _same(tensors: Sequence[Tensor], seen: Sequence[tuple[Tensor, int, int]]) -> bool:
    """Whether these tensors have the values that they had; memory that is not PyTorch's own may
    be written to from elsewhere."""
    return len(tensors) == len(seen) and all(
        x is y
        and x._version == version
        and x.data_ptr() == pointer
        and x.numel() > _SMALL
        and x.untyped_storage().resizable()
        for x, (y, version, pointer) in zip(tensors, seen, strict=True)
    )


def _flat(args: tuple, kwargs: Mapping[str, Any]) -> list[Any]:
    if not kwargs and all(isinstance(x, Tensor) for x in args):
        return list(args)
    return tree_flatten((args, dict(kwargs)))[0]


def signature(pair: Pair, around: Snapshot = ()) -> Any:
    """What a graph is valid for: two calls with equal signatures can share one."""
    args, kwargs = pair.args, pair.kwargs
    flat: Any = args
    spec: Any = len(args)
    if kwargs or not all(isinstance(x, Tensor) for x in args):
        flat, spec = tree_flatten((args, dict(kwargs)))
    return (
        spec,
        tuple([_kind(x) for x in flat]),
        tuple([p.training for p in (pair.model, pair.guide) if isinstance(p, nn.Module)]),
        _mode(),
        around,
    )


def _mode() -> tuple:
    """What PyTorch does everywhere."""
    return torch.get_default_dtype(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled()


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        strides = value.stride() if value.layout is torch.strided else value.layout
        return value.shape, strides, value.dtype, value.device, value.requires_grad
    if value is None or isinstance(value, bool | int | float | str):
        return type(value), value
    return type(value), contents(value)


def _is_due(calls: int) -> bool:
    return calls % CHECK_EVERY == 0 if calls >= CHECK_EVERY else calls & (calls - 1) == 0
