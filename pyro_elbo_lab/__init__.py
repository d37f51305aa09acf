"""Variational inference in Pyro: objectives, references and comparisons.

Draw particles from a guide and score them; the bound that is optimised, its gradient, the evidence
estimate and the diagnostics are functions of the same log-weights.
"""

from pyro_elbo_lab.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.comparison import Comparison, compare
from pyro_elbo_lab.convert import from_guide
from pyro_elbo_lab.fit import Fit, default_optimizer, fit
from pyro_elbo_lab.objectives import ImportanceWeightedELBO, Objective, StandardELBO
from pyro_elbo_lab.reference import nuts
from pyro_elbo_lab.report import write_report

__all__ = [
    "AnalyticKLELBO",
    "Comparison",
    "Fit",
    "ImportanceWeightedELBO",
    "Objective",
    "StandardELBO",
    "compare",
    "default_optimizer",
    "fit",
    "from_guide",
    "nuts",
    "write_report",
]
