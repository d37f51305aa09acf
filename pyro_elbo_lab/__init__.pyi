"""The public names, and where each is: imported when it is first used."""

from .compilation.compiled_objective import compiled as compiled
from .figures.decomposition import plot_decomposition as plot_decomposition
from .figures.errors import plot_errors as plot_errors
from .figures.evidence import plot_evidence_bounds as plot_evidence_bounds
from .figures.marginals import plot_densities as plot_densities
from .figures.marginals import plot_forest as plot_forest
from .figures.pairs import plot_pairs as plot_pairs
from .figures.ranks import plot_sbc as plot_sbc
from .figures.ranks import plot_vsbc as plot_vsbc
from .figures.training import plot_training as plot_training
from .figures.weights import plot_k_hat as plot_k_hat
from .inference.fitting.fit import Fit as Fit
from .inference.fitting.fit import default_optimizer as default_optimizer
from .inference.fitting.fit import fit as fit
from .inference.nuts.nuts import nuts as nuts
from .inference.posteriordb import posteriordb as posteriordb
from .inference.trees.convert import from_guide as from_guide
from .inference.trees.convert import from_predictive as from_predictive
from .inference.trees.convert import from_pyro as from_pyro
from .objectives.analytic_kl import AnalyticKLELBO as AnalyticKLELBO
from .objectives.annealed import AnnealedELBO as AnnealedELBO
from .objectives.bounds import log_uniform_schedule as log_uniform_schedule
from .objectives.bounds import uniform_schedule as uniform_schedule
from .objectives.covering import ChiUpperBound as ChiUpperBound
from .objectives.covering import ForwardKL as ForwardKL
from .objectives.covering import ReweightedWakeSleep as ReweightedWakeSleep
from .objectives.covering import TailAdaptive as TailAdaptive
from .objectives.lower_bounds import (
    CombinedImportanceWeighted as CombinedImportanceWeighted,
)
from .objectives.lower_bounds import (
    ImportanceWeightedELBO as ImportanceWeightedELBO,
)
from .objectives.lower_bounds import JackknifeELBO as JackknifeELBO
from .objectives.lower_bounds import (
    PartiallyImportanceWeighted as PartiallyImportanceWeighted,
)
from .objectives.lower_bounds import RenyiELBO as RenyiELBO
from .objectives.lower_bounds import StandardELBO as StandardELBO
from .objectives.lower_bounds import ThermodynamicELBO as ThermodynamicELBO
from .objectives.objective import Objective as Objective
from .objectives.schedules import cyclical_annealing as cyclical_annealing
from .objectives.schedules import linear_annealing as linear_annealing
from .programs.dims import site_dims as site_dims
from .report.write import write_report as write_report
from .statistics.importance import k_hat as k_hat
from .trust.calibration.calibration import Calibration as Calibration
from .trust.calibration.calibration import sbc as sbc
from .trust.calibration.calibration import vsbc as vsbc
from .trust.comparison.compare import Comparison as Comparison
from .trust.comparison.compare import compare as compare
from .trust.decomposition import Decomposition as Decomposition
from .trust.decomposition import decompose as decompose
from .trust.evidence.evidence import EvidenceBounds as EvidenceBounds
from .trust.evidence.evidence import evidence as evidence
from .trust.gradient_noise import signal_to_noise as signal_to_noise
from .trust.linear_response import linear_response as linear_response
from .trust.weights import importance_diagnostics as importance_diagnostics
from .trust.weights import loo_approximate_posterior as loo_approximate_posterior
from .trust.weights import resampled as resampled
from .trust.weights import weighted as weighted

__all__: list[str]
__version__: str
