"""Variational inference in Pyro: objectives, references and comparisons.

Draw particles from a guide and score them; the bound that is optimised, its gradient, the evidence
estimate and the diagnostics are functions of the same log-weights.
"""

from pyro_elbo_lab.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.annealed import AnnealedELBO
from pyro_elbo_lab.annealing import cyclical_annealing, linear_annealing
from pyro_elbo_lab.bounds import log_uniform_schedule, uniform_schedule
from pyro_elbo_lab.calibration import Calibration, sbc, vsbc
from pyro_elbo_lab.calibration_plot import plot_sbc, plot_vsbc
from pyro_elbo_lab.comparison import Comparison, compare
from pyro_elbo_lab.compiled import compiled
from pyro_elbo_lab.convert import from_guide, from_predictive, from_pyro
from pyro_elbo_lab.decomposition import Decomposition, decompose
from pyro_elbo_lab.diagnostics import (
    importance_diagnostics,
    k_hat,
    loo_approximate_posterior,
    resampled,
    weighted,
)
from pyro_elbo_lab.dims import site_dims
from pyro_elbo_lab.divergences import ChiUpperBound, ForwardKL, ReweightedWakeSleep, TailAdaptive
from pyro_elbo_lab.evidence import EvidenceBounds, evidence
from pyro_elbo_lab.fit import Fit, default_optimizer, fit
from pyro_elbo_lab.ground_truth import posteriordb
from pyro_elbo_lab.linear_response import linear_response
from pyro_elbo_lab.objective import Objective
from pyro_elbo_lab.objectives import (
    CombinedImportanceWeighted,
    ImportanceWeightedELBO,
    JackknifeELBO,
    PartiallyImportanceWeighted,
    RenyiELBO,
    StandardELBO,
    ThermodynamicELBO,
)
from pyro_elbo_lab.plots import (
    plot_decomposition,
    plot_densities,
    plot_errors,
    plot_evidence_bounds,
    plot_forest,
    plot_k_hat,
    plot_pairs,
    plot_training,
)
from pyro_elbo_lab.reference import nuts
from pyro_elbo_lab.report import write_report
from pyro_elbo_lab.signal_to_noise import signal_to_noise

__all__ = [
    "AnalyticKLELBO",
    "AnnealedELBO",
    "Calibration",
    "ChiUpperBound",
    "CombinedImportanceWeighted",
    "Comparison",
    "Decomposition",
    "EvidenceBounds",
    "Fit",
    "ForwardKL",
    "ImportanceWeightedELBO",
    "JackknifeELBO",
    "Objective",
    "PartiallyImportanceWeighted",
    "RenyiELBO",
    "ReweightedWakeSleep",
    "StandardELBO",
    "TailAdaptive",
    "ThermodynamicELBO",
    "compare",
    "compiled",
    "cyclical_annealing",
    "decompose",
    "default_optimizer",
    "evidence",
    "fit",
    "from_guide",
    "from_predictive",
    "from_pyro",
    "importance_diagnostics",
    "k_hat",
    "linear_annealing",
    "linear_response",
    "log_uniform_schedule",
    "loo_approximate_posterior",
    "nuts",
    "plot_decomposition",
    "plot_densities",
    "plot_errors",
    "plot_evidence_bounds",
    "plot_forest",
    "plot_k_hat",
    "plot_pairs",
    "plot_sbc",
    "plot_training",
    "plot_vsbc",
    "posteriordb",
    "resampled",
    "sbc",
    "signal_to_noise",
    "site_dims",
    "uniform_schedule",
    "vsbc",
    "weighted",
    "write_report",
]
