"""Objectives that plug into `pyro.infer.SVI`: a bound, a gradient estimator, a layout of plates.

`Objective` is the one adapter to `pyro.infer.ELBO`. The named objectives only choose its parts.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_elbo_lab import gradients, quasirandom
from pyro_elbo_lab.bounds import Bound, log_mean_exp, mean
from pyro_elbo_lab.explanation import Explanation, Row
from pyro_elbo_lab.gradients import GRADIENTS, Choice, Gradient
from pyro_elbo_lab.layout import Layout, joint, lay_out, linear
from pyro_elbo_lab.particles import Expectation, Particles, find_nan
from pyro_elbo_lab.quasirandom import SAMPLERS, Sampler
from pyro_elbo_lab.sampling import StructureChangedError, draw, is_vectorizable, touching_cells
from pyro_elbo_lab.structure import FactorKey, Program, Site, Structure, analyse, aside

LocalPlates = str | tuple[str, ...]


@dataclass(frozen=True)
class Route:
    """How one latent's part of the objective is evaluated.

    Attributes:
        name: for `explain`.
        reason: why not something stronger.
        expectations: what takes the place of log-densities; empty for Monte Carlo.
    """

    name: str
    reason: str = ""
    expectations: Mapping[FactorKey, Expectation] = field(default_factory=dict)


FindRoutes = Callable[[Structure, Mapping[FactorKey, Site]], Mapping[str, Route]]


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided once for a (model, guide) pair."""

    structure: Structure
    layout: Layout
    choices: Mapping[str, Choice]
    routes: Mapping[str, Route]
    sobol: quasirandom.Placement | None

    @property
    def expectations(self) -> dict[FactorKey, Expectation]:
        return {k: e for route in self.routes.values() for k, e in route.expectations.items()}

    def latents_with(self, estimator: str) -> frozenset[str]:
        return frozenset(n for n, choice in self.choices.items() if choice.estimator == estimator)


