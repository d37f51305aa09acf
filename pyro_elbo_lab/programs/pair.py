"""A model and a guide that are run together."""

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_elbo_lab.programs.inventory import Inventory, inventory
from pyro_elbo_lab.programs.state import module_of, random_states_kept, store_holding, store_state

__all__ = ["Programs", "run_both", "set_up", "training_programs"]

Program = Callable[..., Any]


@dataclass(frozen=True)
class Programs:
    """A model and a guide with their arguments.

    Attributes:
        model: a Pyro model.
        guide: a Pyro guide.
        run: runs both once.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    run: Callable[[], Any]

    def inventory(self) -> Inventory:
        """What they have; random states, buffers and gradients are as before."""
        with random_states_kept(), torch.no_grad():
            return inventory(self.run, guide=self.guide, model=self.model)


def set_up(guide: Program, args: tuple, kwargs: Mapping[str, Any]) -> None:
    """Let a guide module create its parameters out of sight of the param store's modules.

    Args:
        guide: a Pyro guide.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    module = module_of(guide)
    if not isinstance(module, PyroModule):
        return
    params, constraints = store_state()
    own = f"{module._pyro_name}."
    free = {
        name: leaf
        for name, leaf in params.items()
        if not isinstance(leaf, nn.Parameter) and not name.startswith(own)
    }
    with torch.no_grad(), store_holding(free, {name: constraints[name] for name in free}):
        inventory(lambda: guide(*args, **kwargs), guide=guide)


def run_both(
    model: Program, guide: Program, args: tuple, kwargs: Mapping[str, Any]
) -> tuple[poutine.Trace, poutine.Trace]:
    """Run a guide, and the model on its draws.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.

    Returns:
        The traces of model and guide.
    """
    guided = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guided)
    return poutine.trace(replayed).get_trace(*args, **kwargs), guided


def training_programs(
    objective: ELBO, model: Program, guide: Program, args: tuple, kwargs: Mapping[str, Any]
) -> Programs:
    """Model and guide, run as the objective runs them, which may have parameters of its own.

    Args:
        objective: the loss.
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
    """

    def run() -> None:
        run_both(model, guide, args, kwargs)
        with suppress(NotImplementedError):  # a loss with gradients only
            copy.copy(objective).loss(model, guide, *args, **kwargs)

    return Programs(model, guide, run)
