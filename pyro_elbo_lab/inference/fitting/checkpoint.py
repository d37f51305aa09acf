"""Where a fit stood, to go back to."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor
from torch.utils._pytree import tree_map_only

from pyro_elbo_lab.inference.fitting.update_rules import load_state, state_of

__all__ = ["Checkpoint"]


class Checkpoint:
    """Parameters, optimizer, schedule of the KL weight and PyTorch's random state of a fit.

    Args:
        taken: the steps so far.
        leaves: the unconstrained parameters, and what else every run writes to.
        optimizer: which holds the state of that moment.
        objective: the loss.
        means: averages of parameters.

    Attributes:
        taken: the steps so far.
        means: averages of parameters.
    """

    def __init__(
        self,
        taken: int,
        leaves: Sequence[Tensor],
        optimizer: PyroOptim,
        objective: ELBO,
        means: Mapping[str, Tensor],
    ) -> None:
        self.taken = taken
        self.means = {name: mean.clone() for name, mean in means.items()}
        self._leaves = [(leaf, leaf.detach().clone()) for leaf in leaves]
        held = optimizer.optim_objs.values()
        self._held = [(one, _copy(state_of(one))) for one in held]
        self._objective = objective
        self._gradients = getattr(objective, "num_gradients", None)
        self._random = torch.get_rng_state()
        self._on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        """Everything is as it was."""
        with torch.no_grad():
            for leaf, value in self._leaves:
                leaf.copy_(value)
        for one, state in self._held:
            load_state(one, _copy(state))
        if self._gradients is not None:
            self._objective.num_gradients = self._gradients
        torch.set_rng_state(self._random)
        if self._on_gpus:
            torch.cuda.set_rng_state_all(self._on_gpus)


def _copy(state: dict[str, Any]) -> dict[str, Any]:
    return tree_map_only(Tensor, torch.clone, state)
