"""Checks of what `fit` is given, before any work is done."""

import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_elbo_lab.programs.arguments import choice, integer, number
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.state import random_states_kept

__all__ = [
    "blaming_data",
    "check_call",
    "check_objective",
    "check_program",
    "check_settings",
    "check_sites",
    "warn_of_mixed_dtypes",
]

Program = Callable[..., Any]

_LARGEST_SEED = 2**32 - 1

_BELONGS = {
    "pyro.optim.ClippedAdam({'lr': 0.01}) as optimizer=": ("lr", "learning_rate", "optim", "opt"),
    "num_steps=": ("steps", "n_steps", "num_iterations", "n_iter", "epochs", "num_epochs"),
    "objective=": ("loss", "elbo"),
    "an argument of the objective, as in StandardELBO(num_particles=10),": ("num_particles",),
    "callbacks=[...]": ("callback",),
    "batches=": ("batch", "loader", "dataloader"),
}


def check_program(what: str, program: Any) -> None:
    """Check that a model or guide can be called.

    Args:
        what: "model" or "guide".
        program: what was given for it.

    Raises:
        TypeError: it cannot, or is a class.
    """
    if isinstance(program, type):
        example = f"{program.__name__}(model)" if what == "guide" else f"{program.__name__}(...)"
        raise TypeError(
            f"{what} is the class {program.__name__}, expected a function or an instance: pass "
            f"{example}."
        )
    if not callable(program):
        raise TypeError(
            f"{what} must be a function with Pyro's sample statements, or a PyroModule, got "
            f"{_shown(program)}."
        )


def check_objective(objective: Any) -> None:
    """Check that an objective is one.

    Raises:
        TypeError: it is not.
    """
    if isinstance(objective, ELBO) and not isinstance(objective, type):
        return
    hint = "pass an instance, such as StandardELBO()"
    if callable(objective):
        name = getattr(objective, "__name__", type(objective).__name__)
        hint = f"call it: pass {name}()" if name[:1].isupper() else hint
    raise TypeError(f"objective must be a loss of Pyro's kind, got {_shown(objective)}: {hint}.")


def check_settings(
    optimizer: Any,
    num_steps: Any,
    compile: Any,
    callbacks: Any,
    average: Any,
    seed: Any,
    progress: Any,
) -> None:
    """Check the arguments of `fit` that are no programs and no data.

    Raises:
        TypeError: something of another kind.
        ValueError: something out of its range.
    """
    integer("num_steps", num_steps, least=1)
    choice("compile", compile, (True, False, "auto"))
    choice("progress", progress, (True, False))
    number("average", average, "a share of the steps, from 0 to 1", least=0, most=1)
    if integer("seed", seed, least=0) > _LARGEST_SEED:
        raise ValueError(f"seed must be at most {_LARGEST_SEED}, which is numpy's limit: {seed}.")
    if isinstance(callbacks, str) or not isinstance(callbacks, Sequence):
        raise TypeError(
            f"callbacks must be a list of functions of the step and the loss, got "
            f"{_shown(callbacks)}: pass callbacks=[...]."
        )
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(
                "callbacks must be functions of the step and the loss, but one of them is "
                f"{_shown(callback)}."
            )
    if optimizer is not None and not isinstance(optimizer, PyroOptim):
        _refuse_optimizer(optimizer)


def _refuse_optimizer(optimizer: Any) -> None:
    kind = optimizer if isinstance(optimizer, type) else type(optimizer)
    name = kind.__name__
    hint = "pass pyro.optim.Adam({'lr': 0.01}), for example"
    if issubclass(kind, torch.optim.Optimizer):
        rate = "0.01" if kind is optimizer else repr(optimizer.defaults.get("lr", 0.01))
        hint = f"PyTorch's has to be Pyro's: pass pyro.optim.{name}({{'lr': {rate}}})"
    elif callable(optimizer):
        hint = f"call it: pass {getattr(optimizer, '__name__', name)}({{'lr': 0.01}})"
    raise TypeError(f"optimizer must be one of pyro.optim, got {_shown(optimizer)}: {hint}.")


