"""A model that names the rows of its minibatch, beside guides whose plates draw their own."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from torch import Tensor

from pyro_elbo_lab import (
    AnalyticKLELBO,
    ImportanceWeightedELBO,
    StandardELBO,
    compiled,
    fit,
    from_guide,
)

SIZE = 40
X = 0.2 * torch.arange(SIZE)


def model(rows: Tensor, x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", SIZE, subsample=rows) as seen:
        pyro.deterministic("seen", seen, event_dim=0)
        z = pyro.sample("z", dist.Normal(mean, 10.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local(rows: Tensor, x: Tensor) -> None:
    with pyro.plate("data", SIZE, subsample=rows):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def batch(*rows: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(rows), X[list(rows)]


def mixed(model: Callable[..., Any]) -> AutoGuideList:
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["z"])))
    guide.append(AutoDiagonalNormal(poutine.block(model, expose=["mean"])))
    return guide


def placed(**keywords: Any) -> AutoNormal:
    """Each latent of a row at its datum, without noise to speak of."""
    guide = AutoNormal(local, init_scale=1e-3, **keywords)
    guide(*batch(1, 5, 7))
    with torch.no_grad():
        guide.locs.z.copy_(X)
    return guide


@pytest.mark.parametrize(
    "objective", [StandardELBO(2), StandardELBO(3, vectorize_particles=True), AnalyticKLELBO()]
)
def test_the_rows_that_the_model_names_are_scored(objective: Any) -> None:
    """If data met the latents of other rows, the likelihood would be far below its maximum."""
    guide = placed()
    for rows in [(1, 5, 7), (39, 0, 20), (9, 3), (30,), tuple(range(39, -1, -1))]:
        z = X[list(rows)].double()
        prior = dist.Normal(0.0, 10.0).log_prob(z).sum()
        likelihood = len(rows) * dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0))
        entropy = len(rows) * dist.Normal(0.0, 1e-3).entropy()
        exact = -SIZE / len(rows) * float(prior + likelihood + entropy)
        noise = 5 * SIZE / len(rows) ** 0.5  # of log q at the draws
        assert abs(objective.loss(local, guide, *batch(*rows)) - exact) < noise


@pytest.mark.parametrize(
    "make",
    [AutoNormal, AutoDelta, AutoNormalMessenger, mixed],
    ids=lambda make: make.__name__,
)
def test_of_every_autoguide_with_a_plate(make: Callable[..., Any]) -> None:
    guide = make(model)
    seen = []

    def watched(rows: Tensor, x: Tensor) -> None:
        trace = poutine.trace(model).get_trace(rows, x)
        seen.append(trace.nodes["seen"]["value"].tolist())

    for rows in [(1, 5, 7), (9, 3)]:
        loss = StandardELBO(2).loss(watched, guide, *batch(*rows))
        assert torch.isfinite(torch.tensor(loss))
        assert seen[-1] == list(rows)


def test_a_last_batch_of_another_size_in_a_weighted_bound() -> None:
    guide, objective = placed(), ImportanceWeightedELBO(3)
    close = objective.loss(local, guide, *batch(9, 3))
    with torch.no_grad():
        guide.locs.z.copy_(X.flip(0))
    assert objective.loss(local, guide, *batch(9, 3)) > close + 100


@pytest.mark.parametrize("compile", [False, True])
def test_a_fit_finds_the_mean_of_every_row(compile: bool) -> None:
    batches = [batch(*rows) for rows in (range(39, 23, -1), range(23, 7, -1), range(7, -1, -1))]
    pyro.set_rng_seed(0)
    guide = AutoNormal(local, init_scale=0.5)
    optimizer = pyro.optim.Adam({"lr": 0.2})
    found = fit(
        local,
        guide,
        objective=StandardELBO(4),
        optimizer=optimizer,
        batches=batches,
        num_steps=450,
        compile=compile,
        progress=False,
    )
    assert found.compilation.startswith("compiled" if compile else "eager")
    assert float((guide.locs.z.detach() - X).abs().max()) < 0.6
    assert guide.create_plates is None
    # one pass of the batches is all rows, out of order
    tree = found.posterior(200)
    assert tree["posterior"]["z"].sizes["data"] == SIZE
    assert "log_weight" in tree["sample_stats"]


def test_compiled_losses_follow_the_rows() -> None:
    guide = placed()
    objective = compiled(StandardELBO(2))
    losses = [objective.loss(local, guide, *batch(*rows)) for rows in [(1, 5, 7), (30, 31, 32)]]
    with torch.no_grad():
        guide.locs.z.copy_(X.flip(0))
    elsewhere = objective.loss(local, guide, *batch(1, 5, 7))
    assert max(losses) < elsewhere - 100


def test_a_guide_of_ones_own_gets_the_rows_or_an_error() -> None:
    def guide(rows: Tensor, x: Tensor) -> None:
        with pyro.plate("data", SIZE, subsample_size=3) as seen:
            drawn.append(seen.tolist())
            pyro.sample("z", dist.Normal(0.0, 1.0))

    drawn: list[list[int]] = []
    StandardELBO().loss(local, guide, *batch(1, 5, 7))
    assert drawn[-1] == [1, 5, 7]
    with pytest.raises(ValueError, match=r"Plate 'data': the model names 2 rows.*has 3.*create_p"):
        StandardELBO().loss(local, guide, *batch(1, 5))


@pytest.mark.parametrize(
    "make", [AutoDiagonalNormal, AutoMultivariateNormal, AutoLaplaceApproximation, AutoStructured]
)
def test_guides_with_a_parameter_a_place_are_refused(make: Callable[..., Any]) -> None:
    guide = make(local)
    with pytest.raises(ValueError, match=r"names 3 of 40 rows of plate 'data'.*each place"):
        StandardELBO().loss(local, guide, *batch(1, 5, 7))


def test_they_take_all_rows_in_their_order() -> None:
    rows = torch.arange(SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tree = from_guide(AutoDiagonalNormal(local), local, rows, X, num_samples=3)
    assert tree["posterior"]["z"].shape == (1, 3, SIZE)


def test_of_rows_drawn_at_random_they_warn() -> None:
    def subsampled() -> None:
        with pyro.plate("data", SIZE, subsample_size=8):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match="Plate 'data' is subsampled, but AutoDiagonalNormal"):
        StandardELBO().loss(subsampled, AutoDiagonalNormal(subsampled))


def test_all_rows_in_another_order() -> None:
    """Where Pyro selects none of the parameters' rows, as with plates that the guide makes."""
    rows = torch.arange(SIZE).flip(0)

    def plates(rows: Tensor, x: Tensor) -> Any:
        return pyro.plate("data", SIZE, subsample=rows)

    for guide in (placed(), placed(create_plates=plates)):
        losses = [StandardELBO(4).loss(local, guide, r, X[r]) for r in (rows, rows.flip(0))]
        assert abs(losses[0] - losses[1]) < 5 * SIZE**0.5  # log q at the draws is their noise
        pyro.clear_param_store()


def test_create_plates_is_left_alone() -> None:
    def plates(rows: Tensor, x: Tensor) -> Any:
        return pyro.plate("data", SIZE, subsample=rows)

    guide = placed(create_plates=plates)
    close = StandardELBO(2).loss(local, guide, *batch(30, 31))
    with torch.no_grad():
        guide.locs.z.copy_(X.flip(0))
    assert StandardELBO(2).loss(local, guide, *batch(30, 31)) > close + 100
    assert guide.create_plates is plates
