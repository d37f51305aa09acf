"""A potential's log density and its gradient as one compiled graph, for samplers to call.

The energy that Pyro computes in milliseconds of Python is captured with its gradient, compiled by
inductor and, on the CPU, recorded (see `recording`): `CompiledDensity` calls it from Python,
`EntryPoint` gives it to samplers that are not written in Python as a function in C, which several
threads may call at once.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch._inductor import config
from torch._inductor.codecache import CppCodeCache

from pyro_elbo_lab.capture import Graph, capture
from pyro_elbo_lab.evaluation import agree
from pyro_elbo_lab.guard import CaptureError
from pyro_elbo_lab.inductor import MOST_NODES, Runner, compile_graph, runner_of
from pyro_elbo_lab.potential import START_RADIUS, Potential, logp_and_gradient, starting_point
from pyro_elbo_lab.recording import Recording, Replay

__all__ = ["CompiledDensity", "EntryPoint", "Evaluate", "compare", "compile_density"]

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]

_RADII = 0.5, 1.0, 1.0, 2.0, 4.0  # of the points where it is compared, in units of START_RADIUS
_ULPS = 1e6  # matrices of a Gaussian process lose six digits and more to rounding


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


class EntryPoint:
    """A density as a function in C that threads call at once:

        int (size_t size, const double* x, double* gradient, double* logp, void* data)

    It returns 0, or 1 where density or gradient are not finite or a matrix is singular.

    Args:
        density: one that has a recording.
        num_threads: how many threads may call it.

    Attributes:
        address: of the function.
        data: address of its last argument; valid as long as the entry point lives.
        copy_address: of a function that copies x: `int (size_t size, size_t size_out,
            const double* x, double* out, void* data)`.
    """

    def __init__(self, density: CompiledDensity, num_threads: int) -> None:
        others = [density.another() for _ in range(num_threads - 1)]
        self._densities = [density, *others]
        self._library = CppCodeCache.load(_SOURCE)
        self._contexts = (_Context * num_threads)(*map(_context, self._densities))
        self._data = _Data(num_threads, ctypes.addressof(self._contexts), 0)
        self.address = _address(self._library.evaluate)
        self.copy_address = _address(self._library.copy)
        self.data = ctypes.addressof(self._data)

    def stop(self) -> None:
        """Let the function return 1 from now on, without work."""
        self._data.stopped = 1

    @property
    def failure(self) -> BaseException | None:
        """An exception of an operator in Python, other than that it failed at some x."""
        failures = [_recording(density).failure for density in self._densities]
        real = [x for x in failures if x and not isinstance(x, RuntimeError)]
        return real[0] if real else None


class _Context(ctypes.Structure):
    _fields_ = (
        ("replay", Replay),
        ("x", ctypes.c_void_p),
        ("logp", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("busy", ctypes.c_int),
    )


class _Data(ctypes.Structure):
    _fields_ = (
        ("num_contexts", ctypes.c_long),
        ("contexts", ctypes.c_void_p),
        ("stopped", ctypes.c_int),
    )


_SOURCE = """
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <thread>

struct Copy { void* rows; void* tensor; long bytes; };
struct Replay {
    long (*function)(long, const void*, long, void*, const Copy*, long, const Copy*, long, void*);
    const void* calls;
    long num_calls;
    void* pointers;
    void* operate;
};
struct Context { Replay replay; void* x; void* logp; void* gradient; std::atomic<int> busy; };
struct Data { long num_contexts; Context* contexts; std::atomic<int> stopped; };

static Context& claim(Data& data) {
    static thread_local long last = 0;  // whose memory is in this core's cache
    for (;; std::this_thread::yield())
        for (long i = 0; i < data.num_contexts; ++i) {
            long index = (last + i) % data.num_contexts;
            if (!data.contexts[index].busy.exchange(1, std::memory_order_acquire)) {
                last = index;
                return data.contexts[index];
            }
        }
}

