"""Many simulated data sets, each fitted on its own, side by side through joblib."""

import os
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import joblib
import numpy as np
import pyro
import torch
from arviz_stats.base import array_stats
from joblib.parallel import get_active_backend
from scipy import stats
from torch import Tensor
from tqdm import tqdm
from xarray import DataTree

from pyro_elbo_lab.inference.fitting.fit import Fit
from pyro_elbo_lab.inference.trees.datatree import variable
from pyro_elbo_lab.programs.simulator import Simulated, Simulator
from pyro_elbo_lab.programs.state import seeded
from pyro_elbo_lab.statistics.ranks import ranks
from pyro_elbo_lab.trust.calibration.orphans import end_with

_ONE_AT_A_TIME = threading.RLock()
"""In a process: random states and the param store are those of all its threads."""

_CHECKED = 20
"""Elements of a parameter whose effective sample size is computed."""


class Outcome(NamedTuple):
    """What came of one simulation.

    Attributes:
        ranks: of the true value by parameter, (*shape); empty where the fit failed.
        failure: why it failed, or "".
        correlated: the parameter whose draws are too few for their autocorrelation, or "".
        order: normal scores of the first parameter's draws in their order, of mean 0 and sd 1.
    """

    ranks: dict[str, np.ndarray]
    failure: str = ""
    correlated: str = ""
    order: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """What every simulation needs, the same in each process; hashable, as dask asks.

    `owner` is the process that asks for the simulations.
    """

    simulator: Simulator
    fit_fn: Callable[..., Any]
    num_draws: int
    dtype: torch.dtype
    owner: int = field(default_factory=os.getpid)

    def __call__(self, seed: int, seed_of_draws: int) -> Outcome:
        """Simulate, fit and rank, with random states and a param store of its own.

        Raises:
            TypeError: if `fit_fn` returns something that holds no draws.
            ValueError: if its draws are too few, of the wrong shape, or of no known parameter.
        """
        end_with(self.owner)
        store = pyro.get_param_store()
        with _ONE_AT_A_TIME, seeded(seed), store.scope(), _default_dtype(self.dtype):
            try:
                simulated = self.simulator()
                result = self.fit_fn(simulated.model, *simulated.args, **simulated.kwargs)
                independent = isinstance(result, Fit)
                if independent:  # its default seed would be the same in all simulations
                    result = result.posterior(self.num_draws, seed=seed_of_draws)
            except Exception as error:  # one of many; it is reported
                return Outcome({}, _reason(error))
        return self._ranked(simulated, _draws(result), independent, np.random.default_rng(seed))

    def _ranked(
        self,
        simulated: Simulated,
        draws: Mapping[str, np.ndarray],
        independent: bool,
        rng: np.random.Generator,
    ) -> Outcome:
        found: dict[str, np.ndarray] = {}
        order, correlated = None, ""
        truths = {variable(site): value for site, value in simulated.truth.items()}
        for name, truth in truths.items():
            if name not in draws:
                continue
            _check(name, draws[name], truth.shape, self.num_draws)
            if not np.isfinite(draws[name]).all():
                return Outcome({}, f"draws of '{name}' are not finite")
            if not independent and not correlated and _too_few(draws[name], self.num_draws):
                correlated = name
            thinned = _thinned(draws[name], self.num_draws)
            found[name] = ranks(thinned, truth, rng)
            order = _order(thinned) if order is None else order
        if not found:
            raise ValueError(
                f"fit_fn returned draws of {sorted(draws)}, but the model's latent sites are "
                f"{sorted(truths)}; name the draws after the sites."
            )
        return Outcome(found, correlated=correlated, order=order)


def run(
    task: Task, num_simulations: int, n_jobs: int | None, seed: int, progress: bool
) -> list[Outcome]:
    """All simulations, in joblib's active backend; what comes out does not depend on it."""
    seeds = np.random.SeedSequence(seed).generate_state(2 * num_simulations).reshape(-1, 2)
    backend, _ = get_active_backend()
    generator = getattr(backend, "supports_return_generator", False)
    parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator" if generator else "list")
    found = parallel(joblib.delayed(task)(*map(int, pair)) for pair in seeds)
    return list(_shown(found, num_simulations, progress))


def _shown(found: Iterable[Outcome], total: int, progress: bool) -> Iterator[Outcome]:
    failed = 0
    with tqdm(total=total, desc="simulations", disable=not progress) as bar:
        for outcome in found:
            failed += bool(outcome.failure)
            if failed:
                bar.set_postfix(failed=failed, refresh=False)
            bar.update()
            yield outcome


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def common_randomness(outcomes: Iterable[Outcome]) -> float:
    """Mean correlation between the draws of two simulations, in their order.

    Near 0 for independent draws, near 1 if fits draw with the same seed.
    """
    orders = np.array([o.order for o in outcomes if o.order is not None])
    if len(orders) < 2:
        return 0.0
    size = len(orders)
    return float((size * np.mean(orders.mean(0) ** 2) - 1) / (size - 1))


def _draws(result: Any) -> dict[str, np.ndarray]:
    """Draws by parameter, (chain, draw, *shape)."""
    if isinstance(result, DataTree) and "posterior" in result.children:
        posterior = result["posterior"].dataset.transpose("chain", "draw", ...)
        return {str(name): array.values for name, array in posterior.data_vars.items()}
    if isinstance(result, Mapping) and result:
        return {variable(name): _array(values)[None] for name, values in result.items()}
    raise TypeError(
        f"fit_fn returned {type(result).__name__}; expected a DataTree with a posterior group, the "
        "result of pyro_elbo_lab.fit, or a dict of draws by site, each of shape (draws, ...)."
    )


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _check(name: str, draws: np.ndarray, shape: tuple[int, ...], num_draws: int) -> None:
    if draws.ndim < 2 or draws.shape[2:] != shape:
        raise ValueError(
            f"fit_fn returned draws of '{name}' of shape {draws.shape[2:]} each, but the site has "
            f"shape {shape}; a dict holds arrays of shape (draws, *shape of the site)."
        )
    found = draws.shape[0] * draws.shape[1]
    if found < num_draws:
        raise ValueError(
            f"fit_fn returned {found} draws of '{name}', but ranks are among {num_draws}: return "
            f"at least as many, or pass num_draws={found}."
        )


def _thinned(draws: np.ndarray, num_draws: int) -> np.ndarray:
    """`num_draws` evenly spaced draws, chains one after another."""
    flat = draws.reshape(-1, *draws.shape[2:])
    return flat[np.arange(num_draws) * len(flat) // num_draws]


def _too_few(draws: np.ndarray, num_draws: int) -> bool:
    """Whether an element has an effective sample size below half the number of ranked draws."""
    flat = draws.reshape(*draws.shape[:2], -1)[:, :, :_CHECKED]
    if draws.shape[1] < 4 or flat.dtype.kind != "f":
        return False
    sizes = [array_stats.ess(x, chain_axis=0, draw_axis=1) for x in np.moveaxis(flat, 2, 0)]
    return bool((np.array(sizes) < num_draws / 2).any())  # constant draws have none


def _order(draws: np.ndarray) -> np.ndarray | None:
    if draws.size == 0:
        return None
    scores = stats.rankdata(draws.reshape(len(draws), -1)[:, 0])
    spread = scores.std()
    return (scores - scores.mean()) / spread if spread > 0 else None


def _reason(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text or 'raised in ' + frames[-1].name}"
