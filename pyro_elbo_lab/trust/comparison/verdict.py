"""One plain sentence on whether to trust an approximation, and the rule behind it."""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pyro_elbo_lab.statistics.tolerances import FALSE_ALARM_RATE, TOLERANCE, TOO_NOISY
from pyro_elbo_lab.trust.comparison.errors import Errors

__all__ = ["FALSE_ALARM_RATE", "TOLERANCE", "TOO_NOISY", "Verdict", "judge"]

STILL_FALLING = 0.1
"""Nats by which the loss of an unconverged fit fell in the last half of its steps.

A tenth of a nat of KL divergence is a mean off by 0.45 sd.
"""

_FALL_Z = 4.0
_FUNNEL = 0.4
"""Least rank correlation of a spread with another parameter that is called a funnel."""

_BEND = 0.4
"""Share of the median distance from the middle that is empty where a funnel is called a curve."""

_ROUNDING = 1e-6
"""An sd ratio that a draw repeated again and again can show by rounding."""


@dataclass(frozen=True)
class Verdict:
    """A short name of the finding, and one sentence: the numbers it rests on, what to try next."""

    kind: str
    sentence: str


def judge(row: xr.Dataset, reference_reliable: bool = True, reference_note: str = "") -> Verdict:
    """Judge one approximation from its row of a comparison.

    `row` is the dataset of a Comparison at one approximation. An error counts when it exceeds its
    tolerance by more than noise explains: z Monte Carlo standard errors, where z is the normal
    quantile at `FALSE_ALARM_RATE` divided among all comparisons. The tolerances are `TOLERANCE`
    for means, sds and Wasserstein distances (these also beyond their noise floor) and
    `TAIL_TOLERANCE` for the width of the central 98 %. The first rule that applies decides:

    1. `reference unreliable`: its chains disagree or diverge. Nothing can be learnt from a
       distance to it (Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021; Betancourt 2017,
       "A conceptual introduction to Hamiltonian Monte Carlo", section 6.2). Or, after rule 4: the
       approximation has a mode that the reference never visits, k-hat is good, and its weights
       do not make the mode vanish.
    2. `point estimate`: no parameter varies, so there is no spread to compare.
    3. No error counts. `cannot tell` if an error of `TOO_NOISY` could hide in the noise.
       Otherwise `good`; or `good marginals` if k-hat is above its threshold, as it sees the
       joint distribution and its tails, which marginals do not (Yao, Vehtari, Simpson & Gelman
       2018, "Yes, but did it work?", sections 3 and 4); or if a correlation is off; or if there is
       no k-hat, and the parameters are too many for all of them to enter the classifier test.
    4. `good after importance weighting`: some error counts, k-hat is at most min(1 - 1/log10 S,
       0.7) (Vehtari, Simpson, Gelman, Yao & Gabry 2024), and with Pareto smoothed weights no
       error of a mean or sd counts any more. The second check guards against a low k-hat from
       draws that have never seen another mode.
    5. `unconverged`: the loss was still falling, by at least `STILL_FALLING` nats over the last
       half of the steps and by four standard errors (Dhaka et al. 2020). Whatever else is
       wrong may be due to that.
    6. `wrong mode`: at least 5 % of the reference lie beyond a valley of its density where the
       approximation has none, as minimizing KL(q‖p) allows (Bishop 2006, section 10.1.2); see
       `pyro_elbo_lab.statistics.modes.missed_modes`.
    7. The errors of means and sds that count: `biased`, `under-dispersed` (what minimizing
       KL(q‖p) tends to do: Turner & Sahani 2011), `over-dispersed`, or several of these. An sd
       that is off because of the tails alone is left to the next rule.
    8. `light tails` or `heavy tails`: the width of the central 98 % is off, by a factor more
       than twice, in logarithms, that of the middle half.
    9. `wrong shape`: the Wasserstein distance counts though none of the above does.

    >>> from pyro_elbo_lab import compare
    >>> rng = np.random.default_rng(0)
    >>> two = rng.normal(np.where(rng.uniform(size=(4, 1000)) < 0.5, -3, 3), 1)
    >>> one = xr.DataTree.from_dict(
    ...     {"posterior": xr.Dataset({"mu": (("chain", "draw"), rng.normal(3, 1, (1, 2000)))})}
    ... )
    >>> judge(compare({"q": one}, {"mu": two}).dataset.sel(approximation="q")).kind
    'wrong mode'
    """
    if not reference_reliable:
        return Verdict("reference unreliable", _unreliable_sentence(reference_note))
    row = row.dropna("parameter", subset=["mean_error"])
    plain = Errors.of(row)
    if float(row["sd_ratio"].max()) < _ROUNDING:
        return Verdict("point estimate", _point_sentence(plain))
    k_hat = _KHat(float(row["k_hat"]), float(row["k_hat_threshold"]))
    if not plain.by_kind:
        return _agreement(plain, k_hat, row)
    weighted = Errors.of(row, "_weighted")
    if k_hat.good and not weighted.by_kind and not weighted.too_noisy:
        sentence = (
            f"Good after importance weighting: without weights {plain.findings}; but {k_hat}, so "
            f"the weights can be trusted, and they give {weighted.extremes}."
        )
        return Verdict("good after importance weighting", sentence)
    if k_hat.good and weighted.by_kind and (missing := _mode(row, "extra_mode")):
        note = f"{missing} of the approximation, with good weights ({k_hat}), that it never visits"
        return Verdict("reference unreliable", _unreliable_sentence(note))
    repair = _repair(k_hat, weighted)
    return _unconverged(row, plain) or _wrong_mode(row, repair) or _wrong(row, plain, repair)


