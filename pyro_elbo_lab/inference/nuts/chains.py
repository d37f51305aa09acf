"""Chains of nutpie's NUTS over a log density in C, or over one in Python."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import nutpie
import torch
from nutpie.compiled_pyfunc import from_pyfunc

from pyro_elbo_lab.compilation.native.internals import MissingError
from pyro_elbo_lab.inference.nuts.c_density import EntryPoint
from pyro_elbo_lab.inference.nuts.density import CompiledDensity, Evaluate
from pyro_elbo_lab.inference.nuts.potential import Potential, starting_point

__all__ = ["TARGET_ACCEPT", "Sample", "sample"]

TARGET_ACCEPT = 0.9

_KNOWN_NUTPIE = "0.16."
"""The versions whose interface for densities in C, which is not public, is the one used here."""

_ARVIZ_NAMES = {
    "logp": "lp",
    "mean_tree_accept": "acceptance_rate",
    "step_size": "step_size",
    "depth": "tree_depth",
    "maxdepth_reached": "reached_max_treedepth",
    "n_steps": "n_steps",
    "diverging": "diverging",
    "energy": "energy",
    "energy_error": "energy_error",
}


class Sample(NamedTuple):
    """What a sampler returns.

    Attributes:
        draws: unconstrained, (chain, draw, size).
        stats: statistics of the draws, (chain, draw).
        density: "compiled", or "eager: " and why.
        compile_seconds: what it took to compile the density.
    """

    draws: np.ndarray
    stats: dict[str, np.ndarray]
    density: str = ""
    compile_seconds: float = 0.0


def sample(
    potential: Potential,
    density: Evaluate | CompiledDensity,
    num_chains: int,
    num_warmup: int,
    num_samples: int,
    seed: int,
    progress: bool,
) -> Sample:
    """Draw from a density. Chains run side by side if the density is one in C that needs no Python,
    otherwise one after another; the draws are the same.

    Args:
        potential: where the chains start.
        density: what `compile_density` or `logp_and_gradient` returned.
        num_chains: how many chains.
        num_warmup: draws a chain that adapt the sampler, not returned.
        num_samples: draws a chain that are returned.
        seed: the same seed gives the same draws.
        progress: whether to show a progress bar.

    Raises:
        Exception: the first that the density or the search for a start has raised.
        RuntimeError: nutpie broke down.
    """
    shield = _Shield(potential, density)
    model, cores = _native_model(potential, density, shield, num_chains), 1
    if model is None:
        model = _python_model(potential, shield)
    else:
        cores = model.cores
    with _one_thread_a_chain() if shield.entry else nullcontext():
        tree = _run(
            shield,
            model,
            draws=num_samples,
            tune=num_warmup,
            chains=num_chains,
            cores=cores,
            seed=seed,
            progress_bar=progress,
        )
    stats = tree["sample_stats"]
    return Sample(
        draws=tree["posterior"]["draws"].values,
        stats={
            ours: values if values.dtype.kind in "fb" else values.astype(np.int64)
            for name, ours in _ARVIZ_NAMES.items()
            for values in [stats[name].values]
        },
    )


def _run(shield: "_Shield", model: Any, **settings: Any) -> Any:
    running = nutpie.sample(
        model,
        adaptation="low_rank",
        target_accept=TARGET_ACCEPT,
        save_warmup=False,
        blocking=False,
        **settings,
    )
    try:
        tree = running.wait()
    except BaseException as error:
        shield.stop()
        with suppress(BaseException):  # a Rust panic arrives as a PanicException, no Exception
            running.cancel()
        if isinstance(error, KeyboardInterrupt):
            raise
        what = " ".join(str(error).partition("Stack backtrace")[0].split())
        raise shield.failure or RuntimeError(f"nutpie broke down: {what}") from None
    if shield.failure is not None:
        raise shield.failure
    return tree


@contextmanager
def _one_thread_a_chain() -> Iterator[None]:
    """One torch thread a chain, so that chains do not compete for the cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


class _Shield:
    """A density for nutpie's threads, which panic on an exception and may outlive a failed run.

    The first exception is kept, and from then on, as after `stop`, every density is NaN, so that
    the chains run out without calling the model. The lock keeps Pyro to one thread.
    """

    def __init__(self, potential: Potential, density: Evaluate) -> None:
        self.entry: EntryPoint | None = None
        self._failure: BaseException | None = None
        self._potential = potential
        self._density = density
        self._stopped = False
        self._lock = threading.Lock()

    @property
    def failure(self) -> BaseException | None:
        return self._failure or (self.entry.failure if self.entry else None)

    def logp(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        result = self._attempt(self._density, x)
        return (np.nan, np.zeros_like(x)) if result is None else result

    def start(self, seed: int) -> np.ndarray:
        x = self._attempt(starting_point, self._potential, seed)
        return np.zeros(self._potential.size) if x is None else x

    def stop(self) -> None:
        if self.entry:
            self.entry.stop()
        with self._lock:
            self._stopped = True

    def _attempt(self, function: Callable[..., Any], *args: Any) -> Any:
        with self._lock:
            if self._stopped:
                return None
            try:
                return function(*args)
            except Exception as error:
                self._failure, self._stopped = error, True
                return None


def _python_model(potential: Potential, shield: _Shield) -> Any:
    return from_pyfunc(
        ndim=potential.size,
        make_logp_fn=lambda: shield.logp,
        make_expand_fn=lambda seed1, seed2, chain: lambda x: {"draws": np.array(x)},
        expanded_dtypes=[np.dtype("float64")],
        expanded_shapes=[(potential.size,)],
        expanded_names=["draws"],
        make_initial_point_fn=shield.start,
    )


@dataclass(frozen=True)
class _NativeModel:
    """What `nutpie.sample` takes: a density in C."""

    model: Any
    n_dim: int
    cores: int
    coords: Mapping[str, Any] = field(default_factory=dict)
    dims: Mapping[str, Any] = field(default_factory=dict)
    reparameterized_names: None = None

    def _make_sampler(self, settings: Any, init_mean: Any, cores: int, *rest: Any) -> Any:
        return nutpie._lib.PySampler.from_pymc(settings, cores, self.model, *rest)


def _native_model(
    potential: Potential, density: Evaluate | CompiledDensity, shield: _Shield, num_chains: int
) -> _NativeModel | None:
    """None where there is no density in C, or a nutpie whose interface for one is not known."""
    if not isinstance(density, CompiledDensity) or not density.has_recording:
        return None
    if not nutpie.__version__.startswith(_KNOWN_NUTPIE):
        return None
    cores = min(num_chains, _num_cores()) if density.native else 1
    size = potential.size
    try:
        entry = EntryPoint(density, cores)
    except MissingError:
        return None
    dim_sizes: dict[str, int] = {}  # filled by new_variables
    try:
        from nutpie import _lib

        model = _lib.PyMcModel(
            _lib.LogpFunc(entry.address, entry.data, entry),
            _lib.ExpandFunc(size, size, entry.copy_address, entry.data, entry),
            _lib.PyVariable.new_variables(["draws"], ["float64"], [(size,)], dim_sizes, {}),
            size,
            dim_sizes,
            {},
            shield.start,
            None,
        )
    except (ImportError, AttributeError, TypeError):
        return None
    shield.entry = entry
    return _NativeModel(model, size, cores)


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
