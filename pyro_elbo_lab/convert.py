"""From Pyro to ArviZ: named dimensions and DataTrees."""

from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import arviz_base
import numpy as np
import torch
from pyro import poutine
from xarray import DataTree

from pyro_elbo_lab.layout import linear
from pyro_elbo_lab.particles import Particles
from pyro_elbo_lab.sampling import draw, is_vectorizable
from pyro_elbo_lab.state import forget_namesakes, seeded
from pyro_elbo_lab.structure import Structure, analyse, aside, first_enumerated_dim, run

__all__ = ["from_guide", "site_dims", "to_datatree", "trace_dims"]

SAMPLE_DIMS = ("chain", "draw")


def site_dims(model: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, tuple[str, ...]]:
    """Names for the dimensions of every sample site of a model: its plates' names.

    The model runs once, with a seed of its own. A dimension that belongs to a vectorised plate
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
    """As `site_dims`, of a model that has already been run: `poutine.trace(model).get_trace()`."""
    return {name: _dims(name, site) for name, site in trace.nodes.items() if _has_value(site)}


def from_guide(
    guide: Callable[..., Any],
    model: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    **kwargs: Any,
) -> DataTree:
    """Draws of a guide as ArviZ data, each with its log-weight.

    All draws are made at once if that gives the same densities as one by one, which is checked,
    otherwise one by one. Set `pyro.set_rng_seed` first for draws that can be repeated.

    Args:
        guide: a Pyro guide, fitted.
        model: the Pyro model that it was fitted to.
        args: positional arguments of both.
        num_samples: the number of draws, at least 1.
        kwargs: keyword arguments of both.

    Returns:
        A tree with `posterior` (the model's latent and deterministic sites, dimensions named after
        plates, one chain), `sample_stats` with `log_p` = log p(x, z), `log_q` = log q(z) and
        `log_weight` = log p - log q in nats, each (chain, draw), and `observed_data`. Discrete
        sites that are summed out have no draws: they and the deterministic sites that depend on
        them are missing, and named in the attribute `summed_out`.

    Raises:
        ValueError: fewer than one draw, or a guide that does not fit the model.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     with pyro.plate("school", 8):
        ...         pyro.sample("effect", dist.Normal(0.0, 1.0))
        >>> tree = from_guide(model, model, num_samples=500)
        >>> dict(tree["posterior"].sizes)
        {'chain': 1, 'draw': 500, 'school': 8}
        >>> float(abs(tree["sample_stats"]["log_weight"]).max())  # the guide is the posterior
        0.0
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    forget_namesakes(guide)
    structure, _ = analyse(model, guide, args, kwargs)
    with aside(), torch.no_grad():
        example, _ = run(model, guide, args, kwargs)
    with torch.no_grad():
        particles = draw(
            model,
            guide,
            args,
            kwargs,
            structure=structure,
            layout=linear(),
            num_outer=num_samples,
            vectorize=is_vectorizable(model, guide, args, kwargs),
        )
    sites = {name: site for name, site in example.nodes.items() if _has_value(site)}
    latent = [n for n, s in sites.items() if not s["is_observed"] or _is_deterministic(s)]
    summed = _summed_out(structure, model, guide, args, kwargs, {n: sites[n] for n in latent})
    latent = [n for n in latent if n not in summed]
    observed = [n for n in sites if n not in latent and n not in summed]
    return to_datatree(
        {name: _values(particles, name, sites[name]["value"].shape)[None] for name in latent},
        trace_dims(example),
        sample_stats={name: values[None] for name, values in _log_densities(particles).items()},
        observed_data={name: _numpy(sites[name]["value"]) for name in observed},
        attrs={"inference": "guide"} | ({"summed_out": ", ".join(summed)} if summed else {}),
    )


