"""What ArviZ wants beside the posterior: likelihoods, predictions, the prior, constant data."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_elbo_lab.programs.dims import subsampled_plate
from pyro_elbo_lab.programs.replay import (
    Replay,
    deterministics,
    log_likelihoods,
    observations,
    unobserved,
)
from pyro_elbo_lab.programs.sites import is_improper, is_masked, latents

__all__ = ["constant_data", "model_groups"]

Program = Callable[..., Any]
Arrays = dict[str, np.ndarray]

MOST_VALUES = 50_000_000
"""Numbers in a group, 400 MB in float64; larger groups are left out."""

_NOTHING = "no log_likelihood, predictions and prior"

NUM_PRIOR = 500
"""Draws of the prior."""


def model_groups(
    model: Program, trace: poutine.Trace, posterior: Mapping[str, np.ndarray]
) -> tuple[dict[str, Arrays], list[str]]:
    """Likelihoods and predictions at draws of the posterior, and draws of the prior.

    Args:
        model: takes no arguments.
        trace: one run of it.
        posterior: draws of its latents, (chain, draw, *shape of the site).

    Returns:
        `log_likelihood` in nats for every observation, unscaled and 0 where masked,
        `posterior_predictive`, `prior` and `prior_predictive`, as far as there are any; and what
        was left out and why.
    """
    complaint = _complaint(trace, posterior)
    if complaint:
        return {}, [f"{_NOTHING}: {complaint}"]
    values = {name: _flat(trace, name, posterior[name]) for name in latents(trace)}
    try:
        replay = Replay(model, trace, values)
    except Exception as error:  # what the sampler has computed must not be lost
        return {}, [f"{_NOTHING}: {type(error).__name__}: {error}"]
    sample = next(iter(posterior.values())).shape[:2]
    size = sum(v.numel() for v in observations(trace)(trace).values())
    notes: list[str] = []
    groups: dict[str, Arrays] = {}

    def attempt(group: str, num_values: int, make: Callable[[], Arrays]) -> None:
        if num_values > MOST_VALUES:
            notes.append(f"no {group}: it would hold {num_values} numbers, over {MOST_VALUES}")
            return
        try:
            found = make()
        except Exception as error:  # as above
            notes.append(f"no {group}: {type(error).__name__}: {error}")
            return
        if found:
            groups[group] = found

    def of_posterior(extract: Any, program: Program | None = None) -> Arrays:
        return {n: x.reshape(*sample, *x.shape[1:]) for n, x in replay(extract, program).items()}

    num_draws = sample[0] * sample[1]
    attempt("log_likelihood", num_draws * size, lambda: of_posterior(log_likelihoods(trace)))
    if masked := [name for name in observations(trace)(trace) if is_masked(trace.nodes[name])]:
        notes.append(f"masked observations of {masked} have likelihood 1: leave them out of az.loo")
    attempt(
        "posterior_predictive",
        num_draws * size,
        lambda: of_posterior(observations(trace), unobserved(model)),
    )
    improper = [name for name in latents(trace) if is_improper(trace.nodes[name])]
    if improper:
        notes.append(f"no prior: that of {improper} is improper")
        return groups, notes
    inputs = sum(trace.nodes[name]["value"].numel() for name in latents(trace))
    attempt("prior", NUM_PRIOR * inputs, lambda: _prior(replay, trace, _unobserved))
    attempt("prior_predictive", NUM_PRIOR * size, lambda: _prior(replay, trace, observations))
    return groups, notes


def constant_data(
    model: Program, args: tuple, kwargs: Mapping[str, Any], trace: poutine.Trace
) -> Arrays:
    """The arrays among a model's arguments that it does not observe, by the argument's name."""
    target = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        bound = inspect.signature(target).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {}
    arguments: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            arguments |= {f"{name}_{i}": x for i, x in enumerate(value)}
        else:
            arguments[name] = value
    arrays = {n: _array(x) for n, x in arguments.items() if isinstance(x, Tensor | np.ndarray)}
    seen = [_array(x) for x in observations(trace)(trace).values()]
    return {name: array for name, array in arrays.items() if not any(_same(array, y) for y in seen)}


def _array(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else x


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _complaint(trace: poutine.Trace, posterior: Mapping[str, np.ndarray]) -> str:
    missing = [name for name in latents(trace) if name not in posterior]
    if missing:
        return f"there are no draws of {missing}, which are summed out"
    if plate := subsampled_plate(trace.nodes.values()):
        return f"plate '{plate.name}' is subsampled"
    return "" if latents(trace) else "the model has no latents"


def _flat(trace: poutine.Trace, name: str, draws: np.ndarray) -> Tensor:
    like = trace.nodes[name]["value"]
    return torch.as_tensor(draws.reshape(-1, *draws.shape[2:])).to(like)


def _unobserved(trace: poutine.Trace) -> Any:
    names, of_draws = latents(trace), deterministics(trace)
    return lambda run: {n: run.nodes[n]["value"] for n in names} | of_draws(run)


def _prior(replay: Replay, trace: poutine.Trace, extractor: Callable[..., Any]) -> Arrays:
    return {n: x[None] for n, x in replay.prior(extractor(trace), NUM_PRIOR).items()}
