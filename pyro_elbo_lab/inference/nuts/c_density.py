"""A compiled density as a function in C, which several threads may call at once."""

import ctypes
from typing import Any

import torch

from pyro_elbo_lab.compilation.native.internals import load_cpp
from pyro_elbo_lab.compilation.native.recording import Recording, Replay
from pyro_elbo_lab.inference.nuts.density import CompiledDensity

__all__ = ["EntryPoint"]


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
        self._library = load_cpp(_SOURCE)
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
    if (data.stopped) return -1;  // ends the chain, where 1 only rejects a point
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
