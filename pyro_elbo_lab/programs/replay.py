"""A model run again at many draws of its latents, all at once where that changes nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from pyro_elbo_lab.programs.dims import has_value, is_deterministic

__all__ = [
    "Extract",
    "Replay",
    "deterministics",
    "log_likelihoods",
    "observations",
    "unobserved",
]

Program = Callable[..., Any]
Extract = Callable[[poutine.Trace], dict[str, Tensor]]

_VALUES_AT_ONCE = 2_000_000
"""The most values of a site in one run: 16 MB of float64."""

_PLATE = "_draws"


class Replay:
    """Runs of a model at draws of its latents.

    Args:
        model: takes no arguments.
        trace: one run of it.
        values: draws of its latents by site, (draws, *shape of the site).

    Attributes:
        at_once: whether many draws can run in one, beneath an outer plate.
    """

    def __init__(self, model: Program, trace: poutine.Trace, values: Mapping[str, Tensor]) -> None:
        self._model = model
        self._trace = trace
        self._values = dict(values)
        self._num_draws = len(next(iter(values.values())))
        self._nesting = _plate_nesting(trace)
        self.at_once = self._can_run_at_once()

    def __call__(self, extract: Extract, model: Program | None = None) -> dict[str, np.ndarray]:
        """What is extracted from the run at every draw.

        Args:
            extract: tensors by name from a trace.
            model: another program with the same sites, `unobserved(model)` say.

        Returns:
            By name (draws, *shape in a single run).
        """
        model = model or self._model
        with torch.no_grad():
            if not self.at_once:
                return self._one_by_one(model, extract, range(self._num_draws))
            sizes = [s["value"].numel() for s in self._trace.nodes.values() if has_value(s)]
            block = max(2, _VALUES_AT_ONCE // max(sizes, default=1))
            starts = range(0, self._num_draws, block)
            parts = [self._together(model, extract, slice(i, i + block)) for i in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def prior(self, extract: Extract, num_draws: int) -> dict[str, np.ndarray]:
        """What is extracted from runs with nothing given, neither latents nor observations."""
        model = unobserved(self._model)
        with torch.no_grad():
            if not self.at_once:
                runs = [extract(_at(model, {})) for _ in range(num_draws)]
                return {name: np.stack([_numpy(run[name]) for run in runs]) for name in runs[0]}
            return self._together(model, extract, slice(0), num_draws)

    def _can_run_at_once(self) -> bool:
        """Whether what follows from a few draws at once is what follows from each alone."""
        probes = sorted({0, self._num_draws // 2, self._num_draws - 1})
        if len(probes) < 2:
            return False

        def checked(trace: poutine.Trace) -> dict[str, Tensor]:
            found = {f"value of {n}": v for n, v in deterministics(self._trace)(trace).items()}
            return found | log_likelihoods(self._trace)(trace)

        with torch.no_grad():
            alone = self._one_by_one(self._model, checked, probes)
            try:
                together = self._together(self._model, checked, probes)
            except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
                return False  # the model is not written for an outer plate
        return all(
            np.allclose(together[n], alone[n], rtol=1e-4, atol=1e-5, equal_nan=True) for n in alone
        )

    def _one_by_one(
        self, model: Program, extract: Extract, indices: Sequence[int]
    ) -> dict[str, np.ndarray]:
        runs = [extract(_at(model, {n: v[i] for n, v in self._values.items()})) for i in indices]
        return {name: np.stack([_numpy(run[name]) for run in runs]) for name in runs[0]}

    def _together(
        self, model: Program, extract: Extract, rows: Any, prior_draws: int = 0
    ) -> dict[str, np.ndarray]:
        sites = self._trace.nodes
        values = {} if prior_draws else {name: v[rows] for name, v in self._values.items()}
        num_draws = prior_draws or len(next(iter(values.values())))
        stacked = {
            name: value.reshape(
                num_draws,
                *[1] * (self._nesting - len(sites[name]["fn"].batch_shape)),
                *value.shape[1:],
            )
            for name, value in values.items()
        }
        shapes = {name: value.shape for name, value in extract(self._trace).items()}
        with pyro.plate(_PLATE, num_draws, dim=-1 - self._nesting):
            found = extract(_at(model, stacked))
        return {name: _numpy(_one_a_draw(found[name], num_draws, shapes[name])) for name in shapes}


def unobserved(model: Program) -> Program:
    """The model with observed sites drawn; deterministic sites, whose values Pyro marks as observed
    too, are still computed."""
    return _Unobserve()(model)


class _Unobserve(UnconditionMessenger):
    def _pyro_sample(self, msg: Any) -> None:
        if not is_deterministic(msg):
            super()._pyro_sample(msg)


def deterministics(trace: poutine.Trace) -> Extract:
    """Values of a model's deterministic sites; `trace` is any run of it."""
    names = [n for n, s in trace.nodes.items() if has_value(s) and is_deterministic(s)]
    return lambda run: {name: run.nodes[name]["value"] for name in names}


def observations(trace: poutine.Trace) -> Extract:
    """Values of the sites that are observed in `trace`."""
    names = _observed(trace)
    return lambda run: {name: run.nodes[name]["value"] for name in names}


def log_likelihoods(trace: poutine.Trace) -> Extract:
    """Log-density of every observation, in nats, without scale; 0 where it is masked."""
    names = _observed(trace)
    return lambda run: {name: _log_likelihood(run.nodes[name]) for name in names}


def _observed(trace: poutine.Trace) -> list[str]:
    return [
        name
        for name, site in trace.nodes.items()
        if has_value(site) and site["is_observed"] and not is_deterministic(site)
    ]


def _log_likelihood(site: Any) -> Tensor:
    log_p = site["fn"].log_prob(site["value"])
    mask = site["mask"]
    if mask is None or mask is True:
        return log_p
    if mask is False:
        return torch.zeros_like(log_p)
    return torch.where(mask, log_p, torch.zeros_like(log_p))


def _at(model: Program, values: Mapping[str, Tensor]) -> poutine.Trace:
    return poutine.trace(poutine.condition(model, dict(values))).get_trace()


def _plate_nesting(trace: poutine.Trace) -> int:
    frames = [f for site in trace.nodes.values() for f in site.get("cond_indep_stack", ())]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


def _one_a_draw(value: Tensor, num_draws: int, shape: torch.Size) -> Tensor:
    if value.shape == shape:  # the same at every draw
        return value.expand(num_draws, *shape)
    return value.reshape(num_draws, *shape)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
