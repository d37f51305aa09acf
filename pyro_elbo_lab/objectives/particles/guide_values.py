"""From draws of a model's latents to draws of its guide's latents.

A guide that draws the model's own sites takes them as they are. Pyro's autoguides draw in
unconstrained space: AutoNormal and its like site by site, AutoContinuous guides all sites in one
vector.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pyro.infer.autoguide import AutoContinuous, AutoNormal
from torch import Tensor
from torch.distributions import biject_to

from pyro_elbo_lab.programs.pair import Program
from pyro_elbo_lab.programs.structure.analysis import Structure

Draws = Mapping[str, Any]


def guide_values(reference: Any, structure: Structure, guide: Program) -> dict[str, Tensor]:
    """Values of every latent of the guide, one for each draw.

    Args:
        reference: arrays by the names of the model's latents, each with a leading dimension for the
            draws; or a `DataTree` with a `posterior` over (chain, draw), as `nuts` returns it.
        structure: the dependencies of model and guide.
        guide: the guide.

    Returns:
        By latent of the guide, (draws, *shape), of its own dtype and on its device.

    Raises:
        ValueError: a latent whose value does not follow from the reference.
    """
    return {
        name: _value(name, _Draws(reference, latent.device), guide).to(latent.dtype)
        for name, latent in structure.latents.items()
    }


class _Draws:
    """A reference's draws by site, on a device, numbers of any precision as float64."""

    def __init__(self, reference: Any, device: torch.device) -> None:
        if not isinstance(reference, Mapping) or hasattr(reference, "children"):
            variables = reference["posterior"].data_vars
            reference = {
                str(name): np.asarray(variables[name]).reshape(-1, *variables[name].shape[2:])
                for name in variables
            }
        self.sites: Mapping[str, Any] = reference
        self.device = device

    def __contains__(self, name: str) -> bool:
        return self._key(name) in self.sites

    def __getitem__(self, name: str) -> Tensor:
        values = self.sites[self._key(name)]
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(np.array(values))
        return tensor.to(self.device, torch.float64)

    def _key(self, name: str) -> str:
        """A dict has the names of the sites, a DataTree those of its variables."""
        return name if name in self.sites else name.replace("/", ".")


def _value(name: str, draws: _Draws, guide: Program) -> Tensor:
    if name in draws:
        return draws[name]
    if isinstance(guide, AutoNormal) and name.removesuffix("_unconstrained") in draws:
        return _unconstrained(name.removesuffix("_unconstrained"), draws, guide)
    if isinstance(guide, AutoContinuous) and name == f"_{guide._pyro_name}_latent":
        sites = [site for site, _ in guide.prototype_trace.iter_stochastic_nodes()]
        if all(site in draws for site in sites):
            values = [_unconstrained(site, draws, guide) for site in sites]
            return torch.cat([value.reshape(len(value), -1) for value in values], -1)
    raise ValueError(
        f"The reference has {sorted(draws.sites)}, from which the value of the guide's latent "
        f"'{name}' does not follow. Use a guide that draws the model's own sites, AutoNormal or an "
        "AutoContinuous guide, and a reference with draws of every latent of the model."
    )


def _unconstrained(name: str, draws: _Draws, guide: Any) -> Tensor:
    return biject_to(guide.prototype_trace.nodes[name]["fn"].support).inv(draws[name])
