"""Simulation-based calibration: does a way of fitting find what data were simulated from?"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from xarray import Dataset

from pyro_elbo_lab.inference.trees.datatree import variable
from pyro_elbo_lab.programs.arguments import check_count, check_programs
from pyro_elbo_lab.programs.messages import warn
from pyro_elbo_lab.programs.simulator import simulator
from pyro_elbo_lab.statistics.ranks import LEVEL, p_in_words, p_symmetric, p_uniform, pit, summarize
from pyro_elbo_lab.trust.calibration.simulations import Outcome, Task, common_randomness, run
from pyro_elbo_lab.trust.comparison.posteriors import labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Calibration", "sbc", "vsbc"]

Question = Literal["uniform", "symmetric"]

_MOST_NAMED = 3
_COMMON = 0.2
"""Correlation between the draws of simulations above which they are not independent."""


@dataclass(frozen=True, repr=False, eq=False)
class Calibration:
    """What `sbc` or `vsbc` found.

    Attributes:
        ranks: of the true value among the draws, an integer from 0 to `num_draws` for every
            latent and deterministic site, with dimensions (simulation, *dims of the site).
            `simulation` has the numbers of those that did not fail.
        num_draws: how many draws each true value is ranked among.
        question: what is asked of the ranks: "uniform" (`sbc`) or "symmetric" (`vsbc`).
        failures: why a simulation failed, by its number.
        notes: what else a reader should know.
    """

    ranks: Dataset
    num_draws: int
    question: Question
    failures: dict[int, str]
    notes: tuple[str, ...]

    @property
    def scalars(self) -> dict[str, np.ndarray]:
        """The ranks of each scalar parameter over the simulations."""
        found: dict[str, np.ndarray] = {}
        for values in self.ranks.data_vars.values():
            flat = values.values.reshape(values.sizes["simulation"], -1).T
            found |= dict(zip(labels(values.isel(simulation=0, drop=True)), flat, strict=True))
        return found

    def asking(self, question: Question) -> "Calibration":
        """The same ranks, asked whether they are "uniform", as in `sbc`, or "symmetric"."""
        return replace(self, question=question)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a scalar parameter.

        `p_uniform` and `p_symmetric` are p-values of the hypotheses that its ranks are uniform
        (ArviZ's pointwise tests, Cauchy combined) and symmetric (Butler 1969, exact). `shift`:
        by how many posterior sds the approximation is too high, and `sd_ratio`: its sd over that
        of the posterior, were both Gaussian; both understate large errors, as ranks among
        `num_draws` draws are bounded. `finding`: "uniform" or "symmetric" if the p-value times
        the number of parameters (Bonferroni) is at least 0.01, otherwise what is wrong.
        """
        table = pd.DataFrame([self._row(*pair) for pair in self.scalars.items()])
        wrong = table[f"p_{self.question}"] * len(table) < LEVEL
        table["finding"] = table["finding"].where(wrong, self.question)
        return table

    def _row(self, name: str, ranks: np.ndarray) -> dict[str, Any]:
        u = pit(ranks, self.num_draws)
        found = summarize(ranks, self.num_draws)
        lopsided = "shifted up" if np.mean(u) < 0.5 else "shifted down"
        return {
            "parameter": name,
            "p_uniform": p_uniform(u),
            "p_symmetric": p_symmetric(u),
            "shift": found.shift,
            "sd_ratio": found.sd_ratio,
            "finding": found.trouble if self.question == "uniform" else lopsided,
        }

    @property
    def calibrated(self) -> bool:
        """Whether no parameter's ranks contradict what is asked of them."""
        return bool((self.table["finding"] == self.question).all())

    def plot(self, max_parameters: int = 12) -> "Figure":
        """Draw the ranks: see `plot_sbc` and `plot_vsbc`, of which it is the one asked for."""
        from pyro_elbo_lab.figures.ranks import plot_sbc, plot_vsbc  # draw what is defined here

        return (plot_sbc if self.question == "uniform" else plot_vsbc)(self, max_parameters)

    def __str__(self) -> str:
        table = self.table
        wrong = table[table["finding"] != self.question].sort_values(f"p_{self.question}")
        count = f"{len(table)} parameter{'s' if len(table) > 1 else ''}"
        size = f"{self.ranks.sizes['simulation']} simulations"
        smallest = table[f"p_{self.question}"].min()
        if len(wrong):
            named = "; ".join(map(self._described, wrong.head(_MOST_NAMED).itertuples()))
            more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
            verdict = "Not calibrated" if self.question == "uniform" else "Biased"
            sentence = f"{verdict} in {len(wrong)} of {count} ({size}): {named}{more}."
        elif self.question == "uniform":
            sentence = (
                f"Calibrated as far as {size} can tell: the ranks of {count} agree with uniform "
                f"ones (smallest p = {smallest:.2g})."
            )
        else:
            sentence = (
                f"No bias that {size} could show: the ranks of {count} agree with symmetric ones "
                f"(smallest p = {smallest:.2g}), which says nothing of the widths."
            )
        return " ".join([sentence, *self.notes])

    __repr__ = __str__

    def _described(self, row: Any) -> str:
        numbers = [p_in_words(getattr(row, f"p_{self.question}"))]
        if "narrow" in row.finding or "wide" in row.finding:
            numbers.insert(0, f"sd ratio {row.sd_ratio:.2f}")
        if "shifted" in row.finding:
            numbers.insert(0, f"by {abs(row.shift):.2f} sd")
        return f"{row.parameter} is {row.finding} ({', '.join(numbers)})"


