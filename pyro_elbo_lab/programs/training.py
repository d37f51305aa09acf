"""A model and a guide as they are trained: what they have, and a first run."""

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.nn import PyroModule
from torch import nn

from pyro_elbo_lab.programs.inventory import Inventory, inventory
from pyro_elbo_lab.programs.pair import Pair, traced
from pyro_elbo_lab.programs.state import module_of, random_states_kept, store_holding, store_state

__all__ = ["Programs", "run_both", "set_up", "training_programs"]


@dataclass(frozen=True)
class Programs:
    """A model and a guide, and how they are run.

    Attributes:
        pair: model and guide with their arguments.
        run: runs both once.
    """

    pair: Pair
    run: Callable[[], Any]

    def inventory(self) -> Inventory:
        """What they have; random states, buffers and gradients are as before."""
        with random_states_kept(), torch.no_grad():
            return inventory(self.run, guide=self.pair.guide, model=self.pair.model)


def set_up(pair: Pair) -> None:
    """Let a guide module create its parameters out of sight of the param store's modules.

    Args:
        pair: model and guide with their arguments.
    """
    module = module_of(pair.guide)
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
        inventory(lambda: pair.guide(*pair.args, **pair.kwargs), guide=pair.guide)


def run_both(pair: Pair) -> tuple[poutine.Trace, poutine.Trace]:
    """Run a guide, and the model on its draws.

    Args:
        pair: model and guide with their arguments.

    Returns:
        The traces of model and guide.
    """
    guided = traced(pair.guide, pair)
    return traced(poutine.replay(pair.model, trace=guided), pair), guided


def training_programs(objective: ELBO, pair: Pair) -> Programs:
    """Model and guide, run as the objective runs them, which may have parameters of its own.

    Args:
        objective: the loss.
        pair: model and guide with their arguments.
    """

    def run() -> None:
        run_both(pair)
        with suppress(NotImplementedError):  # a loss with gradients only
            copy.copy(objective).loss(pair.model, pair.guide, *pair.args, **pair.kwargs)

    return Programs(pair, run)
