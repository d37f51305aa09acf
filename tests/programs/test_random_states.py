"""Nothing moves the caller's random states, but what says that it draws from torch's."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_elbo_lab import (
    ImportanceWeightedELBO,
    StandardELBO,
    compare,
    decompose,
    evidence,
    from_guide,
    from_predictive,
    importance_diagnostics,
    k_hat,
    linear_response,
    loo_approximate_posterior,
    nuts,
    plot_errors,
    plot_pairs,
    resampled,
    sbc,
    signal_to_noise,
    site_dims,
    weighted,
)

X = torch.tensor([0.5, -1.0, 2.0])


def model(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 3):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local(x: Tensor) -> None:
    with pyro.plate("row", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def mixing(x: Tensor) -> None:
    """Its cells are not independent."""
    with pyro.plate("row", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + z.flip(-1), 1.0), obs=x)


def states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]


def exact(model: Any, x: Tensor) -> dict[str, Tensor]:
    return {"z": x[None] / 2 + torch.randn(20, 3) / 2**0.5}


def called(model: Any) -> AutoNormal:
    pyro.clear_param_store()
    guide = AutoNormal(model)
    guide(X)
    return guide


def reference() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"mean": rng.normal(size=(4, 100)), "z": rng.normal(size=(4, 100, 3))}


OF_A_TREE: dict[str, Callable[[Any], Any]] = {
    "compare": lambda tree: compare({"q": tree}, reference()).summary,
    "importance_diagnostics": importance_diagnostics,
    "k_hat": lambda tree: k_hat(tree["sample_stats"]["log_weight"].values),
    "resampled": resampled,
    "weighted": weighted,
    "loo": loo_approximate_posterior,
    "plot_forest": lambda tree: compare({"q": tree}, reference()).plot_forest(),
    "plot_pairs": lambda tree: plot_pairs(compare({"q": tree}, reference())),
    "plot_errors": lambda tree: plot_errors(compare({"q": tree}, reference())),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", OF_A_TREE)
def test_functions_of_a_tree(name: str) -> None:
    tree = from_guide(called(model), model, X, num_samples=100)
    before = states()
    OF_A_TREE[name](tree)
    assert states() == before


OF_PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "decompose": lambda guide: decompose(model, guide, X, num_samples=50),
    "linear_response": lambda guide: linear_response(model, guide, X, num_samples=64),
    "signal_to_noise": lambda guide: signal_to_noise(
        {"ELBO": StandardELBO()}, model, guide, X, num_evaluations=3
    ),
    "explain": lambda guide: ImportanceWeightedELBO(3).explain(model, guide, X),
    "site_dims": lambda guide: site_dims(model, X),
    "nuts": lambda guide: nuts(model, X, num_warmup=50, num_samples=50, progress=False),
    "sbc": lambda guide: sbc(local, exact, X, num_simulations=12, num_draws=20, progress=False),
    "from_predictive": lambda guide: from_predictive({"x": torch.zeros(5, 3)}, model, X),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", OF_PROGRAMS)
def test_functions_of_programs(name: str) -> None:
    guide = called(model)
    before = states()
    OF_PROGRAMS[name](guide)
    assert states() == before


def test_what_draws_says_so_and_leaves_the_others() -> None:
    guide = called(model)
    calls: dict[Callable[..., Any], Callable[[], Any]] = {
        from_guide: lambda: from_guide(guide, model, X, num_samples=10),
        evidence: lambda: evidence(model, guide, X, num_samples=200),
    }
    for function, call in calls.items():
        assert "set_rng_seed" in (function.__doc__ or "")
        before = states()
        call()
        of_torch, *others = states()
        assert others == before[1:] and of_torch != before[0]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_dependent_cells_are_found_without_gradients_too(context: Callable[[], Any]) -> None:
    guide = called(mixing)
    with context():
        tree = from_guide(guide, mixing, X, num_samples=50)
        found = evidence(mixing, guide, X, num_samples=200)
    assert "cell_log_weight" not in tree["sample_stats"]
    assert any("are not independent: joint weights only" in note for note in found.notes)
    assert not found.table["name"].str.contains("in cells").any()
    guide = called(local)
    with context():
        tree = from_guide(guide, local, X, num_samples=50)
    assert tree["sample_stats"]["cell_log_weight"].sizes["row"] == 3


def test_looking_for_dependent_cells_takes_no_random_numbers() -> None:
    """As many numbers are drawn with cells to look at as without."""

    def guide(x: Tensor) -> None:
        with pyro.plate("row", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def without_plate(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + z.flip(-1), 1.0).to_event(1), obs=x)

    def its_guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    after = []
    for program in ((mixing, guide), (without_plate, its_guide)):
        pyro.set_rng_seed(0)
        evidence(*program, X, num_samples=200)
        after.append(torch.rand(()).item())
    assert after[0] == after[1]


def test_a_model_that_draws_by_other_means() -> None:
    """Runs that only look at the structure are undone in numpy's and Python's states too."""

    def foreign(x: Tensor) -> None:
        np.random.rand()
        random.random()
        model(x)

    guide = called(foreign)
    before = states()
    StandardELBO().explain(foreign, guide, X)
    assert states() == before
