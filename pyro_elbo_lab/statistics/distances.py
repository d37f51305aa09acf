"""Distances between draws of many scalar parameters, in units of the reference's sd.

Draws of P parameters have shape `(P, chain, draw)`; every result has shape `(P,)`.
"""

from dataclasses import dataclass

import numpy as np

from pyro_elbo_lab.statistics.mixing import mixing

INTERVALS = {"coverage_50": 0.5, "coverage": 0.9}
"""Probabilities of the central intervals whose coverage is compared, by column."""

QUANTILES = {
    "quantile_05_error": 0.05,
    "quantile_25_error": 0.25,
    "quantile_50_error": 0.5,
    "quantile_75_error": 0.75,
    "quantile_95_error": 0.95,
}
"""Probabilities of the quantiles that are compared, by column."""

RATIOS = {"middle_ratio": (0.25, 0.75), "tail_ratio": (0.01, 0.99)}
"""Intervals whose widths are compared, by column: the middle half, all but 1 % at either end."""


@dataclass(frozen=True)
class Moments:
    """Draws `(P, chain, draw)`, and their means and sds with Monte Carlo standard errors.

    `ess` is the lesser effective sample size of the two, `r_hat` the larger R-hat.
    """

    draws: np.ndarray
    mean: np.ndarray
    mean_se: np.ndarray
    sd: np.ndarray
    sd_se: np.ndarray
    ess: np.ndarray
    r_hat: np.ndarray
    sorted: np.ndarray

    @classmethod
    def of(cls, draws: np.ndarray) -> "Moments":
        mean, sd = draws.mean((1, 2)), draws.std((1, 2), ddof=1)
        square = (draws - mean[:, None, None]) ** 2
        of_mean, of_sd = mixing(draws), mixing(square)
        square_se = square.std((1, 2), ddof=1) / np.sqrt(of_sd.ess)
        return cls(
            draws=draws,
            mean=mean,
            mean_se=sd / np.sqrt(of_mean.ess),
            sd=sd,
            sd_se=np.divide(square_se, 2 * sd, out=np.zeros_like(sd), where=sd > 0),
            ess=np.minimum(of_mean.ess, of_sd.ess),
            r_hat=np.maximum(of_mean.r_hat, of_sd.r_hat),
            sorted=_sorted(draws),
        )

    def quantile(self, p: float | np.ndarray) -> np.ndarray:
        """The quantile at `p`, a number or `(P,)`, linear between the draws."""
        return quantile(self.sorted, p)

    def width(self, interval: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """Width of an interval between two quantiles, and its Monte Carlo standard error."""
        low, high = interval
        width = self.quantile(high) - self.quantile(low)
        return width, np.hypot(self._quantile_se(low), self._quantile_se(high))

    def _quantile_se(self, p: float) -> np.ndarray:
        """Half the distance of the quantiles one standard error of the probability apart."""
        se = np.sqrt(p * (1 - p) / self.ess)
        return (self.quantile(p + se) - self.quantile(p - se)) / 2


def differences(z: Moments, r: Moments) -> dict[str, np.ndarray]:
    """How draws `z` differ from a reference `r`, both standardized, and the errors.

    Keys, all free of units:

    * `mean_error`: difference of means over the reference sd;
    * `sd_ratio`: sd over that of the reference;
    * `wasserstein`: 1-Wasserstein distance over the reference sd;
    * `quantile_05_error` … `quantile_95_error`: differences of quantiles over the reference sd;
    * `coverage_50`, `coverage`: share of the reference inside the draws' central 50 % and 90 %
      intervals;
    * `middle_ratio`: width of the middle half over that of the reference;
    * `tail_ratio`: the same for the central 98 %.

    Those with `_mcse` are Monte Carlo standard errors of both sides together.

    >>> rng = np.random.default_rng(0)
    >>> r = Moments.of(rng.normal(size=(1, 4, 1000)))
    >>> result = differences(Moments.of(1 + 2 * rng.normal(size=(1, 1, 4000))), r)
    >>> [round(float(result[key][0]), 1) for key in ("mean_error", "sd_ratio", "wasserstein")]
    [1.0, 2.0, 1.2]
    """
    columns = {
        "mean_error": z.mean,
        "mean_error_mcse": np.hypot(z.mean_se, r.mean_se),
        "sd_ratio": z.sd,
        "sd_ratio_mcse": np.hypot(z.sd_se, z.sd * r.sd_se),
        "wasserstein": wasserstein(z.sorted, r.sorted),
        "wasserstein_mcse": wasserstein_se(z, r),
    }
    columns |= {name: z.quantile(p) - r.quantile(p) for name, p in QUANTILES.items()}
    columns |= {name: coverage(z.sorted, r.sorted, p) for name, p in INTERVALS.items()}
    for name, interval in RATIOS.items():
        columns |= _ratio(name, z.width(interval), r.width(interval))
    return columns


def noise_floors(reference: np.ndarray) -> dict[str, np.ndarray]:
    """The distance from perfect agreement that halves of a standardized reference show.

    One for each distance of `differences`, with suffix `_floor`; `quantile_floor` is
    the largest of those of the quantiles.
    """
    a, b = map(_sorted, halves(reference))
    floors = {
        "mean_error_floor": np.abs(a.mean(1) - b.mean(1)),
        "sd_ratio_floor": np.abs(a.std(1, ddof=1) - b.std(1, ddof=1)),
        "wasserstein_floor": wasserstein(a, b),
    }
    errors = [np.abs(quantile(a, p) - quantile(b, p)) for p in QUANTILES.values()]
    floors["quantile_floor"] = np.max(errors, axis=0)
    for name, p in INTERVALS.items():
        coverages = coverage(a, b, p), coverage(b, a, p)
        floors[f"{name}_floor"] = np.abs(np.subtract(coverages, p)).max(0)
    for name, (low, high) in RATIOS.items():
        widths = [quantile(half, high) - quantile(half, low) for half in (a, b)]
        floors[f"{name}_floor"] = np.abs(_over(*widths) - 1)
    return floors


def weighted_differences(z: np.ndarray, r: Moments, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Mean error and sd ratio of standardized draws under `weights`, and their errors.

    `weights` has shape `(chain * draw,)` and sums to one. The standard errors are those of
    self-normalized importance sampling, √Σ w²(f - E_w f)², combined with the reference's.
    """
    flat = z.reshape(len(z), -1)
    mean = flat @ weights
    square = (flat - mean[:, None]) ** 2
    variance = square @ weights
    sd = np.sqrt(variance)
    mean_se = np.sqrt(square @ weights**2)
    variance_se = np.sqrt((square - variance[:, None]) ** 2 @ weights**2)
    sd_se = np.divide(variance_se, 2 * sd, out=np.zeros_like(sd), where=sd > 0)
    return {
        "mean_error_weighted": mean,
        "mean_error_weighted_mcse": np.hypot(mean_se, r.mean_se),
        "sd_ratio_weighted": sd,
        "sd_ratio_weighted_mcse": np.hypot(sd_se, sd * r.sd_se),
    }


def standardized(draws: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Draws `(P, chain, draw)` in units of the reference's sd, from its mean."""
    return (draws - mean[:, None, None]) / sd[:, None, None]


def halves(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split into even and odd chains, or a single chain into its first and last draws.

    Chains are independent of one another, so their halves also show what poor mixing adds.
    """
    if draws.shape[1] > 1:
        return draws[:, ::2], draws[:, 1::2]
    middle = draws.shape[2] // 2
    return draws[..., :middle], draws[..., middle:]


def is_constant(draws: np.ndarray, eps: float) -> np.ndarray:
    """Whether each parameter varies no more than rounding does at precision `eps`."""
    return np.ptp(draws, axis=(1, 2)) <= 16 * eps * np.abs(draws).max((1, 2))


def wasserstein(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """∫ |F_a⁻¹(p) - F_b⁻¹(p)| dp, exact for the two empirical distributions.

    `a` and `b` are sorted, `(P, N)` each. Both quantile functions are steps, and the steps of
    all parameters lie at the same probabilities, so one grid serves them all.
    """
    n, m = a.shape[1], b.shape[1]
    # Probabilities in units of 1/(n m), as integers: the steps of both sides, without rounding.
    steps = np.union1d(np.arange(n) * m, np.arange(m) * n)
    widths = np.diff(np.append(steps, n * m)) / (n * m)
    return np.abs(a[:, steps // m] - b[:, steps // n]) @ widths


def wasserstein_se(z: Moments, r: Moments) -> np.ndarray:
    """The Monte Carlo standard error of the Wasserstein distance.

    The distance is a difference of means, E_a h - E_b h, of the Kantorovich potential h, whose
    slope is the sign of F_b - F_a (Villani 2009, "Optimal transport", chapter 5). To first order h
    does not change with the draws, so that the error of the distance is that of the two means
    (Sommerfeld & Munk 2018, "Inference for empirical Wasserstein distances", JRSS B 80). Where the
    distributions are equal that order vanishes, and only the noise floor tells the noise. The
    effective sample size is the lesser of those of the mean and the sd.
    """
    n, m = z.sorted.shape[1], r.sorted.shape[1]
    pooled = np.concatenate([z.sorted, r.sorted], axis=1)
    order = np.argsort(pooled, axis=1, kind="stable")  # fast on two sorted runs
    gaps = np.diff(np.take_along_axis(pooled, order, 1), axis=1)
    # In units of 1/(n m), as integers: F_a = F_b is found without rounding.
    slope = -np.sign(np.cumsum(np.where(order < n, m, -n), axis=1)[:, :-1])
    potential = np.pad(np.cumsum(slope * gaps, axis=1), ((0, 0), (1, 0)))
    potential -= potential.mean(1, keepdims=True)
    of_z = np.where(order < n, potential, 0.0)
    both, ours = _sums(potential), _sums(of_z)
    variances = _variance(*ours, n), _variance(both[0] - ours[0], both[1] - ours[1], m)
    return np.sqrt(variances[0] / z.ess + variances[1] / r.ess)


def _sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.sum(1), np.einsum("pn,pn->p", x, x)


def _variance(total: np.ndarray, squares: np.ndarray, num: int) -> np.ndarray:
    return np.maximum(squares - total**2 / num, 0.0) / (num - 1)


def coverage(a: np.ndarray, b: np.ndarray, probability: float = 0.9) -> np.ndarray:
    """The share of `b` inside a central interval of `a`, both sorted, `(P, N)`."""
    low, high = (quantile(a, p)[:, None] for p in ((1 - probability) / 2, (1 + probability) / 2))
    return ((low <= b) & (b <= high)).mean(1)


def quantile(x: np.ndarray, p: float | np.ndarray) -> np.ndarray:
    """The quantiles of sorted `x`, `(P, N)`, linear between the draws.

    `p` is a number or `(P,)`; beyond 0 and 1 they are the extremes.
    """
    place = np.broadcast_to(np.clip(p, 0, 1) * (x.shape[1] - 1), len(x))
    below = np.minimum(place.astype(int), x.shape[1] - 2)
    rows = np.arange(len(x))
    low, high = x[rows, below], x[rows, below + 1]
    return low + (high - low) * (place - below)


def _sorted(draws: np.ndarray) -> np.ndarray:
    return np.sort(draws.reshape(len(draws), -1), axis=1)


def _ratio(
    name: str, z: tuple[np.ndarray, np.ndarray], r: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """Ratio of two widths and its standard error; each width comes with its own."""
    (width, se), (reference, reference_se) = z, r
    ratio = _over(width, reference)
    return {
        name: ratio,
        f"{name}_mcse": np.hypot(_over(se, reference), ratio * _over(reference_se, reference)),
    }


def _over(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b; NaN where b is 0, as widths of discrete parameters may be."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b > 0)
