"""Names for the dimensions of a model's sites: those of its plates."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from pyro import poutine

from pyro_elbo_lab.programs.state import seeded

__all__ = [
    "SAMPLE_DIMS",
    "delta",
    "element_names",
    "has_value",
    "is_deterministic",
    "part_of_the_rows",
    "refuse_complex",
    "site_dims",
    "subsampled_plate",
    "trace_dims",
]

SAMPLE_DIMS = ("chain", "draw")


def site_dims(model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, tuple[str, ...]]:
    """Names for the dimensions of every sample site of a model: its plates' names.

    The model runs once, with a seed of its own. A dimension that belongs to a vectorized plate
    bears the plate's name; every other one, such as an event dimension, is `<site>_dim_<i>`,
    counted from 0 at each site. A plate called `chain` or `draw` counts as unnamed, and so does one
    of which it is unclear which dimension of a `pyro.deterministic` without `event_dim` it spans.

    Args:
        model: a Pyro model.
        args: the model's positional arguments.
        kwargs: the model's keyword arguments.

    Returns:
        For each latent, observed and deterministic site the names of all its dimensions, from
        left to right; () for a scalar.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("school", 8):
        ...         pyro.sample("effect", dist.Normal(mu, 1.0).expand([2]).to_event(1))
        >>> site_dims(model)
        {'mu': (), 'effect': ('school', 'effect_dim_0')}
    """
    with seeded(0), torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    return trace_dims(trace)


def trace_dims(trace: poutine.Trace) -> dict[str, tuple[str, ...]]:
    """Like `site_dims`, for a run of a model: `poutine.trace(model).get_trace()`."""
    return {name: _dims(name, site) for name, site in trace.nodes.items() if has_value(site)}


def element_names(name: str, shape: Iterable[int]) -> list[str]:
    """A name for every number in an array, in its order.

    Example:
        >>> element_names("z", (2, 1)), element_names("z", ())
        (['z[0, 0]', 'z[1, 0]'], ['z'])
    """
    return [f"{name}{list(index) or ''}" for index in np.ndindex(*shape)]


def subsampled_plate(sites: Iterable[dict[str, Any]]) -> Any:
    """The frame (name, size, full_size) of a plate that holds a part of the data, None if all hold
    all."""
    frames = (frame for site in sites for frame in site.get("cond_indep_stack", ()))
    return next((frame for frame in frames if frame.full_size not in (None, frame.size)), None)


def part_of_the_rows(trace: poutine.Trace) -> str:
    """The plate of which a run has seen only some rows, in words; "" if there is none."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and type(site["fn"]).__name__ == "_Subsample":
            size, seen = site["fn"].size, len(np.unique(_indices(site["value"])))
            if seen < size:
                return f"plate '{name}' holds {seen} of {size} rows"
    plate = subsampled_plate(trace.nodes.values())
    return "" if plate is None else f"plate '{plate.name}' holds {plate.size} of {plate.full_size}"


def _indices(rows: Any) -> np.ndarray:
    return rows.cpu().numpy() if isinstance(rows, torch.Tensor) else np.asarray(rows)


def is_deterministic(site: dict[str, Any]) -> bool:
    """Whether a site of a model is computed, and neither drawn nor data.

    A `pyro.deterministic` is, and what `pyro.poutine.reparam` puts in the place of a latent.
    """
    marked = bool((site["infer"] or {}).get("_deterministic"))
    return marked or (site["is_observed"] and delta(site["fn"]) is not None)


def delta(fn: Any) -> Any:
    """The Delta inside a distribution's wrappers, None if it is random."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn if type(fn).__name__ == "Delta" else None


def refuse_complex(name: str, site: dict[str, Any], side: str) -> None:
    """Raise ValueError for a site whose log-density is complex, as it is of complex data."""
    if site["type"] != "sample" or not has_value(site) or not site["value"].is_complex():
        return
    with torch.no_grad():
        density = site["fn"].log_prob(site["value"])
    if density.is_complex():
        raise ValueError(
            f"Site '{name}' of the {side} has complex values and a complex log-density "
            f"({type(site['fn']).__name__}). Write its real and imaginary part as real sites, "
            "torch.view_as_real(...), or use a distribution whose log_prob is real."
        )


def has_value(site: dict[str, Any]) -> bool:
    """Whether a site holds data worth a name: not a factor, a plate's indices or a parameter."""
    if site["type"] != "sample" or type(site["fn"]).__name__ in ("Unit", "_Subsample"):
        return False
    return isinstance(site["value"], torch.Tensor)


def _dims(name: str, site: dict[str, Any]) -> tuple[str, ...]:
    shape = site["value"].shape
    plates = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    event_dim = _event_dim(site, plates)
    names: list[str | None] = [None] * len(shape)
    for frame in plates:
        if event_dim is None or frame.name in SAMPLE_DIMS:
            continue
        axis = frame.dim - event_dim
        if _spans(shape, axis, frame.size):
            names[axis] = frame.name
    unnamed = iter(range(len(shape)))
    return tuple(f"{name}_dim_{next(unnamed)}" if n is None else n for n in names)


def _event_dim(site: dict[str, Any], plates: list[Any]) -> int | None:
    """How many dimensions stand to the right of the plates; None where that is unclear."""
    event_dim, value = site["fn"].event_dim, site["value"]
    unspecified = site["infer"].get("_deterministic") and event_dim == value.dim()
    if not unspecified:
        return event_dim
    fitting = [
        n
        for n in range(value.dim() + 1)
        if all(_spans(value.shape, frame.dim - n, frame.size) for frame in plates)
    ]
    return fitting[0] if len(fitting) == 1 else None


def _spans(shape: torch.Size, axis: int, size: int) -> bool:
    return -axis <= len(shape) and shape[axis] == size