@dataclass(frozen=True)
class _KHat:
    value: float
    threshold: float

    @property
    def good(self) -> bool:
        return self.value <= self.threshold

    @property
    def known(self) -> bool:
        return not math.isnan(self.value)

    def __str__(self) -> str:
        if not self.known:
            return "there are no log-weights to compute k-hat from"
        relation = "is at most" if self.good else "exceeds"
        return f"k-hat {self.value:.2f} {relation} {self.threshold:.2f}"


def _agreement(errors: Errors, k_hat: _KHat, row: xr.Dataset) -> Verdict:
    if errors.too_noisy:
        sentence = (
            f"Cannot tell: no error stands out, but noise would hide errors of up to "
            f"{errors.noise:.2f} reference sd; take more draws of the reference and of the "
            "approximation."
        )
        return Verdict("cannot tell", sentence)
    doubt = _doubt(errors, k_hat, row)
    if not doubt:
        vouched = str(k_hat) if k_hat.known else _classifier(row)
        return Verdict("good", f"Good: {errors.extremes}; {vouched}.{_in_noise(errors)}")
    return Verdict("good marginals", f"Good marginals: {errors.extremes}; but {doubt}.")


def _in_noise(errors: Errors) -> str:
    """A word on errors beyond the tolerance that noise may explain; "" if there are none."""
    beyond = errors.parameter[errors.beyond_tolerance]
    if not len(beyond):
        return ""
    which = f"{beyond[0]} is" if len(beyond) == 1 else f"{beyond[0]} and {len(beyond) - 1} more are"
    return f" {which} beyond the tolerance, but not by more than noise may explain."


def _doubt(errors: Errors, k_hat: _KHat, row: xr.Dataset) -> str:
    """Why agreement in the marginals does not vouch for the joint distribution; "" if it does."""
    unvouched = "so the joint distribution and its tails are not vouched for"
    if errors.uncorrelated.any():
        return f"{_correlation(errors)}, so the joint distribution is not right; {_FULL_RANK}"
    if k_hat.known:
        return "" if k_hat.good else f"{k_hat}, {unvouched}; {_RICHER}"
    if float(row["joint_parameters"]) < row.sizes["parameter"]:
        return f"{k_hat}, {unvouched}; give the approximation's log-weights"
    told_apart = float(row["c2st"]) - 0.5 > TOLERANCE + _FALL_Z * float(row["c2st_se"])
    return f"{_classifier(row)}, {unvouched}" if told_apart else ""


def _classifier(row: xr.Dataset) -> str:
    return (
        f"a classifier tells {float(row['c2st']):.0%} of the draws of both sides apart, and would "
        "50 % by chance"
    )


def _unconverged(row: xr.Dataset, errors: Errors) -> Verdict | None:
    fall, se = float(row["loss_fall"]), float(row["loss_fall_se"])
    if not (fall > STILL_FALLING and fall > _FALL_Z * se):
        return None
    sentence = (
        f"Unconverged: the loss was still falling, by {fall:.2g} ± {se:.1g} nats over the last "
        f"half of the steps, and {errors.findings}; take more or larger steps before judging "
        "the guide."
    )
    return Verdict("unconverged", sentence)


