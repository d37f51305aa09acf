"""A potential's log density and its gradient as one compiled graph.

The energy that Pyro computes in milliseconds of Python is captured with its gradient, compiled by
inductor and, on the CPU, recorded (see `recording`). It is compared with the potential before it is
trusted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_elbo_lab.compilation.capture.graph import Graph, capture
from pyro_elbo_lab.compilation.capture.guard import CaptureError
from pyro_elbo_lab.compilation.native.internals import internal
from pyro_elbo_lab.compilation.native.recording import Recording
from pyro_elbo_lab.compilation.native.runner import MOST_NODES, Runner, compile_graph, runner_of
from pyro_elbo_lab.inference.nuts.potential import (
    START_RADIUS,
    Potential,
    logp_and_gradient,
    starting_point,
)
from pyro_elbo_lab.programs.messages import first_line

__all__ = ["CompiledDensity", "Evaluate", "compare", "compile_density"]

_RADII = 0.5, 1.0, 1.0, 2.0, 4.0  # of the points where it is compared, in units of START_RADIUS
# What rounding may do: so many units in the last place; or, as the matrices of a Gaussian process
# lose ten digits and more, so many times what it does to the model's own density a few units away.
_ULPS = 1e6
_NUDGE, _NUDGES, _SPREADS = 4, 4, 100.0

Result = tuple[float, np.ndarray]
Evaluate = Callable[[np.ndarray], Result]


class CompiledDensity:
    """The function that `potential.logp_and_gradient` returns, a hundred times as fast.

    Args:
        runner: the compiled graph.
        inputs: its inputs, the flat vector first.
        another: makes another of its kind, on tensors of its own.

    Attributes:
        inputs: the tensors that it runs on.
        runner: what runs.
        another: a function without arguments, which returns one that another thread may use.
    """

    def __init__(
        self,
        runner: Runner,
        inputs: Sequence[Tensor],
        another: Callable[[], "CompiledDensity"],
    ) -> None:
        self.runner = runner
        self.inputs = inputs
        self.another = another

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """The log density in nats and its gradient, (size,), at a flat vector, (size,): NaN and 0
        where an operator fails, as at a singular matrix."""
        self.inputs[0].copy_(torch.from_numpy(x))
        try:
            self.runner.run()
        except RuntimeError:  # in C the same is no density either
            return float("nan"), np.zeros_like(x)
        logp, gradient = self.runner.outputs
        if torch.isnan(logp):
            return float("nan"), np.zeros_like(x)
        return float(logp), gradient.cpu().numpy().copy()

    @property
    def has_recording(self) -> bool:
        """Whether its kernels are recorded, so that C code can call them."""
        return isinstance(self.runner, Recording)

    @property
    def native(self) -> bool:
        """Whether nothing of it is done by Python."""
        return isinstance(self.runner, Recording) and self.runner.native


def compile_density(potential: Potential) -> CompiledDensity:
    """Capture and compile a potential's density, and compare it with the potential.

    Call it within `isolated()`.

    Args:
        potential: what `prepare` returned.

    Raises:
        CaptureError: why the density has to run eagerly: Python control flow or numbers that depend
            on a latent's value, a graph that takes too long to compile, no compiler.
    """
    start = starting_point(potential, 0)
    flat = torch.tensor(start, device=potential.device)
    graph = _captured(potential, flat)
    try:
        # The chains are what runs in parallel.
        with internal("config").patch({"cpp.threads": 1}):
            compiled = compile_graph(graph.module, [flat, *graph.constants])

        def density() -> CompiledDensity:
            inputs = [flat.clone(), *graph.constants]
            return CompiledDensity(runner_of(compiled, inputs), inputs, density)

        found = density()
    except Exception as error:  # inductor and the compiler have no one type for what they cannot do
        raise CaptureError(f"it could not be compiled: {first_line(error)}") from error
    rng = np.random.default_rng(0)
    points = [rng.uniform(-r, r, potential.size) for r in np.multiply(START_RADIUS, _RADII)]
    compare(found, potential, [start, *points])
    return found


def compare(density: Evaluate, potential: Potential, points: Sequence[np.ndarray]) -> None:
    """Compare a density with the potential's at some points, and gradients where it is not NaN.

    Args:
        density: what `logp_and_gradient` returns, or something equivalent.
        potential: what `prepare` returned.
        points: each of shape (size,).

    Raises:
        CaptureError: they differ by more than rounding.
    """
    eager = logp_and_gradient(potential)
    for x in points:
        with pyro.validation_enabled(False):
            expected, found = eager(x), density(x)
            if _within(found, expected) or _within(found, expected, _nudged(eager, x)):
                continue
        off = _largest(np.subtract(found[1], expected[1]))
        raise CaptureError(
            f"the captured density is {found[0]:.10g} at a point where the model's is "
            f"{expected[0]:.10g}, and gradients differ by up to {off:.2g}: it reads a Python "
            "number or an array of numpy's that depends on a latent's value"
        )


def _nudged(eager: Evaluate, x: np.ndarray) -> list[Result]:
    """The density as rounding moves it, at points that are the same to rounding."""
    rng = np.random.default_rng(0)
    ulps = rng.integers(-_NUDGE, _NUDGE, (_NUDGES, x.size), endpoint=True)
    return [eager(x * (1 + n * np.finfo(np.float64).eps)) for n in ulps]


def _within(found: Result, expected: Result, nudged: Sequence[Result] = ()) -> bool:
    """Whether two results agree to rounding, or as well as those nearby agree with each other.

    Where the density is NaN gradients do not matter, and on the edge to where it is NaN nothing
    does.
    """
    if np.isnan(expected[0]) and np.isnan(found[0]):
        return True
    if len({bool(np.isnan(logp)) for logp, _ in [expected, *nudged]}) > 1:
        return True
    for i in range(2):
        with np.errstate(invalid="ignore"):
            spread = max([0.0, *(_largest(np.subtract(n[i], expected[i])) for n in nudged)])
        rounding = _ULPS * np.finfo(np.float64).eps * _largest(expected[i])
        tolerance = max(rounding, _SPREADS * spread)
        if not np.allclose(found[i], expected[i], rtol=0, atol=tolerance, equal_nan=True):
            return False
    return True


def _largest(x: Any) -> float:
    return float(np.max(np.abs(x), initial=0.0, where=np.isfinite(x)))


def _captured(potential: Potential, start: Tensor) -> Graph:
    def function(flat: Tensor) -> tuple[Tensor, ...]:
        flat = flat.detach().requires_grad_()
        energy = potential.energy(potential.by_site(flat))  # `isolated` makes it float64
        (gradient,) = torch.autograd.grad(energy, flat)
        return -energy.detach().to(torch.float64), -gradient

    graph = capture(function, (), (start,), moving=(start,))
    if graph.noise.draws or graph.noise.rest:
        raise CaptureError("it draws random numbers")
    if graph.num_nodes > MOST_NODES:
        raise CaptureError(
            f"the graph has {graph.num_nodes} operators (a loop over time steps?) and would take "
            f"minutes to compile; at most {MOST_NODES} are compiled"
        )
    return graph