def to_datatree(
    posterior: Mapping[str, np.ndarray],
    dims: Mapping[str, tuple[str, ...]],
    *,
    sample_stats: Mapping[str, np.ndarray] | None = None,
    observed_data: Mapping[str, np.ndarray] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> DataTree:
    """Dress arrays in labels: a DataTree in ArviZ's layout, which `to_netcdf` can write.

    Args:
        posterior: draws by site, each of shape (chain, draw, *site shape).
        dims: names of the dimensions after (chain, draw), such as `site_dims` gives; sites
            without an entry get ArviZ's default names.
        sample_stats: statistics of the sampler by name, each of shape (chain, draw).
        observed_data: observed values by site, each of the site's shape.
        attrs: attributes of the root, strings and numbers.

    Returns:
        A tree with the group `posterior`, and `sample_stats` and `observed_data` where given.

    Raises:
        ValueError: an array that lacks chain and draw, has other numbers of them than its
            neighbours, or whose number of dimensions is not that of its names.
        TypeError: an attribute that is neither a string nor a number.

    Example:
        >>> tree = to_datatree({"effect": np.zeros((4, 100, 8))}, {"effect": ("school",)})
        >>> dict(tree["posterior"].sizes)
        {'chain': 4, 'draw': 100, 'school': 8}
    """
    draws = {**posterior, **(sample_stats or {})}
    leading = next((np.shape(values)[:2] for values in draws.values()), None)
    for name, values in draws.items():
        if np.ndim(values) < 2 or np.shape(values)[:2] != leading:
            raise ValueError(
                f"'{name}' has shape {np.shape(values)}, expected (chain, draw, ...) with (chain, "
                f"draw) = {leading} as in '{next(iter(draws))}'."
            )
    for name, values in (sample_stats or {}).items():
        if np.ndim(values) != 2:
            raise ValueError(
                f"sample_stats['{name}'] has shape {np.shape(values)}, expected (chain, draw)."
            )
    observed = dict(observed_data or {})
    shapes = {name: np.shape(values)[2:] for name, values in posterior.items()}
    shapes |= {name: np.shape(values) for name, values in observed.items()}
    for name, shape in shapes.items():
        if name in dims and len(dims[name]) != len(shape):
            raise ValueError(
                f"'{name}' has {len(shape)} dimensions of shape {shape}, but its names are "
                f"{tuple(dims[name])}."
            )
    groups = {
        "posterior": dict(posterior),
        "sample_stats": dict(sample_stats or {}),
        "observed_data": observed,
    }
    tree = arviz_base.from_dict(
        {group: values for group, values in groups.items() if values or group == "posterior"},
        dims={name: list(names) for name, names in dims.items() if name in shapes},
    )
    tree.attrs.update({name: _attribute(name, value) for name, value in (attrs or {}).items()})
    return tree


def _summed_out(
    structure: Structure,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    drawn: Mapping[str, Any],
) -> list[str]:
    """Those among a model's sites that have many values at once where discrete sites are summed."""
    if not structure.enumerated:
        return []
    first_dim = first_enumerated_dim(structure.max_plate_nesting)
    with aside(), torch.no_grad():
        trace, _ = run(model, guide, args, kwargs, first_enumerated_dim=first_dim)
    values = {name: trace.nodes[name]["value"] for name in drawn}
    changed = [n for n, v in values.items() if v.numel() != drawn[n]["value"].numel()]
    return [n for n in drawn if n in changed or n in structure.enumerated]


def _log_densities(particles: Particles) -> dict[str, np.ndarray]:
    sides = {
        side: sum(
            (
                f.weight * f.value.reshape(particles.num_outer, -1).sum(1)
                for f in particles.shared
                if f.key.side == side
            ),
            start=particles.zero.expand(particles.num_outer),
        )
        for side in ("model", "guide")
    }
    log_p, log_q = _numpy(sides["model"]), -_numpy(sides["guide"])
    return {"log_p": log_p, "log_q": log_q, "log_weight": log_p - log_q}


def _values(particles: Particles, name: str, shape: torch.Size) -> np.ndarray:
    """Draws of one site of the model, (draw, *shape)."""
    values: list[Any] = [run.model_trace.nodes[name]["value"] for run in particles.runs]
    if len(values) == particles.num_outer:
        return _numpy(torch.stack([value.reshape(shape) for value in values]))
    num = particles.num_outer
    (value,) = values  # all draws at once; a site that reads no latent lacks their dimension
    is_constant = value.numel() == shape.numel() and num > 1
    return _numpy(
        value.reshape(shape).expand(num, *shape) if is_constant else value.reshape(num, *shape)
    )


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _is_deterministic(site: dict[str, Any]) -> bool:
    return bool(site["infer"].get("_deterministic"))


def _has_value(site: dict[str, Any]) -> bool:
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


def _attribute(name: str, value: Any) -> str | int | float:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_ | Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise TypeError(
        f"attribute '{name}' is a {type(value).__name__}, expected a string or a number "
        "(nothing else survives netCDF)."
    )
