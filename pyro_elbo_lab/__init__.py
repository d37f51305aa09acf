"""Variational inference in Pyro: objectives, references and comparisons.

Draw particles from a guide and score them; the bound that is optimized, its gradient, the evidence
estimate and the diagnostics are functions of the same log-weights.

Public names are listed in `__init__.pyi`, and imported when they are first used: a loss in
`pyro.infer.SVI` loads neither ArviZ nor matplotlib nor a compiler.
"""

from typing import Any

import lazy_loader

from pyro_elbo_lab.programs.extras import needing

__version__ = "0.1.0.dev0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    with needing(name):
        return _load(name)
