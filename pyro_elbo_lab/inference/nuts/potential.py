"""A model's log posterior density as a function of one flat, unconstrained, float64 vector.

`prepare` runs the model and refuses what NUTS would sample wrongly; `logp_and_gradient` is what
a sampler calls, tens of thousands of times; `constrain` turns its draws back into values of the
model's sites. The density itself is Pyro's own (`pyro.infer.mcmc.util.initialize_model`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import ImproperUniform
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.mcmc.util import initialize_model
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_elbo_lab.programs.dims import refuse_complex
from pyro_elbo_lab.programs.precision import InFloat64, to_float64
from pyro_elbo_lab.programs.replay import Replay, deterministics
from pyro_elbo_lab.programs.structure.runs import naming_empty_plates

__all__ = [
    "Potential",
    "constrain",
    "isolated",
    "logp_and_gradient",
    "prepare",
    "starting_point",
]

Program = Callable[..., Any]
Site = dict[str, Any]

START_RADIUS = 2.0
"""Chains start uniformly within this distance of 0 in unconstrained space, as in Stan and Pyro."""

_ATTEMPTS = 100
_POINTS_CHECKED = 10


@dataclass(frozen=True)
class Potential:
    """A model's negative log density in unconstrained space, Jacobians included.

    Attributes:
        model: the model with its arguments bound, parameters fixed, all in float64.
        energy: from unconstrained values by site to the negative log density, a scalar.
        transforms: by site, from constrained to unconstrained values.
        shapes: by site, of the unconstrained values; the order of the flat vector.
        device: of the latents.
        trace: one run of the model.
        enumerated: names of the discrete latents, which are summed out.
        has_float32: whether the model keeps tensors that are not float64.
    """

    model: Program
    energy: Callable[[dict[str, Tensor]], Tensor]
    transforms: Mapping[str, Any]
    shapes: Mapping[str, torch.Size]
    device: torch.device
    trace: poutine.Trace
    enumerated: tuple[str, ...]
    has_float32: bool = False

    @property
    def size(self) -> int:
        """The length of the flat vector."""
        return sum(shape.numel() for shape in self.shapes.values())

    def by_site(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of the flat vector, shape (..., size), one a site: (..., *shape of the site)."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return {
            name: part.reshape(flat.shape[:-1] + shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }


@contextmanager
def isolated() -> Iterator[None]:
    """Inside the block float64 is torch's default (Python floats become float64 tensors), draws and
    operations are float64, handlers around it see nothing, and what happens to the param store is
    undone."""
    default, store = torch.get_default_dtype(), pyro.get_param_store()
    try:
        with poutine.block(), store.scope(store.get_state()), _DrawsInFloat64(), InFloat64():
            torch.set_default_dtype(torch.float64)
            yield
    finally:
        torch.set_default_dtype(default)


def prepare(model: Program, args: tuple, kwargs: Mapping[str, Any]) -> Potential:
    """The posterior density of a model, checked to be one that NUTS can sample.

    Call it within `isolated()`. Tensors among the arguments, also inside tuples, lists
    and dicts, become float64; `pyro.param` values become float64 and fixed. Float32 tensors that
    the model keeps to itself take part as float64 copies.

    Raises:
        ValueError: no continuous latents; a latent without a density NUTS can use (an improper
            prior, unbounded discrete values, a support that depends on other latents); a
            subsampled plate; a model that is random beyond its latents; no finite density found.
        TypeError: the model writes to a float32 tensor that it keeps.
    """
    args, kwargs = to_float64(args), to_float64(dict(kwargs))
    fixed = _FixedParams()(model)

    def bound() -> Any:
        return fixed(*args, **kwargs)

    # Draws from a wide prior may be invalid parameters of the next site: the checks come later.
    with pyro.validation_enabled(False), _explaining_dtypes(), InFloat64() as widening:
        trace = _first_run(bound)
        latents = _latents(trace)
        _check_sites(trace, latents)
        _, energy, transforms, enumerated_trace = initialize_model(
            bound,
            max_plate_nesting=_plate_nesting(trace),
            init_strategy=init_to_value(values={n: s["value"] for n, s in latents.items()}),
            initial_params={},
        )
    _check_not_downstream_of_discrete(trace, enumerated_trace, transforms)
    values = {name: trace.nodes[name]["value"] for name in transforms}
    potential = Potential(
        model=bound,
        energy=energy,
        transforms=transforms,
        shapes={name: transforms[name](value).shape for name, value in values.items()},
        device=next(iter(values.values())).device,
        trace=trace,
        enumerated=tuple(name for name in latents if name not in transforms),
    )
    with _explaining_dtypes(), InFloat64():
        _check_behavior(potential)
    return replace(potential, has_float32=widening.found is not None)


def logp_and_gradient(
    potential: Potential,
) -> Callable[[np.ndarray], tuple[float, np.ndarray]]:
    """The function a sampler calls: flat vector -> log density in nats and its gradient.

    A density that cannot be evaluated because a matrix is singular there counts as NaN.

    Args:
        potential: what `prepare` returned.

    Returns:
        A function of a float64 array of shape (size,), which returns a float and an array of that
        shape. Pyro's handlers are global: it must not run in two threads at once.
    """

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray]:
        flat = torch.tensor(x, dtype=torch.float64, device=potential.device, requires_grad=True)
        widening = InFloat64() if potential.has_float32 else nullcontext()  # threads have none
        try:
            with widening:
                energy = potential.energy(potential.by_site(flat))
            (gradient,) = torch.autograd.grad(energy, flat)
        except torch.linalg.LinAlgError:
            return float("nan"), np.zeros_like(x)
        return -energy.item(), -gradient.cpu().numpy()

    return evaluate


def starting_point(potential: Potential, seed: int) -> np.ndarray:
    """A random start for one chain, shape (size,), with a finite density and a gradient that is
    finite and nowhere 0.

    Raises:
        ValueError: none was found in 100 attempts; the message names the sites responsible.
    """
    rng = np.random.default_rng(seed)
    evaluate = logp_and_gradient(potential)
    with pyro.validation_enabled(False):
        for _ in range(_ATTEMPTS):
            x = rng.uniform(-START_RADIUS, START_RADIUS, potential.size)
            logp, gradient = evaluate(x)
            if np.isfinite(logp) and np.isfinite(gradient).all() and gradient.all():
                return x
        raise ValueError(_what_is_wrong(potential, x))


def constrain(potential: Potential, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Values of the latent and deterministic sites at unconstrained draws.

    Deterministic sites are replayed for many draws at once beneath an outer plate, where that
    gives what single replays give, otherwise draw by draw. They are left out where discrete
    latents are summed out, whose values they might depend on.

    Args:
        potential: what `prepare` returned.
        draws: shape (..., size).

    Returns:
        By site an array of shape (..., *shape of the site).
    """
    with torch.no_grad():
        values = _constrained(potential, draws.reshape(-1, potential.size))
    found = {name: value.cpu().numpy() for name, value in values.items()}
    extract = deterministics(potential.trace)
    if extract(potential.trace) and not potential.enumerated:
        found |= Replay(potential.model, potential.trace, values)(extract)
    return {name: x.reshape(draws.shape[:-1] + x.shape[1:]) for name, x in found.items()}


