"""log p(x) between bounds: from below by a guide, from above by draws of the posterior."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from xarray import Dataset, DataTree

from pyro_elbo_lab.objectives.bounds import log_mean_exp, mean
from pyro_elbo_lab.objectives.particles.guide_values import guide_values
from pyro_elbo_lab.objectives.particles.layout import Layout, lay_out, linear
from pyro_elbo_lab.objectives.particles.probe import Probe, probe
from pyro_elbo_lab.objectives.particles.sampling import Drawing, draw
from pyro_elbo_lab.objectives.particles.scored import Particles
from pyro_elbo_lab.objectives.target import totals
from pyro_elbo_lab.programs.arguments import check_count, check_programs
from pyro_elbo_lab.programs.dims import subsampled_plate
from pyro_elbo_lab.programs.enumeration import Site
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.state import forget_namesakes
from pyro_elbo_lab.programs.structure.analysis import Structure
from pyro_elbo_lab.programs.structure.factors import FactorKey
from pyro_elbo_lab.statistics.importance import diagnose
from pyro_elbo_lab.statistics.tolerances import MIN_DRAWS_PER_CHAIN
from pyro_elbo_lab.trust.comparison.posteriors import posterior
from pyro_elbo_lab.trust.comparison.sources import as_tree
from pyro_elbo_lab.trust.evidence.ladder import (
    LADDER,
    LEAST_GROUPS,
    Row,
    best,
    doubted,
    lower_rows,
    upper_rows,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Bound", "EvidenceBounds", "evidence"]

_VALUES_AT_ONCE = 4_000_000


class Bound(NamedTuple):
    """A bound of log p(x), or another quantity in nats, with its standard error."""

    name: str
    value: float
    se: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.se:.3f} ({self.name})"


@dataclass(frozen=True, repr=False)
class EvidenceBounds:
    """What `evidence` found, in nats.

    Attributes:
        table: all bounds: `name`, `num_draws` (K), `side` ("lower", "upper", or "estimate" for
            what is no bound), `value`, `se`, `believable` and `reason`.
        lower: the tightest believable lower bound of log p(x), None if there is none.
        upper: the tightest believable upper bound, None if there is none.
        jeffreys: KL(q || p) + KL(p || q) = EUBO - ELBO; None without a reference.
        k_hat: of the joint importance weights.
        notes: what could not be computed, and why.
    """

    table: pd.DataFrame
    lower: Bound | None
    upper: Bound | None
    jeffreys: Bound | None
    k_hat: float
    notes: tuple[str, ...]

    @property
    def width(self) -> float:
        """Upper minus lower bound, in nats; infinite where one is missing."""
        if self.lower is None or self.upper is None:
            return math.inf
        return self.upper.value - self.lower.value

    def plot(self) -> "Figure":
        """Draw the ladder of bounds; see `evidence_plot.plot_evidence`."""
        from pyro_elbo_lab.figures.ladder import plot_evidence  # draws what is defined here

        return plot_evidence(self)

    def __str__(self) -> str:
        sides = {"at least": self.lower, "at most": self.upper}
        found = [f"{words} {bound}" for words, bound in sides.items() if bound is not None]
        if not found:
            return "log p(x): no reliable bound."
        sentence = f"log p(x) is {', '.join(found)} nats."
        if self.lower is not None and self.upper is not None:
            error = math.hypot(self.lower.se, self.upper.se)
            sentence += (
                f" The bounds are {self.width:.3f} nats apart."
                if self.width > 2 * error
                else f" The bounds agree to within their error, {2 * error:.3f} nats."
            )
        if self.jeffreys is not None:
            sentence += (
                f" Jeffreys divergence {self.jeffreys.value:.3f} ± {self.jeffreys.se:.3f} nats."
            )
        return " ".join([sentence, *self.notes])

    __repr__ = __str__


def evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    reference: Any = None,
    num_samples: int = 50_000,
    **kwargs: Any,
) -> EvidenceBounds:
    """Bound the evidence log p(x) from below and from above.

    With log-weights l = log p(x, z) - log q(z), w = exp(l), draws z_k of the guide and draws z_* of
    the posterior,

        ELBO = E_q[l]  <=  IW_K = E_q[log mean_k w_k]  <=  log p(x)
        log p(x)  <=  reverse IW_K = E[log mean(w_*, w_2, ..., w_K)]  <=  EUBO = E_p[l]
        log p(x)  <=  CUBO_2 = log E_q[w^2] / 2

    IW_K and its reverse close in on log p(x) as K grows. Where latents are local to plates, each
    index is a cell with weights of its own given the shared latents ("IW in cells"; "10 x" weighs
    ten draws of the shared latents too). "jackknife" (Nowozin 2018) and "PSIS", the logarithm of
    the mean Pareto smoothed weight, are estimates and bound nothing.

    What is believed:

    - a lower bound that is the mean of at least 20 independent finite estimates, since averages of
      logarithms have light upper tails;
    - CUBO_2 if k-hat of the squared weights is at most min(1 - 1/log10 S, 0.7), as the estimate of
      a heavy-tailed mean falls short (Vehtari et al. 2024), and if no reliable reference shows a
      region that the guide's draws miss: of such a region neither CUBO_2 nor k-hat knows;
    - bounds from the reference if it is reliable and their mean has an effective sample size of
      100, or of half the draws in it where there are fewer.

    `lower` and `upper` are the tightest believable ones, compared at two standard errors on the
    safe side, so that noise is not taken for tightness.

    Args:
        model: a Pyro model; its parameters are as they are.
        guide: a fitted guide.
        args: positional arguments of both.
        reference: draws of the posterior for the upper bounds: a `DataTree` such as `nuts` returns,
            over (chain, draw), a finished `MCMC`, or a dict of independent draws by latent, draws
            first. Where it has
            an attribute `reliable` = 0 its bounds are not believed.
        num_samples: draws of the guide, at least 100.
        kwargs: keyword arguments of both.

    Returns:
        The bounds. Set `pyro.set_rng_seed` first to be able to repeat them.

    Raises:
        ValueError: fewer than 100 draws; a guide that does not fit the model, or is a point; a
            log-weight that is NaN or infinite; a reference of which no latent is the model's, or
            whose draws are too few, NaN, or of another shape.
        TypeError: a reference of another kind; `num_samples` is no integer.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders; Grosse, Ghahramani
        and Adams (2015), Sandwiching the marginal likelihood using bidirectional Monte Carlo;
        Sobolev and Vetrov (2019), Importance weighted hierarchical variational inference; Dieng et
        al. (2017), Variational inference via chi upper bound minimization; Nowozin (2018),
        Debiasing evidence approximations.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("z", dist.Normal(0.6, 0.8))
        >>> pyro.set_rng_seed(0)
        >>> draws = {"z": 0.5 + 0.5**0.5 * torch.randn(4000)}  # of the posterior at x = 1
        >>> bounds = evidence(model, guide, torch.tensor(1.0), reference=draws)
        >>> round(bounds.lower.value, 1), round(bounds.upper.value, 1)  # log p(x) = -1.5155
        (-1.5, -1.5)
    """
    check_programs(model=model, guide=guide)
    check_count("num_samples", num_samples, least=100)
    reference = _checked(reference)
    forget_namesakes(guide)
    run = _Run(Pair(model, guide, args, kwargs))
    _refuse_points(run.structure)
    if reference is not None and not run.subsampled:
        run.check_reference(reference)
    log_weights = run.log_weights(num_samples)
    _refuse_infinite(log_weights)
    notes = []
    if run.subsampled:
        rows = [row for row in lower_rows(log_weights) if row.name == "ELBO"]
        notes.append(
            f"Plate '{run.subsampled}' is subsampled: importance-weighted and upper bounds need "
            "all data."
        )
    else:
        rows = lower_rows(log_weights)
    cell_rows, cell_notes = run.cell_rows(num_samples)
    rows += cell_rows
    notes += cell_notes
    if reference is not None and not run.subsampled:
        at_reference, complaint = run.at_reference(reference), _complaint(reference)
        rows = rows if complaint else doubted(rows, at_reference, log_weights)
        rows += upper_rows(at_reference, log_weights, complaint)
    upper = best(rows, "upper")
    if upper is not None and upper.name == "CUBO_2" and not _has_reliable(reference):
        notes.append("The upper bound does not count modes that the guide never draws from.")
    return EvidenceBounds(
        table=pd.DataFrame([asdict(row) for row in rows]),
        lower=_bound(best(rows, "lower")),
        upper=_bound(upper),
        jeffreys=_jeffreys(rows),
        k_hat=diagnose(log_weights).k_hat,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Run:
    """Model and guide, ready to be drawn from."""

    pair: Pair

    @property
    def known(self) -> Probe:
        return self.pair.once(probe)

    @property
    def structure(self) -> Structure:
        return self.known.structure

    @property
    def sites(self) -> dict[FactorKey, Site]:
        return self.known.sites

    @property
    def subsampled(self) -> str:
        """The name of a plate that holds a part of the data, or ""."""
        plate = subsampled_plate(self.sites.values())
        return plate.name if plate else ""

    def draw(self, layout: Layout, given: Any = None, **options: Any) -> Particles:
        how = Drawing(self.structure, layout, vectorize=self.known.vectorizable, **options)
        with torch.no_grad():
            return draw(self.pair, how, given)

    def log_weights(self, num_draws: int) -> np.ndarray:
        """Log-weights of the guide's draws, (num_draws,)."""
        parts = [self.draw(linear(), num_outer=size) for size in self._chunks(num_draws)]
        return np.concatenate([_numpy(totals(part, mean)) for part in parts])

    def at_reference(self, reference: Any) -> np.ndarray:
        """Log-weights of the reference's draws, (chain, draw)."""
        values = guide_values(reference, self.structure, self.pair.guide)
        num_draws = len(next(iter(values.values())))
        parts, start = [], 0
        for size in self._chunks(num_draws):
            given = {name: value[start : start + size] for name, value in values.items()}
            parts.append(_numpy(totals(self.draw(linear(), num_outer=size, given=given), mean)))
            start += size
        return np.concatenate(parts).reshape(_num_chains(reference), -1)

    def check_reference(self, reference: Any) -> None:
        """Refuse draws that are not those of the guide's latents, before anything is computed."""
        for name, values in guide_values(reference, self.structure, self.pair.guide).items():
            expected = self.sites[FactorKey("guide", name)]["value"]
            if values[0].numel() != expected.numel():
                raise ValueError(
                    f"The reference has draws of shape {tuple(values.shape[1:])} for latent "
                    f"'{name}' of the guide, which has shape {tuple(expected.shape)}: the draws "
                    "must be those of the same model on the same data, draws first."
                )
            if wrong := int((~values.isfinite()).sum()):
                raise ValueError(
                    f"The reference has {wrong} NaN or infinite values for latent '{name}' of the "
                    "guide: remove these draws, or repair the run."
                )

    def cell_rows(self, num_draws: int) -> tuple[list[Row], list[str]]:
        """Importance-weighted bounds with weights for every cell of the local plates."""
        layout = lay_out(self.structure, "auto")
        if not any(layout.cells.values()):
            return [], []
        name = self.known.touching(layout)
        if name is not None:
            return [], [f"The cells of '{name}' are not independent: joint weights only."]
        rows: list[Row] = []
        for k in LADDER[1:3]:
            groups = num_draws // k
            sizes = self._chunks(groups, k)
            try:
                parts = [self.draw(layout, num_inner=k, num_outer=size) for size in sizes]
            except ValueError as error:
                return rows, [f"No weights by cells: {error}"]
            estimates = np.concatenate([_numpy(totals(part, log_mean_exp)) for part in parts])
            rows += _cell_row(estimates, k, layout.reason, bool(self.subsampled))
        return rows, []

    def _chunks(self, num_draws: int, num_inner: int = 1) -> list[int]:
        """How many outer particles to draw at a time, so that no site takes too much memory."""
        largest = max(site["value"].numel() for site in self.sites.values())
        most = max(1, _VALUES_AT_ONCE // (largest * num_inner))
        return [min(most, num_draws - start) for start in range(0, num_draws, most)]


def _cell_row(estimates: np.ndarray, num_inner: int, reason: str, subsampled: bool) -> list[Row]:
    """The mean of T_m, and of log-mean-exp over groups of ten outer particles."""
    rows = []
    for num_outer in (1,) if subsampled else (1, 10):
        groups = estimates[: len(estimates) // num_outer * num_outer].reshape(-1, num_outer)
        if len(groups) < LEAST_GROUPS:
            continue
        values = np.logaddexp.reduce(groups, axis=1) - math.log(num_outer)
        name = "IW in cells" if num_outer == 1 else "10 x IW in cells"
        se = float(values.std(ddof=1) / math.sqrt(len(values)))
        text = f"{reason}; mean of {len(values)} independent estimates"
        rows.append(Row(name, "lower", num_inner, float(values.mean()), se, True, text))
    return rows


def _refuse_points(structure: Structure) -> None:
    """A latent that the guide sets to a number has no density, and no importance weight."""
    if structure.points:
        raise ValueError(
            f"The guide sets {list(structure.points)} to single values (AutoDelta, a Delta site), "
            "which have no density: no bound of log p(x) follows. Use a guide that draws at random."
        )


def _refuse_infinite(log_weights: np.ndarray) -> None:
    if np.isfinite(log_weights).all():
        return
    wrong = np.count_nonzero(~np.isfinite(log_weights))
    raise ValueError(
        f"{wrong} of {log_weights.size} log-weights of the guide's draws are not finite, so that "
        "the ELBO is -inf or undefined. A guide must put its draws inside the model's support: "
        "`from_guide(guide, model, ...).sample_stats` shows log_p and log_q of each draw."
    )


def _checked(reference: Any) -> Any:
    """A reference of one of the kinds that `evidence` takes, or an error."""
    if reference is None:
        return None
    is_mapping = isinstance(reference, Mapping) and not isinstance(reference, Dataset | DataTree)
    if not is_mapping:
        tree = as_tree(reference, "reference")
        posterior(tree, "reference")
        return tree
    lengths = {}
    for name, values in reference.items():
        array = np.asarray(values)
        if array.dtype.kind not in "fiub" or not array.ndim or not len(array):
            raise TypeError(
                f"The reference has {array.dtype} values of shape {array.shape} for '{name}'; "
                "expected independent draws of latents by name, draws first."
            )
        lengths[name] = len(array)
        if len(array) < MIN_DRAWS_PER_CHAIN:
            raise ValueError(
                f"The reference has {len(array)} draws of '{name}'; at least {MIN_DRAWS_PER_CHAIN} "
                "are needed to tell how certain a bound is."
            )
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"The reference has different numbers of draws, {lengths or 'none at all'}; expected "
            "equally many of each latent, draws first."
        )
    return reference


def _complaint(reference: Any) -> str:
    attrs = getattr(reference, "attrs", {})
    if int(attrs.get("reliable", 1)):
        return ""
    return f"the reference is {attrs.get('reliability', 'not reliable')}"


def _has_reliable(reference: Any) -> bool:
    return reference is not None and not _complaint(reference)


def _num_chains(reference: Any) -> int:
    return reference["posterior"].sizes["chain"] if isinstance(reference, DataTree) else 1


def _jeffreys(rows: list[Row]) -> Bound | None:
    by_name = {row.name: row for row in rows}
    if "EUBO" not in by_name or not math.isfinite(by_name["EUBO"].value):
        return None
    upper, lower = by_name["EUBO"], by_name["ELBO"]
    return Bound("Jeffreys", upper.value - lower.value, math.hypot(upper.se, lower.se))


def _bound(row: Row | None) -> Bound | None:
    if row is None:
        return None
    name = (
        row.name if row.num_draws == 1 or row.side == "estimate" else f"{row.name} {row.num_draws}"
    )
    return Bound(name, row.value, row.se)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(np.float64)
