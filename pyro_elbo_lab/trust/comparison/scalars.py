"""One number per approximation: joint, predictive, cost, progress."""

import numpy as np
import xarray as xr

from pyro_elbo_lab.statistics import joint
from pyro_elbo_lab.statistics.mixing import mixing
from pyro_elbo_lab.statistics.tolerances import MIN_DRAWS_PER_CHAIN
from pyro_elbo_lab.statistics.trend import late_fall
from pyro_elbo_lab.trust.comparison import predictive
from pyro_elbo_lab.trust.comparison.approximation import Anchors, Side

DIAGNOSTICS = (
    "k_hat",
    "k_hat_threshold",
    "elbo",
    "elbo_se",
    "log_evidence",
    "log_evidence_se",
    "weight_ess",
)

_JOINT = (*joint.COLUMNS, "joint_parameters", "joint_draws")
_COST = ("seconds", "gradient_evaluations")
_PROGRESS = ("loss_fall", "loss_fall_se")
SCALARS = (*DIAGNOSTICS, *_JOINT, *predictive.COLUMNS, *_COST, *_PROGRESS)


def scalars(side: Side, reference: xr.DataTree, losses: np.ndarray | None) -> dict[str, float]:
    """All `SCALARS` of an approximation, NaN where they are not known.

    `losses` take precedence over those in the tree.
    """
    ours, theirs = joint_draws(side.anchors)
    recorded = _losses(side.tree) if losses is None else losses
    fall = (np.nan, np.nan) if recorded is None else late_fall(recorded)
    return {
        **{key: getattr(side.importance, key, np.nan) for key in DIAGNOSTICS},
        **joint.joint_distances(ours, theirs),
        "joint_parameters": float(ours.shape[1]),
        "joint_draws": float(len(ours)),
        **predictive.elpd_difference(side.tree, reference),
        **cost(side.tree),
        **dict(zip(_PROGRESS, fall, strict=True)),
    }


def joint_draws(anchors: Anchors) -> tuple[np.ndarray, np.ndarray]:
    """Equally many, nearly independent draws of both sides, `(n, A)`, evenly spaced."""
    flat = [x.reshape(len(x), -1) for x in (anchors.draws, anchors.reference)]
    independent = [mixing(x).ess.min() for x in (anchors.draws, anchors.reference)]
    n = min(int(min(independent)), *(x.shape[1] for x in flat), joint.MAX_DRAWS)
    n = max(n, MIN_DRAWS_PER_CHAIN)
    ours, theirs = (x[:, np.linspace(0, x.shape[1] - 1, n).astype(int)].T for x in flat)
    return ours, theirs


def cost(tree: xr.DataTree) -> dict[str, float]:
    """Seconds and gradient evaluations that draws took, NaN where the tree does not say.

    They are root attributes, `seconds` and `gradient_evaluations`; of a Markov chain without
    the latter, the `n_steps` of all transitions after warm-up.
    """
    found = {name: float(tree.attrs.get(name, np.nan)) for name in _COST}
    if np.isnan(found["gradient_evaluations"]) and "sample_stats" in tree.children:
        stats = tree["sample_stats"]
        if "n_steps" in stats.data_vars:
            found["gradient_evaluations"] = float(stats["n_steps"].sum())
    return found


def _losses(tree: xr.DataTree) -> np.ndarray | None:
    if "training" not in tree.children or "loss" not in tree["training"].data_vars:
        return None
    return np.asarray(tree["training/loss"])