def _wrong_mode(row: xr.Dataset, repair: str) -> Verdict | None:
    mode = _mode(row, "missed_mode")
    if not mode:
        return None
    sentence = (
        f"Wrong mode: {mode} of the reference that the approximation never visits; {repair}; try "
        "several initial values, a mixture or a flow as guide, or an objective that covers mass, "
        "such as the forward KL."
    )
    return Verdict("wrong mode", sentence)


def _mode(row: xr.Dataset, column: str) -> str:
    """The largest mode that one side never visits, in words; "" if there is none."""
    share = row[column].values
    worst = int(np.argmax(share))
    if not share[worst] > 0:
        return ""
    return f"there is a mode of {row['parameter'].values[worst]}, {share[worst]:.0%}"


def _wrong(row: xr.Dataset, errors: Errors, repair: str) -> Verdict:
    kind = " and ".join(errors.by_kind)
    sentence = f"{kind.capitalize()}: {errors.findings}; {repair}; {_advice(row, errors)}."
    return Verdict(kind, sentence)


_RICHER = "try a richer guide, such as a normalizing flow"
_DISCRETE = (
    "try a guide in which the discrete parameters depend on each other, or sum them out "
    "(infer={'enumerate': 'parallel'} in the model)"
)
_FULL_RANK = "try a full-rank guide (AutoMultivariateNormal)"


def _advice(row: xr.Dataset, errors: Errors) -> str:
    """What to try next against errors that count."""
    wrong = np.logical_or.reduce(list(errors.by_kind.values()))
    if row["discrete"].values[wrong].all():
        return _DISCRETE
    governed = np.nan_to_num(row["governed_spread"].values)
    root = int(np.argmax(governed))
    kinds = errors.by_kind
    if governed[root] > _FUNNEL:
        follows = (
            f"the spread of other parameters follows {row['parameter'].values[root]} (rank "
            f"correlation {governed[root]:.2f})"
        )
        if row["governed_bend"].values[root] > _BEND:
            return f"{follows}, in a curve: try a normalizing flow, or straighter coordinates"
        return f"{follows}, a funnel: try a non-centered parameterization"
    if "light tails" in kinds or "heavy tails" in kinds:
        return "try a guide whose tails can adapt, such as Student's t or a normalizing flow"
    if "under-dispersed" in kinds and errors.uncorrelated.any():
        return f"{_correlation(errors)}: {_FULL_RANK}"
    if "biased" in kinds:
        return f"try more steps and smaller ones at the end, then {_RICHER.removeprefix('try ')}"
    if "under-dispersed" in kinds:
        return f"{_RICHER}, or an importance-weighted objective"
    return _RICHER


def _correlation(errors: Errors) -> str:
    worst = int(np.nanargmax(errors.columns["correlation_error"]))
    return (
        f"correlations of {errors.parameter[worst]} are off by up to "
        f"{errors.columns['correlation_error'][worst]:.2f}"
    )


def _repair(k_hat: _KHat, weighted: Errors) -> str:
    """Whether importance weighting repairs it."""
    if not k_hat.good:
        conclusion = ", so importance weighting cannot repair it" if k_hat.known else ""
        return f"{k_hat}{conclusion}"
    if not weighted.by_kind:
        return f"{k_hat}, but too few draws carry weight to say that weighting repairs it"
    return (
        f"{k_hat}, yet with weights there are still {' and '.join(weighted.counts)}: the "
        "approximation misses a region that the reference visits, or the two describe different "
        "models"
    )


def _point_sentence(errors: Errors) -> str:
    mean_error = errors.columns["mean_error"]
    worst = np.argmax(np.abs(mean_error))
    return (
        f"Point estimate: no parameter varies, so there is no spread to trust; the worst is "
        f"{errors.parameter[worst]}, {mean_error[worst]:+.2f} reference sd from the reference "
        "mean; for a spread, try a guide that has one."
    )


def _unreliable_sentence(reference_note: str) -> str:
    note = reference_note.removeprefix("not reliable: ").rstrip(".")
    reason = f" ({note})" if note else ""
    return (
        f"Reference unreliable: the reference itself cannot be trusted{reason}; repair it first, "
        "with longer chains, a higher target acceptance or another parameterization."
    )
