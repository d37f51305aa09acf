"""The scripts of `benchmarks/papers` run, and what they measure is what they say."""

import math
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from torch.testing import assert_close

from tests.benchmarks.papers import (
    bnn_renyi,
    caltech,
    k_hat,
    logistic_evidence,
    mnist,
)
from tests.benchmarks.papers.autoencoder import (
    OBJECTIVES,
    Network,
    auto_encoder,
    corrected_log_likelihood,
    held_out_log_likelihood,
)
from tests.benchmarks.papers.minibatches import Batches
from tests.benchmarks.papers.published import Result
from tests.support.tolerances import assert_mean_equals, critical_value

NUM_PIXELS = 784


def striped(num_images: int) -> np.ndarray:
    """Images with the upper or the lower half bright, and some noise; 0 or 1, (N, 784)."""
    rng = np.random.default_rng(0)
    upper = rng.random((num_images, 1)) < 0.5
    bright = (np.arange(NUM_PIXELS) < NUM_PIXELS // 2) == upper
    return (rng.random((num_images, NUM_PIXELS)) < np.where(bright, 0.9, 0.1)).astype(np.uint8)


@pytest.fixture
def silhouettes(tmp_path: Path) -> Path:
    """A file as `caltech` reads it."""
    path = tmp_path / "silhouettes.npz"
    bits = np.packbits(striped(1020), axis=1)
    np.savez(path, train=bits[:1000], test=bits[1000:])
    return path


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A file as `mnist` reads it."""
    path = tmp_path / "digits.npz"
    pixels = 255 * striped(1020).reshape(-1, 28, 28)
    np.savez(path, x_train=pixels[:1000], x_test=pixels[1000:])
    return path


def values(results: list[Result]) -> dict[str, tuple[float, float]]:
    return {result.name: result.ours for result in results}


def entropy() -> float:
    """Of the noise in `striped`, in nats: no model has a higher log-likelihood on average."""
    return NUM_PIXELS * -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))


def test_a_batch_keeps_rows_together_and_an_epoch_visits_each_once() -> None:
    x = torch.arange(10)
    batches = Batches((x, -x), 3)
    epochs = [list(batches) for _ in range(2)]
    assert [len(epoch) for epoch in epochs] == [len(batches)] * 2 == [3, 3]
    for epoch in epochs:
        first, second = (torch.cat(parts) for parts in zip(*epoch, strict=True))
        assert_close(first, -second)
        assert len(first.unique()) == 9
    assert [b.tolist() for b, _ in epochs[0]] != [b.tolist() for b, _ in epochs[1]]


def test_bernoulli_draws_pixels_anew() -> None:
    batches = Batches((torch.full((1000, 50), 0.3),), 1000, torch.bernoulli)
    (first,), (second,) = next(iter(batches)), next(iter(batches))
    assert not first.equal(second)
    assert_mean_equals(first.reshape(-1), 0.3)


def test_held_out_log_likelihood_is_the_evidence() -> None:
    """A decoder that ignores its code has p(x) by heart: the bound is tight for q = prior."""
    pixel_means = torch.tensor([0.2, 0.5, 0.9])
    model, guide = auto_encoder(Network((4,), 2), pixel_means)
    with torch.no_grad():
        guide(torch.zeros(1, 3))  # registers the encoder
        model(torch.zeros(1, 3))
        for name, value in pyro.get_param_store().items():
            if "weight" in name or "encoder" in name:
                value.zero_()
    images = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    exact = torch.distributions.Bernoulli(pixel_means).log_prob(images).sum(-1)
    found = held_out_log_likelihood(model, guide, images, num_particles=10)
    assert found.value == pytest.approx(exact.mean().item(), rel=1e-5)
    assert found.se == pytest.approx(exact.std(correction=0).item() / 2**0.5, rel=1e-5)
    corrected = corrected_log_likelihood(model, guide, images, num_particles=10, num_corrected=1)
    assert corrected == pytest.approx(found, rel=1e-5)


def test_correction_is_what_more_particles_add() -> None:
    """With a poor encoder a hundred particles fall short, and the correction makes it up."""
    torch.manual_seed(0)
    model, guide = auto_encoder(Network((4,), 2), torch.full((20,), 0.5))
    images = torch.bernoulli(torch.full((60, 20), 0.5))
    model(images), guide(images)  # register the networks
    with torch.no_grad():
        for name, parameter in pyro.get_param_store().items():
            parameter.mul_(4.0 if "decoder" in name else 1.0)
    direct = held_out_log_likelihood(model, guide, images, num_particles=4000)
    found = corrected_log_likelihood(model, guide, images, num_particles=4000, num_corrected=30)
    poor = held_out_log_likelihood(model, guide, images, num_particles=100)
    assert direct.value - poor.value > 0.2
    assert abs(found.value - direct.value) < 0.6 * (direct.value - poor.value)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_caltech_runs(name: str, silhouettes: Path) -> None:
    results = caltech.main(["--data", str(silhouettes), "--quick", "--objectives", name])
    ((value, se),) = values(results).values()
    start = -NUM_PIXELS * math.log(2)  # of pixels without any structure
    assert start + critical_value() * se < value < -entropy() + critical_value() * se
    assert results[0].published == (caltech.PUBLISHED[name, 5], 0.0)


def test_mnist_runs(digits: Path) -> None:
    results = mnist.main(["--data", str(digits), "--quick", "--particles", "1", "5"])
    assert list(values(results)) == ["VAE, K = 1", "VAE, K = 5", "IWAE, K = 5"]
    for value, se in values(results).values():
        limit = critical_value() * se
        assert entropy() - limit < value < NUM_PIXELS * math.log(2) - limit


def test_k_hat_is_on_the_published_side_of_the_threshold() -> None:
    found = values(k_hat.main(["--quick"]))
    assert found["non-centered: k-hat"][0] < 0.7 < found["centered: k-hat"][0]


def test_logistic_evidence_is_between_its_bounds(shared: Path) -> None:
    folder = str(shared / "data" / "uci")
    found = values(logistic_evidence.main(["--data", folder, "--quick", "--tasks", "sonar"]))
    published = logistic_evidence.TASKS["sonar"].evidence
    (low, low_se), (high, high_se) = found["sonar: lower bound"], found["sonar: upper bound"]
    assert low - critical_value() * low_se < published < high + critical_value() * high_se
    assert high - low < 0.05
    mean_field, se = found["sonar: mean-field ELBO"]
    optimum = logistic_evidence.TASKS["sonar"].mean_field
    assert abs(mean_field - optimum) < 0.05 + critical_value() * se


def test_logistic_tasks_are_standardized(shared: Path) -> None:
    for name in logistic_evidence.TASKS:
        x, y = logistic_evidence.load(shared / "data" / "uci", name)
        assert_close(x[:, 0], torch.ones(len(y)).double())
        assert_close(x[:, 1:].mean(0), torch.zeros(x.shape[1] - 1).double(), atol=1e-6, rtol=0)
        assert set(x[:, 1:].std(0, correction=0).round(decimals=6).tolist()) <= {0.0, 1.0}
        assert set(y.tolist()) == {0.0, 1.0}


def test_network_is_the_formula() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn((4, 3), generator=rng)
    w = torch.randn((5, bnn_renyi.num_weights(3)), generator=rng)
    found = bnn_renyi.network(w, x)
    for particle, values_of in zip(w, found, strict=True):
        inner, rest = particle[:150].reshape(3, 50), particle[150:]
        hidden = torch.relu(x @ inner + rest[:50])
        assert_close(values_of, hidden @ rest[50:100] + rest[100])


def test_a_split_is_standardized_by_its_training_part() -> None:
    table = np.random.default_rng(0).normal(3.0, 2.0, size=(50, 4))
    part = bnn_renyi.split(table, seed=1)
    assert (part.x.shape, part.x_test.shape) == ((45, 3), (5, 3))
    assert_close(part.x.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    rows = torch.cat([part.center + part.scale * part.y, part.y_test])
    assert_close(rows.sort().values, torch.from_numpy(table[:, -1]).float().sort().values)


def test_networks_learn_a_line(tmp_path: Path) -> None:
    """Test error falls below that of the mean, for which -log p is the log of the sd, plus 1.42."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, 2))
    y = 10 * x[:, 0] + rng.normal(size=700)
    np.savetxt(tmp_path / "yacht.txt", np.column_stack([x, y]))
    folder = str(tmp_path)
    arguments = ["--data", folder, "--quick", "--tasks", "yacht", "--alphas", "0.5"]
    found = values(bnn_renyi.main(arguments))
    assert found["yacht, alpha = 0.5: RMSE"][0] < 0.9 * y.std()
    assert found["yacht, alpha = 0.5: -log p (nats)"][0] < math.log(y.std()) + 1.42


def test_a_result_s_row() -> None:
    result = Result("x", (-1.0, 0.0), (-1.25, 0.1), "why", 1)
    assert result.cells() == ["x", "-1.0", "-1.2 ± 0.1", "-0.2", "why"]
