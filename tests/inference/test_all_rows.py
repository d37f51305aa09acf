"""What the posterior of a fit on minibatches is scored on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from pyro_elbo_lab import Fit, StandardELBO, fit, from_guide, importance_diagnostics

SIZE = 50
X = torch.linspace(-1, 1, SIZE)
Y = 1 + 2 * X + 0.5 * torch.sin(37 * X)
ROWS = TensorDataset(X, Y)


def model(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    with pyro.plate("data", SIZE, subsample_size=len(x)):
        pyro.sample("y", dist.Normal(level + slope * x, 0.5), obs=y)


def short_fit(batches: Any, model: Any = model) -> Fit:
    pyro.set_rng_seed(0)
    guide = AutoNormal(model, init_scale=0.07)
    options: dict[str, Any] = {"num_steps": 8, "compile": False, "progress": False}
    return fit(model, guide, objective=StandardELBO(), batches=batches, **options)


def halves() -> list[tuple[Tensor, Tensor]]:
    return [(X[:20], Y[:20]), (X[20:], Y[20:])]


@pytest.mark.parametrize(
    "batches",
    [
        DataLoader(ROWS, batch_size=16, shuffle=True),
        DataLoader(ROWS, batch_size=16),
        DataLoader(ROWS, batch_size=10, drop_last=True),
        halves(),
        tuple(halves()),
        [(X, Y)],
    ],
)
def test_all_rows_are_scored(batches: Any) -> None:
    """log p - log q are those of all data at the same draws."""
    found = short_fit(batches)
    tree = found.posterior(300)
    draws = {n: torch.from_numpy(np.asarray(tree["posterior"][n])[0]) for n in ("slope", "level")}
    mean = draws["level"][:, None] + draws["slope"][:, None] * X
    log_p = dist.Normal(mean, 0.5).log_prob(Y).sum(1)
    log_p += sum(dist.Normal(0.0, 10.0).log_prob(x) for x in draws.values())
    np.testing.assert_allclose(np.asarray(tree["sample_stats"]["log_p"])[0], log_p, rtol=1e-4)
    assert tree["log_likelihood"]["y"].sizes["data"] == SIZE
    assert "notes" not in tree.attrs


class WithoutLength:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from halves()


@pytest.mark.parametrize(
    "batches, reason",
    [
        (WithoutLength(), r"no len\(\)"),
        (DataLoader(ROWS, batch_size=16, drop_last=True), "drops the last ones"),
        (DataLoader(ROWS, 16, sampler=RandomSampler(ROWS, replacement=True)), "with replacement"),
        (DataLoader(ROWS, 16, sampler=RandomSampler(ROWS, num_samples=20)), "with replacement"),
        ([(X[:20], Y[:20]), (X[:20], Y[:20])], "plate 'data' holds 40 of 50 rows"),
    ],
)
def test_or_nothing_is_scored(batches: Any, reason: str) -> None:
    found = short_fit(batches)
    with pytest.warns(UserWarning, match=reason) as caught:
        tree = found.posterior(300)
    assert len(caught) == 1
    assert "k-hat" in tree.attrs["notes"]
    assert set(tree["posterior"].data_vars) == {"slope", "level"}
    with pytest.raises(ValueError, match=r"no sample_stats\.log_weight.*its notes: .*k-hat"):
        importance_diagnostics(tree)
    whole = found.posterior(300, data=(X, Y))
    exact = from_guide(found.guide, model, X, Y)
    assert set(whole["sample_stats"].data_vars) == set(exact["sample_stats"].data_vars)


def test_arguments_that_are_not_rows() -> None:
    """A keyword-like number and a tensor that is the same in every batch go through as they are."""
    prior = torch.tensor([0.0, 10.0])

    def model(x: Tensor, prior: Tensor, scale: float) -> None:
        z = pyro.sample("z", dist.Normal(prior[0], prior[1]))
        with pyro.plate("data", SIZE, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    tree = short_fit([(X[:20], prior, 2.0), (X[20:], prior, 2.0)], model).posterior(100)
    assert "log_weight" in tree["sample_stats"]
    with pytest.warns(UserWarning, match="a float differs between batches"):
        short_fit([(X[:20], prior, 2.0), (X[20:], prior, 3.0)], model).posterior(100)


def test_too_many_numbers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = short_fit(halves())
    monkeypatch.setattr("pyro_elbo_lab.inference.fitting.all_rows.MOST_VALUES", 2500)
    assert "log_weight" in found.posterior(50)["sample_stats"]
    with pytest.warns(UserWarning, match="num_samples=50 is not"):
        found.posterior(51)


def test_a_model_that_takes_only_one_batch() -> None:
    def fixed(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * torch.ones(25), 1.0).to_event(1), obs=x)

    found = short_fit([X[:25], X[25:]], fixed)
    with pytest.warns(UserWarning, match="do not run on all rows at once"):
        tree = found.posterior(30)
    assert "sample_stats" not in tree.children


def test_a_part_of_the_rows_has_no_log_weights() -> None:
    guide = AutoNormal(model)
    with pytest.warns(UserWarning, match="no k-hat, as plate 'data' holds 20 of 50 rows") as caught:
        tree = from_guide(guide, model, X[:20], Y[:20])
    assert len(caught) == 1
    assert "sample_stats" not in tree.children
    assert "plate 'data' holds 20 of 50 rows" in tree.attrs["notes"]