class _FixedParams(Messenger):
    """Gives a program its parameters as float64 constants."""

    def _pyro_post_param(self, msg: Site) -> None:
        msg["value"] = to_float64(msg["value"].detach())


class _DrawsInFloat64(Messenger):
    """Makes draws float64, also those from priors that were built before, as `PyroSample`'s are."""

    def _pyro_post_sample(self, msg: Site) -> None:
        if not msg["is_observed"]:
            msg["value"] = to_float64(msg["value"])


class _RefuseImproper(Messenger):
    """Names the site whose prior cannot be sampled, which Pyro needs for a start."""

    def _pyro_sample(self, msg: Site) -> None:
        fn = msg["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if isinstance(fn, ImproperUniform) and not msg["is_observed"] and msg["value"] is None:
            raise ValueError(
                f"The prior of '{msg['name']}' is ImproperUniform, from which Pyro cannot draw the "
                "shape of a start. Give it a proper distribution of the same support, masked: "
                "dist.Normal(0.0, 1.0).mask(False) is flat on the reals, "
                "dist.LogNormal(0.0, 1.0).mask(False) is flat on the positive half."
            )


def _first_run(model: Program) -> poutine.Trace:
    """A run at draws of the prior, if possible at some where no matrix is singular."""
    with _RefuseImproper(), naming_empty_plates():
        for _ in range(_ATTEMPTS):
            with suppress(torch.linalg.LinAlgError):
                return poutine.trace(model).get_trace()
        return poutine.trace(model).get_trace()


def _plate_nesting(trace: poutine.Trace) -> int:
    frames = [f for site in trace.nodes.values() for f in site.get("cond_indep_stack", ())]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


def _latents(trace: poutine.Trace) -> dict[str, Site]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    }


@contextmanager
def _explaining_dtypes() -> Iterator[None]:
    """Add to PyTorch's complaint about mixed dtypes what to do about it."""
    try:
        yield
    except RuntimeError as error:
        if "dtype" not in str(error) and "scalar type" not in str(error):
            raise
        raise TypeError(
            f"The model mixes floating-point types in a way that cannot be undone ({error}). NUTS "
            "runs in float64: build the tensors that meet in this operation from the data's dtype."
        ) from error


