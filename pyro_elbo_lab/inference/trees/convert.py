"""From Pyro to ArviZ: draws of samplers, guides and predictions as DataTrees."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro import poutine
from xarray import DataTree

from pyro_elbo_lab.inference.trees.datatree import to_datatree
from pyro_elbo_lab.inference.trees.groups import constant_data, model_groups
from pyro_elbo_lab.objectives.particles.guide_draws import GuideDraws, guide_draws
from pyro_elbo_lab.objectives.particles.layout import lay_out
from pyro_elbo_lab.objectives.particles.probe import probe
from pyro_elbo_lab.objectives.particles.scored import Stack, sort
from pyro_elbo_lab.programs.arguments import check_count, check_programs
from pyro_elbo_lab.programs.dims import part_of_the_rows, trace_dims
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.replay import Replay, deterministics, observations
from pyro_elbo_lab.programs.state import forget_namesakes, seeded

__all__ = ["from_guide", "from_predictive", "from_pyro", "unscored"]

_PART = (
    "the draws have no log-weights and no k-hat, as {}, and weights of a part of the data would "
    "say nothing of all data. Call it with all rows and without subsampling."
)

Labels = Mapping[str, Sequence[Any]] | None
Names = Mapping[str, Sequence[str]] | None


def from_pyro(
    mcmc: Any,
    model: Callable[..., Any] | None = None,
    *args: Any,
    coords: Labels = None,
    dims: Names = None,
    **kwargs: Any,
) -> DataTree:
    """Draws of `pyro.infer.MCMC` as ArviZ data, with what follows from the model.

    Args:
        mcmc: after `run`.
        model: the model that it ran on; without it there is only the posterior, with ArviZ's names
            for dimensions.
        args: the model's positional arguments.
        coords: labels of the elements of dimensions, as `{"school": ["A", "B", ...]}`.
        dims: names of a site's dimensions after (chain, draw), to override
            its plates.
        kwargs: the model's keyword arguments.

    Returns:
        A tree with `posterior` (latent and deterministic sites), `sample_stats` (`diverging`, and
        `step_size` of a single chain: Pyro keeps no more of NUTS and HMC than that, and the mean
        acceptance rate, the attribute `acceptance_rate`), `log_likelihood` of every observation in
        nats, `posterior_predictive`, `prior` and `prior_predictive` (500 draws), `observed_data`
        and `constant_data` (arrays among the arguments that are not observed). A group that cannot
        be had, or would hold more than 50 million numbers, is missing, and the attribute `notes`
        says why. Predictions and prior are drawn with a seed of their own.

    Raises:
        ValueError: draws of a site that the model lacks, or of another shape; no draws.
        TypeError: `mcmc` is none.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC, NUTS
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("patient", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> pyro.set_rng_seed(0)
        >>> mcmc = MCMC(NUTS(model), num_samples=50, warmup_steps=50, disable_progbar=True)
        >>> mcmc.run(torch.zeros(3))
        >>> tree = from_pyro(mcmc, model, torch.zeros(3))
        >>> dict(tree["log_likelihood"].sizes)
        {'chain': 1, 'draw': 50, 'patient': 3}
    """
    samples = _samples(mcmc)
    posterior = {name: _numpy(draws) for name, draws in samples.items()}
    attrs: dict[str, Any] = {"inference": f"Pyro {type(mcmc.kernel).__name__}"}
    stats = _sample_stats(mcmc, next(iter(posterior.values())).shape[:2], attrs)
    if model is None:
        return to_datatree(posterior, dims or {}, sample_stats=stats, coords=coords, attrs=attrs)
    with seeded(0), torch.no_grad(), poutine.block():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
        _check_sites(trace, posterior)
        bound = _bound(model, args, kwargs)
        posterior |= _deterministics(bound, trace, posterior)
        groups, notes = model_groups(bound, trace, posterior)
    return _tree(trace, posterior, stats, groups, notes, attrs, coords, dims, model, args, kwargs)


def from_guide(
    guide: Callable[..., Any],
    model: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    coords: Labels = None,
    dims: Names = None,
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
        coords: labels of the elements of dimensions, as `{"school": ["A", "B", ...]}`.
        dims: names of a site's dimensions after (chain, draw), to override
            its plates.
        kwargs: keyword arguments of both.

    Returns:
        A tree with `posterior` (the model's latent and deterministic sites, dimensions named after
        plates, one chain), `sample_stats` with `log_p` = log p(x, z), `log_q` = log q(z) and
        `log_weight` = log p - log q in nats, each (chain, draw); and the other groups of
        `from_pyro`.
        Where latents are local to plates, `cell_log_weight` is the part of log p - log q that
        depends on them, by index of these plates. Discrete sites that are summed out have no draws:
        they and the deterministic sites that depend on them are missing, and named in the attribute
        `summed_out`; the latents that the guide sets to single values are named in `points`.
        Where a plate holds a part of the rows there are no densities, as log-weights and k-hat of
        a part of the data are not those of all data.

    Raises:
        ValueError: fewer than one draw, or a guide that does not fit the model.
        TypeError: `num_samples` is no integer.

    Warns:
        UserWarning: a plate holds a part of the rows.

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
    check_programs(model=model, guide=guide)
    check_count("num_samples", num_samples)
    forget_namesakes(guide)
    pair = Pair(model, guide, args, kwargs)
    with torch.no_grad():
        drawn = guide_draws(pair, num_samples)
    posterior = {name: _numpy(drawn.values(name))[None] for name in drawn.names}
    log_p, log_q = (_numpy(drawn.log_density(side))[None] for side in ("model", "guide"))
    stats = {"log_p": log_p, "log_q": log_q, "log_weight": log_p - log_q}
    cells: dict[str, np.ndarray] = {}
    cell_dims: dict[str, tuple[str, ...]] = {}
    with torch.no_grad(), poutine.block():
        groups, notes = model_groups(_bound(model, args, kwargs), drawn.trace, posterior)
    if part := part_of_the_rows(drawn.trace):
        stats = {}
        notes.append(f"no log-weights and no k-hat: {part}")
        warn(f"from_guide: {_PART.format(part)}")
    else:
        cells, cell_dims = _cell_log_weights(pair, drawn)
    attrs = {"inference": "guide"}
    attrs |= {"summed_out": ", ".join(drawn.summed_out)} if drawn.summed_out else {}
    attrs |= {"points": ", ".join(points)} if (points := drawn.structure.points) else {}
    names = {**cell_dims, **(dims or {})}
    return _tree(
        drawn.trace,
        posterior,
        stats | cells,
        groups,
        notes,
        attrs,
        coords,
        names,
        model,
        args,
        kwargs,
    )


def from_predictive(
    samples: Mapping[str, Any],
    model: Callable[..., Any] | None = None,
    *args: Any,
    group: str = "posterior_predictive",
    coords: Labels = None,
    dims: Names = None,
    **kwargs: Any,
) -> DataTree:
    """What `pyro.infer.Predictive` returns as ArviZ data.

    Args:
        samples: values by site, draws first.
        model: where given, sites that it does not observe go to `posterior` (or `prior`), and
            dimensions are named after its plates.
        args: the model's positional arguments, with the observations.
        group: "posterior_predictive" or "prior_predictive".
        coords: labels of the elements of dimensions.
        dims: names of a site's dimensions after (chain, draw).
        kwargs: the model's keyword arguments.

    Returns:
        A tree with one chain.

    Raises:
        ValueError: another group, or sites with different numbers of draws.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import Predictive
        >>> def model(y=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("patient", 3):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> samples = Predictive(model, num_samples=100)()
        >>> tree = from_predictive(samples, model, torch.zeros(3), group="prior_predictive")
        >>> dict(tree["prior_predictive"].sizes)
        {'chain': 1, 'draw': 100, 'patient': 3}
        >>> list(tree["prior"])
        ['mu']
    """
    companions = {"posterior_predictive": "posterior", "prior_predictive": "prior"}
    if group not in companions:
        raise ValueError(f"group={group!r}: expected one of {sorted(companions)}.")
    arrays = {
        name: np.asarray(_numpy(x) if isinstance(x, torch.Tensor) else x)
        for name, x in samples.items()
    }
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"The sites have different numbers of draws: {lengths}.")
    names: dict[str, Sequence[str]] = {}
    observed: dict[str, np.ndarray] = {}
    if model is not None:
        with seeded(0), torch.no_grad(), poutine.block():
            trace = poutine.trace(model).get_trace(*args, **kwargs)
        names |= trace_dims(trace)
        observed = {n: _numpy(x) for n, x in observations(trace)(trace).items()}
        shapes = {n: trace.nodes[n]["value"].shape for n in names}
        arrays = {n: x.reshape(len(x), *shapes[n]) if n in shapes else x for n, x in arrays.items()}
    predicted = {n: x[None] for n, x in arrays.items() if model is None or n in observed}
    others = {n: x[None] for n, x in arrays.items() if n not in predicted}
    is_posterior = companions[group] == "posterior"
    groups = {group: predicted} | ({} if is_posterior else {"prior": others})
    return to_datatree(
        others if is_posterior else {},
        names | dict(dims or {}),
        observed_data={n: x for n, x in observed.items() if n in predicted},
        groups={name: found for name, found in groups.items() if found},
        coords=coords,
    )


def unscored(tree: DataTree, why: str) -> DataTree:
    """The tree without what belongs to some rows of the data: densities, data and predictions.

    Args:
        tree: what `from_guide` returned for some of the rows.
        why: a note.
    """
    kept = {n: child.to_dataset() for n, child in tree.children.items() if n in _OF_NO_ROWS}
    found = DataTree.from_dict(kept)
    found.attrs = {**tree.attrs, "notes": why}
    return found


_OF_NO_ROWS = ("posterior", "prior")


def _samples(mcmc: Any) -> Mapping[str, torch.Tensor]:
    if not hasattr(mcmc, "get_samples"):
        raise TypeError(f"mcmc is a {type(mcmc).__name__}, expected a finished pyro.infer.MCMC.")
    samples = mcmc.get_samples(group_by_chain=True)
    if not samples:
        raise ValueError("The MCMC has no draws: call its run(...) first.")
    return samples


def _tree(
    trace: poutine.Trace,
    posterior: Mapping[str, np.ndarray],
    stats: Mapping[str, np.ndarray],
    groups: Mapping[str, Mapping[str, np.ndarray]],
    notes: Sequence[str],
    attrs: Mapping[str, Any],
    coords: Labels,
    dims: Names,
    model: Callable[..., Any],
    args: tuple,
    kwargs: Mapping[str, Any],
) -> DataTree:
    return to_datatree(
        posterior,
        {**trace_dims(trace), **(dims or {})},
        sample_stats=stats,
        observed_data={n: _numpy(x) for n, x in observations(trace)(trace).items()},
        groups={**groups, "constant_data": constant_data(model, args, kwargs, trace)},
        coords=coords,
        attrs={**attrs, **({"notes": "; ".join(notes)} if notes else {})},
    )


def _bound(model: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Callable[[], Any]:
    return lambda: model(*args, **kwargs)


def _check_sites(trace: poutine.Trace, posterior: Mapping[str, np.ndarray]) -> None:
    for name, draws in posterior.items():
        site = trace.nodes.get(name)
        shape = None if site is None else tuple(site["value"].shape)
        if draws.shape[2:] != shape:
            found = "no such site" if shape is None else f"a site of shape {shape}"
            raise ValueError(
                f"The sampler has draws of '{name}' of shape {draws.shape[2:]}, but the model has "
                f"{found}: pass the model that was sampled, with the same arguments."
            )


def _deterministics(
    model: Callable[[], Any], trace: poutine.Trace, posterior: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    extract = deterministics(trace)
    if not extract(trace):
        return {}
    values = {
        name: torch.as_tensor(x.reshape(-1, *x.shape[2:])).to(trace.nodes[name]["value"])
        for name, x in posterior.items()
    }
    chains = next(iter(posterior.values())).shape[:2]
    found = Replay(model, trace, values)(extract)
    return {name: x.reshape(*chains, *x.shape[1:]) for name, x in found.items()}


def _sample_stats(
    mcmc: Any, chains: tuple[int, ...], attrs: dict[str, Any]
) -> dict[str, np.ndarray]:
    """What Pyro keeps of a run: where it diverged, and the step size of the last chain."""
    diagnostics = mcmc.diagnostics()
    stats = {}
    if "divergences" in diagnostics:
        diverging = np.zeros(chains, bool)
        for i in range(chains[0]):
            diverging[i, list(diagnostics["divergences"][f"chain {i}"])] = True
        stats["diverging"] = diverging
    if "acceptance rate" in diagnostics:
        attrs["acceptance_rate"] = float(np.mean(list(diagnostics["acceptance rate"].values())))
    step_size = getattr(mcmc.kernel, "step_size", None)
    if chains[0] == 1 and step_size is not None:
        stats["step_size"] = np.full(chains, float(step_size))
    return stats


def _cell_log_weights(
    pair: Pair, drawn: GuideDraws
) -> tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]:
    """By name, (chain, draw, *plates), and the plates; none where cells are not independent."""
    structure, particles = drawn.structure, drawn.particles
    layout = lay_out(structure, "auto")
    if not any(layout.cells.values()) or pair.once(probe).touching(layout) is not None:
        return {}, {}
    num = particles.num_outer
    stack = Stack(1, num, structure.max_plate_nesting, drawn.vectorize)
    blocks = sort(particles.runs, structure, layout, stack, {}).cells
    arrays, dims = {}, {}
    for block in blocks:
        plates = sorted(block.plates, key=lambda plate: block.plates[plate])
        name = "cell_log_weight" if len(blocks) == 1 else f"cell_log_weight_{'_'.join(plates)}"
        log_weights = block.log_weights.expand(1, num, *block.log_weights.shape[2:])
        sizes = [log_weights.shape[block.plates[plate]] for plate in plates]
        arrays[name] = _numpy(log_weights).reshape(1, num, *sizes)
        dims[name] = tuple(plates)
    return arrays, dims


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