class Objective(ELBO):
    """A variational objective with Pyro's loss interface.

    Use a named constructor such as `StandardELBO`, or build a new one from a bound of your own.
    One instance serves any number of models: what it learns about a model and guide is kept for
    this pair, and learned anew when their sites change. Losses are negative values of the
    objective in nats, and gradients those of the expected loss, without bias.

    Args:
        name: for messages.
        bound: from log-weights (K, ...) to values (...), see `bounds`.
        num_inner: K, the number of particles inside the bound.
        num_outer: M, the number of independent estimates that are averaged.
        gradient: "auto", "pathwise", "doubly_reparameterized" or "score", see `gradients`.
        local_plates: "auto", names of plates, or () for joint weights, see `layout`.
        find_routes: exact expectations in place of Monte Carlo terms (linear bounds only).
        sampler: "random", or "sobol" for scrambled Sobol points in place of the guide's Gaussian
            noise, which lowers the variance of averages over many particles (powers of 2 are
            best), see `quasirandom`.
        pyro_keywords: those of `pyro.infer.ELBO`. Without `vectorize_particles=True` particles
            run one after the other.

    Raises:
        ValueError: an unknown gradient or sampler, fewer than one particle.
        TypeError: an unknown keyword.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> squared = Objective("Worst of 4", lambda log_weights: log_weights.amin(0), num_inner=4)
        >>> squared.loss(model, model)  # guide = model, so every log-weight is 0
        0.0
    """

    def __init__(
        self,
        name: str,
        bound: Bound,
        *,
        num_inner: int = 1,
        num_outer: int = 1,
        gradient: Gradient = "auto",
        local_plates: LocalPlates = "auto",
        find_routes: FindRoutes | None = None,
        sampler: Sampler = "random",
        **pyro_keywords: Any,
    ) -> None:
        for number in (num_inner, num_outer):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(
                    f"{name}: a number of particles must be an integer of at least 1, "
                    f"got {number!r}"
                )
        if gradient not in GRADIENTS:
            raise ValueError(f"{name}: gradient={gradient!r} is unknown; choose one of {GRADIENTS}")
        if sampler not in SAMPLERS:
            raise ValueError(f"{name}: sampler={sampler!r} is unknown; choose one of {SAMPLERS}")
        if find_routes and bound is not mean:
            raise ValueError(f"{name}: only a linear bound can use exact expectations")
        super().__init__(num_particles=num_inner * num_outer, **pyro_keywords)
        self.name = name
        self.bound = bound
        self.num_inner = num_inner
        self.num_outer = num_outer
        self.gradient = gradient
        self.local_plates = local_plates
        self.find_routes = find_routes
        self.sampler = sampler
        given = pyro_keywords.get("max_iarange_nesting") or pyro_keywords.get("max_plate_nesting")
        self._least_nesting = 0 if given is None or math.isinf(given) else int(given)
        self._plans: WeakKeyDictionary[Any, WeakKeyDictionary[Any, _Plan]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return (
            f"{self.name}(K={self.num_inner}, M={self.num_outer}, gradient={self.gradient!r}, "
            f"vectorize_particles={self.vectorize_particles}, sampler={self.sampler!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _plans=WeakKeyDictionary())

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss, without gradients.

        Args:
            model: a Pyro model.
            guide: a Pyro guide.
            args: positional arguments of both.
            kwargs: keyword arguments of both.

        Returns:
            The negative objective, in nats.

        Raises:
            ValueError: a NaN, with the site that has it; a guide that does not fit the model.
        """
        with torch.no_grad():
            value, particles, _ = self._evaluate(model, guide, args, kwargs)
        return self._checked(value, particles)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss; its gradients are added to the parameters' `.grad`.

        Takes, returns and raises what `loss` does.
        """
        value, particles, plan = self._evaluate(model, guide, args, kwargs)
        loss = self._checked(value, particles)
        surrogate = value + gradients.zero_mean_terms(particles, self.bound, plan.choices)
        if surrogate.requires_grad:
            (-surrogate).backward(retain_graph=self.retain_graph)
        return loss

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """An estimate of the loss as a scalar tensor that can be differentiated once.

        Takes and raises what `loss` does.
        """
        value, particles, plan = self._evaluate(model, guide, args, kwargs)
        zero_mean = gradients.zero_mean_terms(particles, self.bound, plan.choices)
        return -(value + zero_mean - zero_mean.detach())

    def explain(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Explanation:
        """Say, site by site, how this objective treats a model and guide.

        Takes and raises what `loss` does.

        Returns:
            A table to print.
        """
        plan = self._make_plan(model, guide, args, kwargs)
        rows = [self._explain_latent(plan, name) for name in plan.structure.latents]
        rows += [_explain_delta(plan, key) for key in plan.structure.reads if _is_delta(plan, key)]
        notes = plan.sobol.notes if plan.sobol else ()
        return Explanation(repr(self), tuple(rows), (f"plates: {plan.layout.reason}", *notes))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("particles are drawn by pyro_elbo_lab.sampling.draw")

    def _evaluate(
        self, model: Program, guide: Program, args: tuple, kwargs: dict
    ) -> tuple[Tensor, Particles, _Plan]:
        known = self._recall(model, guide)
        plan = known or self._make_plan(model, guide, args, kwargs)
        try:
            particles = self._draw(plan, model, guide, args, kwargs)
        except StructureChangedError:
            plan = self._make_plan(model, guide, args, kwargs)
            if known and plan.structure.signature == known.structure.signature:
                raise ValueError(_RANDOM_STRUCTURE) from None
            try:
                particles = self._draw(plan, model, guide, args, kwargs)
            except StructureChangedError:
                raise ValueError(_RANDOM_STRUCTURE) from None
        return gradients.value(particles, self.bound), particles, plan

    def _draw(
        self, plan: _Plan, model: Program, guide: Program, args: tuple, kwargs: dict
    ) -> Particles:
        return draw(
            model,
            guide,
            args,
            kwargs,
            structure=plan.structure,
            layout=plan.layout,
            num_inner=self.num_inner,
            num_outer=self.num_outer,
            vectorize=self.vectorize_particles,
            max_plate_nesting=self._least_nesting,
            detached=plan.latents_with("score"),
            refreshed=plan.latents_with("doubly_reparameterized") & plan.layout.local,
            expectations=plan.expectations,
            sobol=plan.sobol,
        )

    def _recall(self, model: Program, guide: Program) -> _Plan | None:
        try:
            return self._plans.get(model, WeakKeyDictionary()).get(guide)
        except TypeError:  # not weakly referable: planned anew every time
            return None

    def _make_plan(self, model: Program, guide: Program, args: tuple, kwargs: dict) -> _Plan:
        structure, sites = analyse(model, guide, args, kwargs)
        self._warn_of_mixed_particles(structure, model, guide, args, kwargs)
        layout = self._lay_out(structure, model, guide, args, kwargs)
        choices = gradients.choose(structure, layout, self.gradient)
        sobol = None
        if self.sampler == "sobol":
            numbers = self.num_inner, self.num_outer
            program = model, guide, args, kwargs
            sobol = quasirandom.place(structure, layout, choices, *numbers, program)
        routes = self.find_routes(structure, sites) if self.find_routes else {}
        for name, route in routes.items():
            if route.expectations and choices[name].estimator == "doubly_reparameterized":
                choices[name] = Choice("pathwise", "log q is averaged exactly")
        plan = _Plan(structure, layout, choices, routes, sobol)
        with suppress(TypeError):  # not weakly referable: planned anew every time
            self._plans.setdefault(model, WeakKeyDictionary())[guide] = plan
        return plan

    def _lay_out(
        self, structure: Structure, model: Program, guide: Program, args: tuple, kwargs: dict
    ) -> Layout:
        if self._is_linear():
            return linear()
        layout = lay_out(structure, self.local_plates)
        if not any(layout.cells.values()):
            return layout
        with aside(), torch.enable_grad():
            particles = draw(
                model, guide, args, kwargs, structure=structure, layout=layout, leaves=True
            )
            name = touching_cells(particles)
        if name is None:
            return layout
        found = f"the log-weights of other cells depend on latent '{name}' ({layout.reason})"
        if self.local_plates != "auto":
            raise ValueError(
                f"local_plates={self.local_plates!r}: {found}. Leave the plate out of "
                "local_plates, or pass local_plates=() for joint weights."
            )
        warnings.warn(f"{self.name} uses joint weights: {found}.", stacklevel=5)
        return joint(structure, found)

    def _is_linear(self) -> bool:
        if self.bound is mean:
            return True
        probe = torch.tensor([[-1.5, 2.0]])
        return self.num_inner == 1 and torch.allclose(self.bound(probe), probe[0])

    def _warn_of_mixed_particles(
        self, structure: Structure, model: Program, guide: Program, args: tuple, kwargs: dict
    ) -> None:
        if not self.vectorize_particles or self.num_inner * self.num_outer == 1:
            return
        if not all(latent.evaluable for latent in structure.latents.values()):
            return
        if not is_vectorizable(model, guide, args, kwargs):
            warnings.warn(
                f"{self.name}: vectorized particles do not score as they do one by one. Either "
                "model or guide mixes dimensions (index them from the right, and declare batch "
                "dimensions with pyro.plate), or it draws random numbers outside of pyro.sample. "
                "vectorize_particles=False is always right.",
                stacklevel=6,
            )

    def _checked(self, value: Tensor, particles: Particles) -> float:
        loss = -value.item()
        if math.isnan(loss):
            found = find_nan(particles) or "infinite log-densities of opposite signs cancel"
            raise ValueError(
                f"The loss of {self.name} is NaN: {found}. Check the data for NaN, the parameters "
                "for a learning rate that is too large, and the guide's support."
            )
        if math.isinf(loss):
            warnings.warn(f"The loss of {self.name} is {loss}.", stacklevel=3)
        return loss

    def _explain_latent(self, plan: _Plan, name: str) -> Row:
        latent, choice = plan.structure.latents[name], plan.choices[name]
        cells = plan.layout.cells.get(FactorKey("guide", name))
        place = "shared"
        if cells is not None and name in plan.layout.local:
            place = f"cells of {', '.join(sorted(cells))}" if cells else "joint weight"
        route = plan.routes.get(name, Route("Monte Carlo"))
        return Row(
            site=name,
            distribution=latent.distribution,
            drawn="reparameterized" if latent.reparameterized else "not reparameterized",
            place=place,
            gradient=choice.estimator.replace("_", " "),
            kl=route.name,
            why="; ".join(filter(None, (choice.reason, route.reason))),
        )


def _is_delta(plan: _Plan, key: FactorKey) -> bool:
    in_model = FactorKey("model", key.name) in plan.structure.reads
    return key.side == "guide" and in_model and key.name not in plan.structure.latents


def _explain_delta(plan: _Plan, key: FactorKey) -> Row:
    sources = ", ".join(sorted(plan.structure.reads[key])) or "parameters only"
    return Row(key.name, "Delta", "-", "-", "pathwise", "Monte Carlo", f"a function of {sources}")


_RANDOM_STRUCTURE = (
    "The sites of model and guide, or their plates, differ from run to run on the same arguments. "
    "Objectives need the same sites at every run: give every branch the same sample sites "
    "(poutine.mask switches one off), or use pyro.infer.Trace_ELBO."
)


def StandardELBO(
    num_particles: int = 1, gradient: Gradient = "auto", **pyro_keywords: Any
) -> Objective:
    """The evidence lower bound, E_q[log p(x, z) - log q(z)].

    The workhorse: its maximum is the guide closest to the posterior in KL(q || p). The default
    gradient sticks the landing: its noise vanishes as the guide approaches the posterior. While the
    guide is much narrower than the posterior its noise is larger than that of "pathwise" (on eight
    schools, 100 steps after autoguides' initial scale of 0.1, 180 times the variance): start from a
    wider guide (`init_scale=0.5`), use a few particles, or begin with "pathwise".

    Args:
        num_particles: draws that are averaged, at least 1.
        gradient: "auto", "pathwise", "doubly_reparameterized" or "score".
        pyro_keywords: those of `pyro.infer.ELBO`, such as `vectorize_particles`.

    Returns:
        A loss for `pyro.infer.SVI`.

    Raises:
        ValueError: fewer than one particle, an unknown gradient.

    References:
        Jordan, Ghahramani, Jaakkola and Saul (1999), An introduction to variational methods
        for graphical models; Roeder, Wu and Duvenaud (2017), Sticking the landing.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        >>> def guide():  # the exact posterior: every draw gives log p(x) = log N(1 | 0, 2)
        ...     pyro.sample("z", dist.Normal(0.5, 0.5**0.5))
        >>> round(StandardELBO().loss(model, guide), 4)
        1.5155
    """
    return Objective(
        "StandardELBO", mean, num_outer=num_particles, gradient=gradient, **pyro_keywords
    )


def ImportanceWeightedELBO(
    num_particles: int,
    num_outer_particles: int = 1,
    gradient: Gradient = "auto",
    local_plates: LocalPlates = "auto",
    **pyro_keywords: Any,
) -> Objective:
    """The importance-weighted bound, E[log mean_k p(x, z_k) / q(z_k)] with K particles.

    It lies between the ELBO and log p(x) and rises with K. Latents of a plate that nothing outside
    depends on get weights of their own in every cell of the plate, and all K particles share the
    global latents; this keeps the bound tight as data grows, and right under subsampling, whose
    scale stands outside the logarithm. With global latents only, the weights are joint.

    Args:
        num_particles: K, at least 1.
        num_outer_particles: M independent estimates that are averaged (MIWAE, Rainforth et al.).
        gradient: "auto", "pathwise", "doubly_reparameterized" or "score".
        local_plates: "auto", a tuple of plate names, or () for joint weights.
        pyro_keywords: those of `pyro.infer.ELBO`, such as `vectorize_particles`.

    Returns:
        A loss for `pyro.infer.SVI`.

    Raises:
        ValueError: fewer than one particle, an unknown gradient; when used, local plates whose
            latents are read outside, or a subsampled plate inside the logarithm.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders; Tucker, Lawson,
        Gu and Maddison (2019), Doubly reparameterized gradient estimators; Rainforth et al.
        (2018), Tighter variational bounds are not necessarily better.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model():
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
        >>> def guide():  # too wide; -log p(x) = 1.5155
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> pyro.set_rng_seed(0)
        >>> loss = ImportanceWeightedELBO(num_particles=100000, vectorize_particles=True)
        >>> round(loss.loss(model, guide), 2)
        1.52
    """
    return Objective(
        "ImportanceWeightedELBO",
        log_mean_exp,
        num_inner=num_particles,
        num_outer=num_outer_particles,
        gradient=gradient,
        local_plates=local_plates,
        **pyro_keywords,
    )
