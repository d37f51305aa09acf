"""Variational inference in Pyro: objectives, references and comparisons.

Draw particles from a guide and score them; the bound that is optimised, its gradient, the evidence
estimate and the diagnostics are functions of the same log-weights.
"""

from pyro_elbo_lab.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives import ImportanceWeightedELBO, Objective, StandardELBO

__all__ = ["AnalyticKLELBO", "ImportanceWeightedELBO", "Objective", "StandardELBO"]