def sbc(
    model: Callable[..., Any],
    fit_fn: Callable[..., Any],
    *args: Any,
    num_simulations: int = 200,
    num_draws: int = 100,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> Calibration:
    """Simulation-based calibration of a way of fitting a model.

    Each simulation draws latents z and data x from the model, fits the model to x, and ranks z
    among draws of the fit. If the fit is the posterior p(z | x), z and the draws come from the same
    distribution, so that the ranks are uniform on 0 to `num_draws` (Talts, Betancourt, Simpson,
    Vehtari & Gelman 2018, "Validating Bayesian inference algorithms with simulation-based
    calibration"). An approximation that is too narrow has too many ranks at both ends; one that
    is too high has too many small ones. Calibration is an average over the prior: it does not say
    that the fit to the data at hand is right.

    The data are drawn by running the model with the sites that it observes left open: its
    arguments say in which shape, as in `model(x)`. Then `fit_fn(model_i, *args, **kwargs)` is
    called, where `model_i` is the model given the simulated data, to be called with the same
    arguments. Arguments that are the data themselves (or views of the same memory) hold the
    simulated data, for guides that read them. Simulations start with an empty param store and with
    seeds of their own, whatever runs them: a `joblib.parallel_config` can be a cluster of dask or
    ray. `fit_fn` has to make its guide itself, and must not draw with a fixed seed.

    Args:
        model: a Pyro model that observes its data.
        fit_fn: fits a model, and returns the result of `fit`, a DataTree with a posterior, or a
            dict of draws by site, each of shape (draws, *shape of the site). It has at least
            `num_draws` draws, of which as many are taken at even distances. Draws of a Markov
            chain should be many more, since autocorrelated ranks are not uniform. Draws of
            deterministic sites are ranked too.
        args: positional arguments of the model.
        num_simulations: how many, at least 10. With 200 an sd that is half or twice what it
            should be is found nearly always, one off by a fifth often not.
        num_draws: how many draws to rank among.
        n_jobs: processes at the same time, -1 for one a core; by default 1, or what
            `joblib.parallel_config` says.
        seed: of everything random.
        progress: whether to show a progress bar.
        kwargs: keyword arguments of the model.

    Returns:
        The ranks, with a table, a sentence and a figure. Simulations whose fit raised an error, or
        whose draws are not finite, are left out and named in `failures`.

    Raises:
        ValueError: the model cannot be simulated from (parameters to learn, factors, scaled sites,
            subsampled plates, improper priors, densities that read the data other than through
            `obs=`); draws of the wrong shape, too few, or of no site of the model.
        TypeError: `fit_fn` returns no draws.
        RuntimeError: fewer than 2 fits succeeded.

    Warns:
        UserWarning: fits failed, draws are autocorrelated, or the same in all simulations.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def too_narrow(model, x):  # the posterior is Normal(x / 2, 0.71)
        ...     return {"z": x / 2 + 0.3 * torch.randn(100)}
        >>> print(sbc(model, too_narrow, torch.tensor(1.0), num_simulations=100, progress=False))
        Not calibrated in 1 of 1 parameter (100 simulations): z is too narrow (sd ratio 0.5...
    """
    return _calibration(
        model, fit_fn, args, kwargs, num_simulations, num_draws, n_jobs, seed, progress, "uniform"
    )


def vsbc(
    model: Callable[..., Any],
    fit_fn: Callable[..., Any],
    *args: Any,
    num_simulations: int = 200,
    num_draws: int = 100,
    n_jobs: int | None = None,
    seed: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> Calibration:
    """Variational simulation-based calibration: is the center of an approximation biased?

    As `sbc`, but asks only whether the probabilities q(z < true z) are symmetric about 1/2, which
    they are for an approximation whose center is right on average, also where it is too narrow, as
    mean-field guides are (Yao, Vehtari, Simpson & Gelman 2018, "Yes, but did it work? Evaluating
    variational inference"). Too many small ones say that the approximation is too high, too many
    large ones that it is too low. Where q is narrow but skewed on one side, it can be both right on
    average and asymmetric.

    Arguments, errors and warnings are those of `sbc`.

    Returns:
        The ranks, with a table, a sentence and a histogram.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def too_narrow(model, x):  # the posterior is Normal(x / 2, 0.71)
        ...     return {"z": x / 2 + 0.3 * torch.randn(100)}
        >>> vsbc(model, too_narrow, torch.tensor(1.0), num_simulations=100, progress=False)
        No bias that 100 simulations could show: the ranks of 1 parameter agree with symmetric ...
    """
    return _calibration(
        model, fit_fn, args, kwargs, num_simulations, num_draws, n_jobs, seed, progress, "symmetric"
    )


def _calibration(
    model: Callable[..., Any],
    fit_fn: Callable[..., Any],
    args: tuple,
    kwargs: dict[str, Any],
    num_simulations: int,
    num_draws: int,
    n_jobs: int | None,
    seed: int,
    progress: bool,
    question: Question,
) -> Calibration:
    check_programs(model=model, fit_fn=fit_fn)
    check_count("num_simulations", num_simulations, least=10)
    check_count("num_draws", num_draws)
    simulate = simulator(model, args, kwargs)
    task = Task(simulate, fit_fn, num_draws, torch.get_default_dtype())
    outcomes = run(task, num_simulations, n_jobs, seed, progress)
    done = [i for i, outcome in enumerate(outcomes) if not outcome.failure]
    failures = {i: outcome.failure for i, outcome in enumerate(outcomes) if outcome.failure}
    if len(done) < 2:
        raise RuntimeError(f"{_failed(failures, num_simulations)}; there is nothing to rank.")
    dims = {variable(n): tuple(map(variable, found)) for n, found in simulate.dims.items()}
    names = [n for n in dims if all(n in outcomes[i].ranks for i in done)]
    ranks = Dataset(
        {
            n: (("simulation", *dims[n]), np.stack([outcomes[i].ranks[n] for i in done]))
            for n in names
        },
        coords={"simulation": done},
        attrs={"num_draws": num_draws},
    )
    missing = [n for n in dims if n not in names]
    notes = [f"fit_fn has no draws of {missing}."] if missing else []
    if simulate.left_out:
        notes.append(f"{list(simulate.left_out)} are masked and not ranked.")
    warned = _warnings([outcomes[i] for i in done], failures, num_simulations, num_draws)
    for text in warned:
        warn(text)
    ranks.attrs["notes"] = " ".join((*warned, *notes))
    return Calibration(ranks, num_draws, question, failures, (*warned, *notes))


def _warnings(
    done: Sequence[Outcome], failures: dict[int, str], num_simulations: int, num_draws: int
) -> list[str]:
    found = []
    if failures:
        found.append(
            f"{_failed(failures, num_simulations)}. They are left out: if fits fail where the "
            "truth is extreme, the other ranks are not uniform."
        )
    correlated = Counter(outcome.correlated for outcome in done if outcome.correlated)
    if correlated.total() > 0.2 * len(done):
        (name, _), *_ = correlated.most_common(1)
        found.append(
            f"In {correlated.total()} of {len(done)} simulations draws, such as those of '{name}', "
            f"have an effective sample size below {num_draws} / 2. Ranks among autocorrelated "
            "draws are not uniform: return more draws, or lower num_draws."
        )
    if (common := common_randomness(done)) > _COMMON:
        found.append(
            f"Draws of different simulations are alike (correlation {common:.2f}), as if fit_fn "
            "drew with a fixed seed: the ranks share its noise and are not uniform. Return the "
            "result of pyro_elbo_lab.inference.fitting.fit itself, or pass no seed."
        )
    return found


def _failed(failures: dict[int, str], num_simulations: int) -> str:
    counts = Counter(failures.values()).most_common(_MOST_NAMED)
    reasons = "; ".join(reason if n == 1 else f"{n} x {reason}" for reason, n in counts)
    return f"{len(failures)} of {num_simulations} simulations failed ({reasons})"