def _check_sites(trace: poutine.Trace, latents: Mapping[str, Site]) -> None:
    for name, site in trace.nodes.items():
        refuse_complex(name, site, "model")
        for frame in site.get("cond_indep_stack", ()):
            if frame.full_size is not None and frame.size < frame.full_size:
                raise ValueError(
                    f"Plate '{frame.name}' of site '{name}' is subsampled ({frame.size} of "
                    f"{frame.full_size}), but NUTS needs the full data's density: run it on the "
                    "model without subsample_size= or subsample=."
                )
    for name, site in latents.items():
        if site["fn"].support.is_discrete and not site["fn"].has_enumerate_support:
            raise ValueError(
                f"Latent site '{name}' is discrete ({type(site['fn']).__name__}) and its values "
                "cannot be enumerated. NUTS samples continuous latents only: sum it out by hand, "
                "or approximate it by a continuous one."
            )
    if all(site["fn"].support.is_discrete for site in latents.values()):
        raise ValueError(
            f"The model has no continuous latent site to sample: it has "
            f"{sorted(latents) or 'no latent sites'}. Sample without obs= what is to be inferred."
        )


def _check_not_downstream_of_discrete(
    trace: poutine.Trace, enumerated_trace: poutine.Trace, continuous: Iterable[str]
) -> None:
    for name in continuous:
        if trace.nodes[name]["fn"].shape() != enumerated_trace.nodes[name]["fn"].shape():
            raise ValueError(
                f"Continuous latent site '{name}' depends on a discrete latent, which Pyro's NUTS "
                "cannot sum out. Use a mixture distribution such as dist.MixtureSameFamily for it."
            )


def _check_behavior(potential: Potential) -> None:
    """Run the model at several points: the density must be one function of the same latents."""
    zero = potential.by_site(torch.zeros(potential.size, device=potential.device))
    with pyro.validation_enabled(False):
        for seed in range(_POINTS_CHECKED):
            x = np.random.default_rng(seed).uniform(-START_RADIUS, START_RADIUS, potential.size)
            with suppress(torch.linalg.LinAlgError):  # as in logp_and_gradient
                _check_structure(potential, _run_at(potential, x), zero)
    evaluate, x = logp_and_gradient(potential), starting_point(potential, 0)
    _run_at(potential, x).compute_log_prob()  # if validation is on, refuses impossible data
    first, again = evaluate(x)[0], evaluate(x)[0]
    if not np.isclose(first, again, rtol=1e-9, atol=1e-9):
        raise ValueError(
            f"The model's log density at one point was {first:.10g} and then {again:.10g}: the "
            "model is random beyond its latent sites. Sample what is random with pyro.sample, and "
            "put modules with dropout in eval mode."
        )


def _check_structure(
    potential: Potential, trace: poutine.Trace, zero: Mapping[str, Tensor]
) -> None:
    missing = potential.shapes.keys() - trace.nodes.keys()
    if changed := missing | (_latents(trace).keys() - {*potential.enumerated}):
        raise ValueError(
            f"Latent sites {sorted(changed)} are sampled in some runs of the model and not in "
            "others; NUTS needs the same latent sites in every run."
        )
    for name, transform in potential.transforms.items():
        now = biject_to(trace.nodes[name]["fn"].support)(zero[name])
        if not torch.allclose(now, transform.inv(zero[name])):
            raise ValueError(
                f"The support of '{name}' depends on other latents, which Pyro's NUTS gets wrong. "
                "Sample on a fixed support and transform: dist.Uniform(0, 1) times the upper end "
                "instead of dist.Uniform(0, end)."
            )


def _what_is_wrong(potential: Potential, x: np.ndarray) -> str:
    trace = _run_at(potential, x)
    trace.compute_log_prob()
    culprits = []
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not torch.isfinite(site["log_prob_sum"]):
            value = "NaN among its values" if _has_nan(site["value"]) else "no NaN in its values"
            culprits.append(f"'{name}' has log density {float(site['log_prob_sum']):g} ({value})")
    gradient = potential.by_site(torch.from_numpy(logp_and_gradient(potential)(x)[1]))
    for name in gradient if not culprits else ():
        if not gradient[name].isfinite().all() or not gradient[name].all():
            culprits.append(f"the gradient in '{name}' is {gradient[name].tolist()}")
    return (
        f"No start with a finite log density and gradient in {_ATTEMPTS} attempts. At one of them "
        f"{'; '.join(culprits)}. Look for NaN in the data, values outside a distribution's "
        "support, parameters that overflow, and latents with a flat prior that nothing depends on."
    )


def _has_nan(value: Any) -> bool:
    return isinstance(value, Tensor) and bool(torch.isnan(value).any())


def _run_at(potential: Potential, x: np.ndarray) -> poutine.Trace:
    with torch.no_grad():
        return _conditioned(potential.model, _constrained(potential, x))


def _constrained(potential: Potential, draws: np.ndarray) -> dict[str, Tensor]:
    """Latents at unconstrained draws of shape (..., size), by site: (..., *shape of the site)."""
    unconstrained = potential.by_site(torch.tensor(draws, device=potential.device))
    return {name: potential.transforms[name].inv(value) for name, value in unconstrained.items()}


def _conditioned(model: Program, values: Mapping[str, Tensor]) -> poutine.Trace:
    return poutine.trace(poutine.condition(model, dict(values))).get_trace()
