"""Latents and data drawn from a model together, and the model given these data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_elbo_lab.programs.dims import has_value, is_deterministic, subsampled_plate, trace_dims
from pyro_elbo_lab.programs.replay import deterministics, observations, unobserved
from pyro_elbo_lab.programs.sites import is_improper, is_masked, latents
from pyro_elbo_lab.programs.state import seeded

__all__ = ["Simulated", "Simulator", "simulator"]

Program = Callable[..., Any]

_REFUSAL = "Latents and data cannot be drawn from this model:"


class Simulated(NamedTuple):
    """One draw of latents and data.

    `model` is the model given the data, `args` and `kwargs` its arguments with the data in
    place of what was observed, `truth` the values of latent and deterministic sites.
    """

    model: Program
    args: tuple
    kwargs: dict[str, Any]
    truth: dict[str, np.ndarray]


@dataclass(frozen=True)
class Simulator:
    """Draws latents and data from a model; see `simulator`.

    Attributes:
        dims: names of the dimensions of the sites that have a true value.
        left_out: latent sites of which a rank would mean nothing, since they are masked.
    """

    model: Program
    args: tuple
    kwargs: Mapping[str, Any]
    observed: tuple[str, ...]
    dims: Mapping[str, tuple[str, ...]]
    left_out: tuple[str, ...]

    def __call__(self) -> Simulated:
        """Draw once, from the global random states.

        Raises:
            FloatingPointError: data that are not finite.
        """
        with torch.no_grad(), poutine.block():
            run = poutine.trace(unobserved(self.model))
            trace = run.get_trace(*self.args, **self.kwargs)
        data = {name: trace.nodes[name]["value"] for name in self.observed}
        for name, value in data.items():
            if not torch.isfinite(value).all():
                raise FloatingPointError(
                    f"the data that the prior predictive draws for '{name}' are not finite"
                )
        original = {n: trace.nodes[n]["infer"]["obs"] for n in self.observed}
        args, kwargs = _substituted((self.args, dict(self.kwargs)), original, data)
        truth = {name: trace.nodes[name]["value"].cpu().numpy() for name in self.dims}
        return Simulated(poutine.condition(self.model, data), args, kwargs, truth)


def simulator(model: Program, args: tuple, kwargs: Mapping[str, Any]) -> Simulator:
    """What draws latents and data from a model, after checks that this is possible.

    The sites that the model observes are drawn too, in the order of the program. Arguments of the
    model, also those in dicts, lists and tuples, that share memory with an observed value of full
    shape are replaced by copies that hold the data: a guide that reads them gets the data as well.

    Raises:
        ValueError: a model without observations or latents, with parameters to learn, factors,
            scaled sites, subsampled plates or improper priors; or one that reads its data other
            than through `obs=`, for a prior or as a predictor, which is found out where these
            data are an argument.
    """
    with seeded(0), pyro.get_param_store().scope(), torch.no_grad(), poutine.block():
        try:
            trace = poutine.trace(model).get_trace(*args, **kwargs)
        except NotImplementedError as error:  # by distributions that cannot be drawn from
            raise ValueError(f"{_REFUSAL} a distribution refuses: {error}") from error
        if complaint := _complaint(trace):
            raise ValueError(f"{_REFUSAL} {complaint}")
        masked = [n for n in latents(trace) if is_masked(trace.nodes[n])]
        known = [n for n in latents(trace) if n not in masked] + list(deterministics(trace)(trace))
        found = Simulator(
            model,
            args,
            kwargs,
            tuple(observations(trace)(trace)),
            {name: dims for name, dims in trace_dims(trace).items() if name in known},
            tuple(masked),
        )
        _check_reading(found, latents(trace))
    return found


def _complaint(trace: poutine.Trace) -> str:
    sites = {n: site for n, site in trace.nodes.items() if site["type"] == "sample"}
    parameters = [name for name, site in trace.nodes.items() if site["type"] == "param"]
    if parameters:
        return f"it has parameters to learn, {parameters}; give them a prior, or fix them."
    if not latents(trace):
        return "it has no latent site."
    if plate := subsampled_plate(sites.values()):
        return f"plate '{plate.name}' is subsampled; take the full data."
    for name, site in sites.items():
        if type(site["fn"]).__name__ == "Unit" and torch.any(site["fn"].log_factor != 0):
            return f"factor '{name}' has no distribution to draw from; write it as a sample site."
        if torch.any(torch.as_tensor(site["scale"]) != 1):
            return f"site '{name}' is scaled, so the posterior is not that of data drawn from it."
    if not observations(trace)(trace):
        return "it observes nothing; call it with its data, in the shape that shall be simulated."
    improper = [name for name in latents(trace) if is_improper(sites[name])]
    return f"the prior of {improper} is improper." if improper else ""


def _check_reading(simulator: Simulator, names: list[str]) -> None:
    """Refuse a model whose densities change when its arguments hold the simulated data."""
    drawn = simulator()
    latent = {n: torch.as_tensor(drawn.truth[n]) for n in names if n in drawn.truth}
    given = poutine.condition(drawn.model, latent)
    runs = []
    for args, kwargs in ((simulator.args, simulator.kwargs), (drawn.args, drawn.kwargs)):
        with seeded(0):  # of latents that are masked
            runs.append(poutine.trace(given).get_trace(*args, **kwargs))
        runs[-1].compute_log_prob()
    for name, site in runs[0].nodes.items():
        if not has_value(site) or is_deterministic(site):
            continue
        other = runs[1].nodes[name]["log_prob"]
        if not torch.allclose(site["log_prob"], other, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise ValueError(
                f"Site '{name}' reads the data other than through obs=, so its distribution "
                "depends on them before they are drawn. Compute such things from the values that "
                "pyro.sample returns, or pass them as another argument that is not the data."
            )


def _substituted(arguments: Any, seen: Mapping[str, Any], data: Mapping[str, Tensor]) -> Any:
    """Arguments with the data in place of observed values that share memory with them."""
    if isinstance(arguments, dict):
        return {key: _substituted(value, seen, data) for key, value in arguments.items()}
    if type(arguments) in (list, tuple):
        return type(arguments)(_substituted(value, seen, data) for value in arguments)
    if isinstance(arguments, np.ndarray) and arguments.dtype.kind in "fiub":
        tensor = torch.from_numpy(arguments)
        new = _substituted(tensor, seen, data)
        return arguments if new is tensor else new.numpy()
    if not isinstance(arguments, Tensor):
        return arguments
    memory = arguments.untyped_storage()
    names = [
        name
        for name, x in seen.items()
        if x.numel() and x.untyped_storage().data_ptr() == memory.data_ptr()
        if x.shape == data[name].shape and 0 not in x.stride()
    ]
    if not names:
        return arguments
    copy = memory.clone()
    for name in names:
        _view(copy, seen[name]).copy_(data[name])
    return _view(copy, arguments)


def _view(storage: torch.UntypedStorage, like: Tensor) -> Tensor:
    empty = torch.empty(0, dtype=like.dtype, device=like.device)
    return empty.set_(storage, like.storage_offset(), like.size(), like.stride())
