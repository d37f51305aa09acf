"""Which errors of an approximation count, beyond tolerance and noise."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import xarray as xr

from pyro_elbo_lab.statistics.tolerances import (
    FALSE_ALARM_RATE,
    TAIL_TOLERANCE,
    TOLERANCE,
    TOO_NOISY,
)

_UNSTABLE = 0.5
"""Relative noise of an sd beyond which a few draws dominate it, as they do without a variance."""

_TESTS = 5
"""The errors of each parameter: mean, sd, distance, tails, correlation."""

Mask = np.ndarray


@dataclass(frozen=True)
class Errors:
    """The errors of one approximation; `mean_slack` and the like are what noise may explain.

    `columns` are those of the row of a comparison, `(P,)` each; `suffix` is "_weighted" for
    importance-weighted moments, of which there are only means and sds.
    """

    parameter: np.ndarray
    columns: dict[str, np.ndarray]
    z: float

    @classmethod
    def of(cls, row: xr.Dataset, suffix: str = "") -> "Errors":
        num_comparisons = _TESTS * row.sizes["parameter"]
        columns = {
            str(name): array.values for name, array in row.items() if array.dims == ("parameter",)
        }
        if suffix:
            moments = ("mean_error", "mean_error_mcse", "sd_ratio", "sd_ratio_mcse")
            columns = {name: columns[_suffixed(name, suffix)] for name in moments}
        z = NormalDist().inv_cdf(1 - FALSE_ALARM_RATE / (2 * num_comparisons))
        return cls(row["parameter"].values, columns, z)

    def slack(self, name: str) -> np.ndarray:
        """Error of a column that noise may explain."""
        return self.z * self.columns[f"{name}_mcse"]

    @property
    def has_shapes(self) -> bool:
        """Whether more is known than means and sds."""
        return "tail_ratio" in self.columns

    @property
    def biased(self) -> Mask:
        return np.abs(self.columns["mean_error"]) > TOLERANCE + self.slack("mean_error")

    @property
    def narrow(self) -> Mask:
        return self._sd_off & (self.columns["sd_ratio"] < 1) & ~self.tails

    @property
    def wide(self) -> Mask:
        return self._sd_off & (self.columns["sd_ratio"] > 1) & ~self.tails

    @property
    def tails(self) -> Mask:
        """Parameters whose tails or sd are off, the tails twice as much as the middle, in logs."""
        if not self.has_shapes:
            return np.zeros(self.parameter.size, bool)
        tail, middle = self.columns["tail_ratio"], self.columns["middle_ratio"]
        off = np.abs(tail - 1) > TAIL_TOLERANCE + self.slack("tail_ratio")
        return (off | self._sd_off) & (_log_error(tail) > 2 * _log_error(middle))

    @property
    def light(self) -> Mask:
        return self.tails & (self.columns["tail_ratio"] < 1)

    @property
    def heavy(self) -> Mask:
        return self.tails & (self.columns["tail_ratio"] > 1)

    @property
    def misshapen(self) -> Mask:
        """Parameters whose distribution is off though mean, sd and tails are not."""
        floor = self.columns["wasserstein_floor"]
        off = self.columns["wasserstein"] > TOLERANCE + floor + self.slack("wasserstein")
        return off & ~(self.biased | self.narrow | self.wide | self.tails)

    @property
    def uncorrelated(self) -> Mask:
        """Parameters whose correlation with another is off."""
        return self.columns["correlation_error"] > TOLERANCE + self.slack("correlation_error")

    @property
    def by_kind(self) -> dict[str, Mask]:
        """The errors that count, by kind, the most numerous first.

        Tails and shapes are kinds of their own only where means and sds are right.
        """
        kinds = [
            {"biased": self.biased, "under-dispersed": self.narrow, "over-dispersed": self.wide}
        ]
        if self.has_shapes:
            kinds += [
                {"light tails": self.light, "heavy tails": self.heavy},
                {"wrong shape": self.misshapen},
            ]
        for found in kinds:
            counted = {kind: mask for kind, mask in found.items() if mask.any()}
            if counted:
                return dict(sorted(counted.items(), key=lambda item: -item[1].sum()))
        return {}

    @property
    def noise(self) -> float:
        """The largest error of a mean or sd that noise may hide; NaN where it is not known."""
        return float(np.max(np.maximum(self.slack("mean_error"), self.slack("sd_ratio"))))

    @property
    def too_noisy(self) -> bool:
        return not self.noise <= TOO_NOISY  # not "exceeds": a noise that is NaN hides everything

    @property
    def counts(self) -> list[str]:
        """How many parameters have each kind of error that counts."""
        return [
            f"{mask.sum()} of {mask.size} parameters {_PHRASES[kind]}"
            for kind, mask in self.by_kind.items()
        ]

    @property
    def findings(self) -> str:
        """The counts, with the worst parameter of each kind."""
        worst = (self._worst(kind, mask) for kind, mask in self.by_kind.items())
        pairs = zip(self.counts, worst, strict=True)
        return " and ".join(f"{count}, worst {which}" for count, which in pairs)

    @property
    def beyond_tolerance(self) -> Mask:
        """Parameters whose mean or sd is outside the tolerance, by noise or not."""
        off = np.abs(self.columns["mean_error"]), np.abs(self.columns["sd_ratio"] - 1)
        return np.maximum(*off) > TOLERANCE

    @property
    def extremes(self) -> str:
        """How close all means and sds are, whether or not their errors count."""
        mean_error, sd_ratio = self.columns["mean_error"], self.columns["sd_ratio"]
        worst = np.argmax(np.abs(mean_error))
        return (
            f"means within {abs(mean_error[worst]):.2f} reference sd (worst "
            f"{self.parameter[worst]}) and sd ratios from {sd_ratio.min():.2f} to "
            f"{sd_ratio.max():.2f}"
        )

    @property
    def _sd_off(self) -> Mask:
        """Not where an sd rests on so few draws that its own error is not known."""
        ratio, slack = self.columns["sd_ratio"], self.slack("sd_ratio")
        known = slack <= _UNSTABLE * np.maximum(ratio, np.finfo(float).tiny)
        return (np.abs(ratio - 1) > TOLERANCE + slack) & (known | (ratio == 0))

    def _worst(self, kind: str, mask: Mask) -> str:
        column, text = _WORST[kind]
        values = self.columns[column]
        badness = values if column == "wasserstein" else np.abs(values - (column != "mean_error"))
        i = int(np.argmax(np.where(mask, badness, -np.inf)))
        return text.format(
            self.parameter[i], **{name: value[i] for name, value in self.columns.items()}
        )


_PHRASES = {
    "biased": "off in the mean",
    "under-dispersed": "too narrow",
    "over-dispersed": "too wide",
    "light tails": "with tails too light",
    "heavy tails": "with tails too heavy",
    "wrong shape": "of another shape",
}

_TAILS = (
    "{}, whose central 98 % are {tail_ratio:.2f} times as wide as the reference's and whose middle "
    "half {middle_ratio:.2f} times"
)
_WORST = {
    "biased": ("mean_error", "{} by {mean_error:+.2f} reference sd"),
    "under-dispersed": ("sd_ratio", "{} with an sd ratio of {sd_ratio:.2f}"),
    "over-dispersed": ("sd_ratio", "{} with an sd ratio of {sd_ratio:.2f}"),
    "light tails": ("tail_ratio", _TAILS),
    "heavy tails": ("tail_ratio", _TAILS),
    "wrong shape": ("wasserstein", "{} at a Wasserstein distance of {wasserstein:.2f} sd"),
}


def _suffixed(name: str, suffix: str) -> str:
    return name.removesuffix("_mcse") + suffix + ("_mcse" if name.endswith("_mcse") else "")


def _log_error(ratio: np.ndarray) -> np.ndarray:
    return np.abs(np.log(np.maximum(ratio, np.finfo(float).tiny)))