extern "C" int evaluate(size_t size, double* x, double* gradient, double* logp, void* user_data) {
    Data& data = *static_cast<Data*>(user_data);
    if (data.stopped) return 1;
    Context& context = claim(data);
    long bytes = size * sizeof(double);
    Copy feed{x, context.x, bytes};
    Copy emits[] = {{logp, context.logp, sizeof(double)}, {gradient, context.gradient, bytes}};
    Replay& replay = context.replay;
    long done = replay.function(1, replay.calls, replay.num_calls, replay.pointers, &feed, 1, emits,
                                2, replay.operate);
    context.busy.store(0, std::memory_order_release);
    if (!done || !std::isfinite(*logp)) return 1;
    for (size_t i = 0; i < size; ++i)
        if (!std::isfinite(gradient[i])) return 1;
    return 0;
}

extern "C" int copy(size_t size, size_t, const double* x, double* out, void*) {
    std::memcpy(out, x, size * sizeof(double));
    return 0;
}
"""


def _context(density: CompiledDensity) -> _Context:
    recording = _recording(density)
    tensors = density.inputs[0], *recording.outputs
    if not all(x.is_contiguous() and x.dtype == torch.float64 for x in tensors):
        raise ValueError("Inputs and outputs of a density in C must be contiguous and float64.")
    return _Context(recording.replay, *[x.data_ptr() for x in tensors], 0)


def _recording(density: CompiledDensity) -> Recording:
    assert isinstance(density.runner, Recording)
    return density.runner


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def compile_density(potential: Potential) -> CompiledDensity:
    """Capture and compile a potential's density, and compare it with the potential.

    Call it within `isolated()`.

    Args:
        potential: what `prepare` returned.

    Raises:
        CaptureError: why the density has to run eagerly: Python control flow or numbers that depend
            on a latent's value, a graph that takes too long to compile, no compiler.
    """
    graph = _captured(potential)
    flat = torch.zeros(potential.size, dtype=torch.float64, device=potential.device)
    try:
        # The chains are what runs in parallel.
        with config.patch({"cpp.threads": 1}):
            compiled = compile_graph(graph.module, [flat, *graph.constants])

        def density() -> CompiledDensity:
            inputs = [flat.clone(), *graph.constants]
            return CompiledDensity(runner_of(compiled, inputs), inputs, density)

        found = density()
    except Exception as error:  # inductor and the compiler have no one type for what they cannot do
        raise CaptureError(f"it could not be compiled: {_first_line(error)}") from error
    rng = np.random.default_rng(0)
    points = [rng.uniform(-r, r, potential.size) for r in np.multiply(START_RADIUS, _RADII)]
    compare(found, potential, [starting_point(potential, 0), *points])
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
        if np.isnan(expected[0]) and np.isnan(found[0]):
            continue
        if not all(map(_agree, found, expected)):
            raise CaptureError(
                f"the captured density is {found[0]:.10g} at a point where the model's is "
                f"{expected[0]:.10g}: it reads a Python number or an array of numpy's that depends "
                "on a latent's value"
            )


def _agree(one: Any, other: Any) -> bool:
    return agree(torch.tensor(one), torch.tensor(other), _ULPS)


def _captured(potential: Potential) -> Graph:
    def function(flat: Tensor) -> tuple[Tensor, ...]:
        flat = flat.detach().requires_grad_()
        energy = potential.energy(potential.by_site(flat))
        (gradient,) = torch.autograd.grad(energy, flat)
        return -energy.detach().to(torch.float64), -gradient

    start = torch.tensor(starting_point(potential, 0), device=potential.device)
    graph = capture(function, (), (start,))
    if graph.noise.draws or graph.noise.rest:
        raise CaptureError("it draws random numbers")
    if graph.num_nodes > MOST_NODES:
        raise CaptureError(
            f"the graph has {graph.num_nodes} operators (a loop over time steps?) and would take "
            f"minutes to compile; at most {MOST_NODES} are compiled"
        )
    return graph


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
