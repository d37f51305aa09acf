"""One plain sentence on whether to trust an approximation, and the rule behind it."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import xarray as xr

TOLERANCE = 0.1
"""Errors that do not matter in practice: a mean off by a tenth of the reference sd, an sd by 10 %.

With both at once the central 90 % interval still covers 86 % of the reference.
"""

TOO_NOISY = 0.25
"""Error, in reference sds, that must be detectable before an agreement means anything."""

FALSE_ALARM_RATE = 0.01
"""Probability that noise alone makes any of the parameters of one approximation look wrong."""

_ROUNDING = 1e-6
"""An sd ratio that a draw repeated again and again can show by rounding."""


@dataclass(frozen=True)
class Verdict:
    """A short name of the finding and one sentence with the numbers it rests on."""

    kind: str
    sentence: str


def judge(row: xr.Dataset, reference_reliable: bool = True, reference_note: str = "") -> Verdict:
    """Judge one approximation from its row of a comparison.

    ``row`` holds, over the dimension ``parameter``, ``mean_error`` and ``sd_ratio``, the same
    with suffix ``_weighted`` (NaN where there are no log-weights), and the Monte Carlo error of
    each with suffix ``_mcse``; and the scalars ``k_hat`` and ``k_hat_threshold``.

    An error counts when it exceeds ``TOLERANCE`` by more than noise explains: z Monte Carlo
    standard errors, where z is the normal quantile at ``FALSE_ALARM_RATE`` divided among all
    comparisons. The first rule that applies decides:

    1. ``reference unreliable``: the reference says that it did not converge. Nothing can be
       learnt from a distance to it.
    2. ``point estimate``: no parameter varies, so there is no spread to compare.
    3. No error counts. ``cannot tell`` if an error of ``TOO_NOISY`` could hide in the noise.
       Otherwise ``good``; or ``good marginals`` if k-hat is above its threshold or unknown:
       k-hat sees the joint distribution and its tails, which marginal means and sds do not (Yao,
       Vehtari, Simpson & Gelman 2018, "Yes, but did it work?", sections 3 and 4).
    4. ``good after importance weighting``: some error counts, k-hat is at most min(1 - 1/log10 S,
       0.7) (Vehtari, Simpson, Gelman, Yao & Gabry 2024), and with Pareto smoothed weights no
       error counts any more. The second check guards against a low k-hat from draws that have
       never seen another mode.
    5. Otherwise the errors that count: ``biased`` (means), ``under-dispersed`` (sd ratios below
       one, what minimising KL(q‖p) tends to do: Turner & Sahani 2011), ``over-dispersed``.
    """
    if not reference_reliable:
        return Verdict("reference unreliable", _unreliable_sentence(reference_note))
    plain = _Errors.of(row, "")
    if float(row["sd_ratio"].max()) < _ROUNDING:
        return Verdict("point estimate", _point_sentence(plain))
    k_hat = _KHat(float(row["k_hat"]), float(row["k_hat_threshold"]))
    if not plain.kinds:
        return _agreement(plain, k_hat)
    weighted = _Errors.of(row, "_weighted")
    if k_hat.good and not weighted.kinds and not weighted.too_noisy:
        sentence = (
            f"Good after importance weighting: without weights {plain.findings}; but {k_hat}, so "
            f"the weights can be trusted, and they give {weighted.extremes}."
        )
        return Verdict("good after importance weighting", sentence)
    sentence = f"{' and '.join(plain.kinds).capitalize()}: {plain.findings}; "
    return Verdict(" and ".join(plain.kinds), sentence + _remedy(k_hat, weighted))


@dataclass(frozen=True)
class _KHat:
    value: float
    threshold: float

    @property
    def good(self) -> bool:
        return self.value <= self.threshold

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "there are no log-weights to compute k-hat from"
        relation = "is at most" if self.good else "exceeds"
        return f"k-hat {self.value:.2f} {relation} {self.threshold:.2f}"


@dataclass(frozen=True)
class _Errors:
    """Mean errors and sd ratios, and which of them count; arrays ``(P,)``."""

    parameter: np.ndarray
    mean_error: np.ndarray
    sd_ratio: np.ndarray
    mean_slack: np.ndarray
    sd_slack: np.ndarray

    @classmethod
    def of(cls, row: xr.Dataset, suffix: str) -> "_Errors":
        num_comparisons = 2 * row.sizes["parameter"]
        z = NormalDist().inv_cdf(1 - FALSE_ALARM_RATE / (2 * num_comparisons))
        return cls(
            parameter=row["parameter"].values,
            mean_error=row[f"mean_error{suffix}"].values,
            sd_ratio=row[f"sd_ratio{suffix}"].values,
            mean_slack=z * row[f"mean_error{suffix}_mcse"].values,
            sd_slack=z * row[f"sd_ratio{suffix}_mcse"].values,
        )

    @property
    def biased(self) -> np.ndarray:
        return np.abs(self.mean_error) > TOLERANCE + self.mean_slack

    @property
    def narrow(self) -> np.ndarray:
        return self.sd_ratio < 1 - TOLERANCE - self.sd_slack

    @property
    def wide(self) -> np.ndarray:
        return self.sd_ratio > 1 + TOLERANCE + self.sd_slack

    @property
    def kinds(self) -> list[str]:
        """The kinds of error that count, the most numerous first."""
        found = {
            "biased": self.biased.sum(),
            "under-dispersed": self.narrow.sum(),
            "over-dispersed": self.wide.sum(),
        }
        return sorted((kind for kind in found if found[kind]), key=lambda kind: -found[kind])

    @property
    def too_noisy(self) -> bool:
        # Not "any exceeds": a noise that is NaN hides everything.
        return not (np.maximum(self.mean_slack, self.sd_slack) <= TOO_NOISY).all()

    @property
    def counts(self) -> dict[str, str]:
        """How many parameters have each kind of error that counts."""
        found = {
            "biased": f"{self._count(self.biased)} off in the mean",
            "under-dispersed": f"{self._count(self.narrow)} too narrow",
            "over-dispersed": f"{self._count(self.wide)} too wide",
        }
        return {kind: found[kind] for kind in self.kinds}

    @property
    def findings(self) -> str:
        """The counts, with the worst parameter of each kind."""
        worst = np.argmax(np.abs(self.mean_error))
        worst_by_kind = {
            "biased": f"{self.parameter[worst]} by {self.mean_error[worst]:+.2f} reference sd",
            "under-dispersed": self._named_ratio(np.argmin(self.sd_ratio)),
            "over-dispersed": self._named_ratio(np.argmax(self.sd_ratio)),
        }
        return " and ".join(
            f"{count}, worst {worst_by_kind[kind]}" for kind, count in self.counts.items()
        )

    @property
    def extremes(self) -> str:
        """How close all means and sds are, whether or not their errors count."""
        worst = np.argmax(np.abs(self.mean_error))
        return (
            f"means within {abs(self.mean_error[worst]):.2f} reference sd (worst "
            f"{self.parameter[worst]}) and sd ratios from {self.sd_ratio.min():.2f} to "
            f"{self.sd_ratio.max():.2f}"
        )

    def _count(self, which: np.ndarray) -> str:
        return f"{which.sum()} of {which.size} parameters"

    def _named_ratio(self, index: np.intp) -> str:
        return f"{self.parameter[index]} with an sd ratio of {self.sd_ratio[index]:.2f}"


def _agreement(errors: _Errors, k_hat: _KHat) -> Verdict:
    if errors.too_noisy:
        noise = np.nanmax(np.maximum(errors.mean_slack, errors.sd_slack))
        sentence = (
            f"Cannot tell: no error stands out, but noise would hide errors of up to {noise:.2f} "
            "reference sd; take more draws of the reference and of the approximation."
        )
        return Verdict("cannot tell", sentence)
    if k_hat.good:
        return Verdict("good", f"Good: {errors.extremes}; {k_hat}.")
    sentence = (
        f"Good marginals: {errors.extremes}; but {k_hat}, so the joint distribution and its "
        "tails are not vouched for."
    )
    return Verdict("good marginals", sentence)


def _remedy(k_hat: _KHat, weighted: _Errors) -> str:
    if not k_hat.good:
        conclusion = "" if math.isnan(k_hat.value) else ", so importance weighting cannot repair it"
        return f"{k_hat}{conclusion}."
    if not weighted.kinds:
        return f"{k_hat}, but too few draws carry weight to say that weighting repairs it."
    return (
        f"{k_hat}, yet with weights there are still {' and '.join(weighted.counts.values())}: the "
        "approximation misses a region that the reference visits, or the two describe different "
        "models."
    )


def _point_sentence(errors: _Errors) -> str:
    worst = np.argmax(np.abs(errors.mean_error))
    return (
        f"Point estimate: no parameter varies, so there is no spread to trust; the worst is "
        f"{errors.parameter[worst]}, {errors.mean_error[worst]:+.2f} reference sd from the "
        "reference mean."
    )


def _unreliable_sentence(reference_note: str) -> str:
    reason = f" ({reference_note.rstrip('.')})" if reference_note else ""
    return f"Reference unreliable: the reference itself cannot be trusted{reason}; repair it first."
