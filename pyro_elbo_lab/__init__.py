"""Variational inference in Pyro: objectives, references and comparisons.

Draw particles from a guide and score them; the bound that is optimised, its gradient, the evidence
estimate and the diagnostics are functions of the same log-weights.

Public names are listed in `__init__.pyi`, and imported when they are first used: a loss in
`pyro.infer.SVI` loads neither ArviZ nor matplotlib nor a compiler.
"""

import lazy_loader

__version__ = "0.1.0.dev0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
