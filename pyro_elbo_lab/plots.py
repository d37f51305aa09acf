"""Figures of a Comparison, of a Fit and of a Decomposition."""

from pyro_elbo_lab.plots_decomposition import plot_decomposition
from pyro_elbo_lab.plots_errors import plot_errors
from pyro_elbo_lab.plots_evidence import plot_evidence_bounds
from pyro_elbo_lab.plots_marginals import plot_densities, plot_forest
from pyro_elbo_lab.plots_pairs import plot_pairs
from pyro_elbo_lab.plots_training import plot_loss, plot_training
from pyro_elbo_lab.plots_weights import plot_k_hat

__all__ = [
    "plot_decomposition",
    "plot_densities",
    "plot_errors",
    "plot_evidence_bounds",
    "plot_forest",
    "plot_k_hat",
    "plot_loss",
    "plot_pairs",
    "plot_training",
]