def check_call(
    what: str, program: Program, args: tuple, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Check that a program takes the arguments that it will be called with.

    Args:
        what: "model" or "guide".
        program: it.
        args: positional arguments.
        kwargs: keyword arguments.

    Returns:
        The arguments by the names that the program gives them.

    Raises:
        TypeError: it does not.
    """
    function = program.forward if isinstance(program, nn.Module) else program
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return dict(kwargs)
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        hints = [
            f" '{name}' belongs in {place}" + ("" if place.endswith(",") else ".")
            for name in kwargs.keys() - signature.parameters.keys()
            for place, names in _BELONGS.items()
            if name in names
        ]
        given = f"{len(args)} positional arguments and the keywords {sorted(kwargs)}"
        raise TypeError(
            f"The {what} does not take the arguments that are passed on to model and guide: "
            f"{error}. It was given {given}; it takes {signature}.{''.join(hints)}"
        ) from None


@contextmanager
def blaming_data(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block an error of a program names what is wrong with its data.

    Args:
        arguments: of the program, by name.

    Raises:
        ValueError: NaN or infinite numbers, or no data at all.
        TypeError: complex numbers.
    """
    try:
        yield
    except ZeroDivisionError as error:
        plate = _empty_plate(error)
        if not plate:
            raise
        raise ValueError(
            f"Plate '{plate}' has size 0: there are no data. Pass at least one row."
        ) from error
    except Exception as error:
        for name, value in _tensors(arguments):
            if value.is_complex():
                raise TypeError(_complex(f"Argument '{name}'", value)) from error
            if found := _not_finite(value):
                raise ValueError(
                    f"Argument '{name}' has {found}, and model or guide fail on it: {error} "
                    "Remove or replace these rows."
                ) from error
        raise


def _empty_plate(error: ZeroDivisionError) -> str:
    """The name of the plate that Pyro refuses as it has size 0; Pyro does not say it."""
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((str(x["name"]) for x in frames if x.get("size") == 0 and x.get("name")), "")


def check_sites(
    model: poutine.Trace, guide: poutine.Trace, arguments: Mapping[str, Any], leaves: Sequence[Any]
) -> None:
    """Check a first run of guide and model.

    Args:
        model: its trace.
        guide: the guide's.
        arguments: of the model, by name.
        leaves: the unconstrained parameters that they read.

    Raises:
        TypeError: complex numbers at a site; a guide that returns a guide.
        ValueError: no data; a site whose data are not finite and give no density; a guide without
            sites.
    """
    _check_guide(model, guide)
    observed = {name: site for name, site in _sites(model) if site["is_observed"]}
    for name, site in _sites(model):
        if isinstance(site["value"], Tensor) and site["value"].is_complex():
            raise TypeError(_complex(f"Site '{name}'", site["value"]))
    data = {n: s["value"] for n, s in observed.items() if isinstance(s["value"], Tensor)}
    empty = [  # but for pyro.factor, whose value never has an element
        name
        for name, value in data.items()
        if value.numel() == 0 and not isinstance(observed[name]["fn"], Unit)
    ]
    if empty and len(empty) == len(data):
        raise ValueError(
            f"Site '{empty[0]}' observes a tensor of shape {tuple(data[empty[0]].shape)}: there "
            "are no data. Pass at least one row."
        )
    broken = any(_not_finite(x) for x in data.values())
    broken = broken or any(_not_finite(x) for _, x in _tensors(arguments))
    for name, site in observed.items() if broken else ():
        _check_density(name, site, [leaf for leaf in leaves if leaf.requires_grad])


def _check_guide(model: poutine.Trace, guide: poutine.Trace) -> None:
    drawn = dict(_sites(guide))
    latent = [
        name
        for name, site in _sites(model)
        if not site["is_observed"] and not site["infer"].get("enumerate") and name not in drawn
    ]
    if drawn or not latent:
        return
    returned = guide.nodes["_RETURN"]["value"]
    if callable(returned):
        raise TypeError(
            f"guide draws no site but returned a {type(returned).__name__}: it makes a guide and "
            "is none itself. Call it first, and pass what it returns."
        )
    raise ValueError(
        f"guide has no sample sites, but the model has the latent site '{latent[0]}': expected a "
        "guide that draws the model's latents, such as pyro.infer.autoguide.AutoNormal(model)."
    )


def _check_density(name: str, site: Mapping[str, Any], leaves: list[Tensor]) -> None:
    """That data which are not finite have a finite density, and finite gradients."""
    found = _not_finite(site["value"])
    where = f"Site '{name}' observes {found}" if found else f"Site '{name}' depends on such data"
    advice = "Remove these rows; a masked element too has to be some number."
    try:
        log_prob = site["fn"].log_prob(site["value"])
        if isinstance(site["mask"], Tensor):
            log_prob = torch.where(site["mask"], log_prob, 0.0)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).splitlines()[0]} {advice}") from error
    if site["mask"] is False:
        return
    gradients: Sequence[Tensor | None] = ()
    if log_prob.requires_grad and leaves:
        gradients = torch.autograd.grad(
            log_prob.sum(), leaves, allow_unused=True, retain_graph=True
        )
    results = [log_prob, *[gradient for gradient in gradients if gradient is not None]]
    if any(_not_finite(result) for result in results):
        raise ValueError(
            f"{where}: its log-density, or the gradient of it, is not finite at the first draw. "
            f"{advice}"
        )


def warn_of_mixed_dtypes(model: poutine.Trace) -> None:
    """Warn, naming a site of each, when a model's sites have more than one floating-point type.

    Args:
        model: its trace.
    """
    examples: dict[torch.dtype, str] = {}
    for name, site in _sites(model):
        value = site["value"] if site["is_observed"] else _own_draw(site)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            examples.setdefault(value.dtype, name)
    if len(examples) > 1:
        found = ", ".join(f"'{name}' is {dtype}" for dtype, name in examples.items())
        warn(
            f"The model mixes floating-point types: {found}. Python floats as arguments of a "
            "distribution give samples of torch's default dtype; build them from the data's dtype "
            "instead, as in dist.Normal(y.new_zeros(()), 1)."
        )


def _own_draw(site: Mapping[str, Any]) -> Any:
    """As the model would draw it, without the guide."""
    with random_states_kept(), torch.no_grad(), suppress(NotImplementedError):  # improper
        return site["fn"].sample()


def _sites(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield name, site


def _tensors(arguments: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors among arguments, with names such as `data['x'][0]`."""
    if isinstance(arguments, Tensor):
        yield name, arguments
    elif isinstance(arguments, Mapping):
        for key, value in arguments.items():
            yield from _tensors(value, f"{name}[{key!r}]" if name else str(key))
    elif isinstance(arguments, tuple | list):
        for i, value in enumerate(arguments):
            yield from _tensors(value, f"{name}[{i}]")


def _not_finite(value: Any) -> str:
    """How many elements of a tensor are NaN or infinite; empty if none is."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return ""
    nan, inf = int(value.isnan().sum()), int(value.isinf().sum())
    counts = [f"{nan} NaN"] * bool(nan) + [f"{inf} infinite numbers"] * bool(inf)
    return f"{' and '.join(counts)} among its {value.numel()} elements" if counts else ""


def _complex(where: str, value: Tensor) -> str:
    return (
        f"{where} is {value.dtype}, expected real numbers: pass real and imaginary parts, as "
        "torch.view_as_real gives them."
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"a {type(value).__name__}"
