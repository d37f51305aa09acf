"""What is wrong with the data, sites, guides and exact draws of a model file, one sentence each."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_elbo_lab.inference.trees.datatree import variable
from pyro_elbo_lab.programs.dims import has_value
from pyro_elbo_lab.programs.sites import latents

_UNNAMED = ("chain", "draw")
"""Plates of these names name no dimension."""


def of_data(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Complaints about the model's arguments, by name: NaN, and what can be read only once."""
    for name, value in arguments.items():
        if isinstance(value, Iterator):
            yield (
                f"data(): argument {name!r} of the model is a {type(value).__name__}, which is "
                "empty once the model has read it; return a list or a tensor"
            )
        for place, array in _arrays(value, f"argument {name!r}"):
            if wrong := int(np.isnan(array).sum()):
                yield (
                    f"data(): {place} of the model has {wrong} NaN among {array.size} "
                    "values; remove or impute them, or leave them out of the likelihood"
                )


def _arrays(value: Any, place: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every array of real or complex numbers within `value`, and where it is."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _arrays(item, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _arrays(item, f"{place}[{i}]")
    elif isinstance(value, Tensor):
        if value.layout == torch.strided and not value.is_quantized:
            wide = torch.complex128 if value.is_complex() else torch.float64
            yield place, value.detach().cpu().to(wide).resolve_conj().numpy()
    elif hasattr(value, "__array__") or isinstance(value, float | complex):
        array = np.asarray(value)
        if array.dtype.kind in "fc":
            yield place, array


def of_sites(sites: Mapping[str, Any]) -> Iterator[str]:
    """Complaints about names that no DataTree can have, and values that are complex."""
    taken: dict[str, str] = {}
    for name, site in sites.items():
        if not has_value(site):
            continue
        names = [name, *(f.name for f in site["cond_indep_stack"] if f.name not in _UNNAMED)]
        try:
            found = [variable(each) for each in names]
        except ValueError as error:
            yield str(error)
            continue
        if (other := taken.setdefault(found[0], name)) != name:
            yield (
                f"sites {other!r} and {name!r} would both be the variable {found[0]!r} of a "
                "DataTree, since '/' is written as '.'; give one another name"
            )
        if site["value"].is_complex():
            yield (
                f"site {name!r} has values of {site['value'].dtype}, but densities are of real "
                "numbers; observe real and imaginary part, as torch.view_as_real gives them"
            )


def of_guides(guides: Any) -> Iterator[str]:
    """Complaints about the file's `guides`."""
    if not isinstance(guides, Mapping) or not all(map(callable, guides.values())):
        yield "`guides` must be a dict of functions that return a guide"
        return
    for name, build in guides.items():
        if not isinstance(name, str):
            yield f"`guides` has the key {name!r}; expected a name, a string"
        for complaint in of_function(f"`guides`: {name!r}", build):
            yield f"{complaint} that returns a guide, such as `lambda: guide`"


def of_function(name: str, function: Any) -> Iterator[str]:
    """A complaint about a function that cannot be called without arguments."""
    with suppress(ValueError):  # of built-in functions nothing is known
        try:
            inspect.signature(function).bind()
        except TypeError:
            yield f"{name} takes arguments; expected a function without any"


def of_exact_draws(draws: Any, num_draws: int, trace: Any) -> Iterator[str]:
    """Complaints about draws by site, beside a run of the model."""
    if not isinstance(draws, Mapping) or not draws:
        yield f"exact_draws must return a dict from site to tensor, got {type(draws).__name__}"
        return
    for name, value in draws.items():
        site = trace.nodes.get(name)
        if site is None or site["type"] != "sample" or site["is_observed"]:
            yield f"exact_draws returns {name!r}, no latent site of the model"
            continue
        expected, found = (num_draws, *site["value"].shape), tuple(getattr(value, "shape", ()))
        if not isinstance(value, Tensor):
            yield f"exact_draws of {name!r} are a {type(value).__name__}, expected a tensor"
        elif found != expected:
            yield (
                f"{num_draws} exact_draws of {name!r} have shape {found}, expected {expected}: "
                "number of draws, then the shape of the site"
            )
        elif value.is_complex() or not torch.isfinite(value).all():
            yield f"exact_draws of {name!r} are not finite real numbers"
    for name in latents(trace):
        if name not in draws and trace.nodes[name]["value"].is_floating_point():
            yield f"exact_draws lacks {name!r}, a latent site of the model"
