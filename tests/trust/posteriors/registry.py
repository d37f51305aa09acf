"""Ten posteriors of posteriordb: programs, data, reference draws and what is known of them.

Data, draws and truths are in the folder `posteriordb` of the `shared` fixture: `data.json`,
`draws.npz` (10 chains of 1000, thinned to near independence) and `info.json` of each posterior.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from xarray import DataTree

from pyro_elbo_lab.inference.trees.datatree import to_datatree
from pyro_elbo_lab.programs.dims import site_dims
from tests.trust.posteriors import (
    ar,
    earnings,
    eight_schools,
    gaussian_process,
    hmm,
    kidiq,
    mesquite,
    mixture,
    nes,
    synthetic_regression,
)

Draws = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Posterior:
    """A posterior of posteriordb.

    Attributes:
        name: posteriordb's, of the posterior and of its folder.
        model: the Pyro program; its sites bear the names of the reference draws.
        data: from the content of `data.json` to the program's arguments, in float64.
        latents: from the reference draws to draws of the sites of the program.
    """

    name: str
    model: Callable[..., Any]
    data: Callable[[dict[str, Any]], tuple[Tensor, ...]]
    latents: Callable[[Draws], Draws] = dict

    def arguments(self, shared: Path) -> tuple[Tensor, ...]:
        """What the program is called with."""
        return self.data(self._json(shared, "data.json"))

    def info(self, shared: Path) -> dict[str, Any]:
        """Among others `stats` of the draws, by the scalar's name, and the `truth` below."""
        return self._json(shared, "info.json")

    def truth(self, shared: Path) -> dict[str, Any]:
        """`log_evidence`, `mean` and `sd`, by quadrature or by importance sampling.

        The latter are estimates, with `log_evidence_se`, `mean_se` and `sd_se`.
        """
        info = self.info(shared)
        return info["exact"] if "exact" in info else info["importance_sampling"]

    def reference(self, shared: Path) -> DataTree:
        """The reference draws, with values of all latents of the program."""
        with np.load(self._folder(shared) / "draws.npz") as file:
            draws = self.latents({name: file[name].astype(np.float64) for name in file.files})
        return to_datatree(
            draws,
            site_dims(self.model, *self.arguments(shared)),
            attrs={"source": self.info(shared)["source"], "reliable": 1}
            | {"reliability": "reliable: reference draws of posteriordb."},
        )

    def _folder(self, shared: Path) -> Path:
        return shared / "posteriordb" / self.name

    def _json(self, shared: Path, file: str) -> dict[str, Any]:
        return json.loads((self._folder(shared) / file).read_text(encoding="utf-8"))


POSTERIORS = {
    posterior.name: posterior
    for posterior in [
        Posterior(ar.NAME, ar.model, ar.data),
        Posterior(earnings.NAME, earnings.model, earnings.data),
        Posterior(
            eight_schools.NAME, eight_schools.model, eight_schools.data, eight_schools.latents
        ),
        Posterior(gaussian_process.NAME, gaussian_process.model, gaussian_process.data),
        Posterior(hmm.NAME, hmm.model, hmm.data),
        Posterior(kidiq.NAME, kidiq.model, kidiq.data),
        Posterior(mesquite.NAME, mesquite.model, mesquite.data),
        Posterior(mixture.NAME, mixture.model, mixture.data),
        Posterior(nes.NAME, nes.model, nes.data),
        Posterior(synthetic_regression.NAME, synthetic_regression.model, synthetic_regression.data),
    ]
}


def scalars(tree: DataTree) -> dict[str, np.ndarray]:
    """Draws (chain, draw) of every scalar, by posteriordb's name such as `theta[1]`."""
    return {
        f"{name}[{','.join(str(i + 1) for i in index)}]" if index else str(name): array.values[
            (..., *index)
        ]
        for name, array in tree["posterior"].data_vars.items()
        for index in np.ndindex(array.shape[2:])
    }
