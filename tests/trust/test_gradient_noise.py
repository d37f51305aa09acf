"""Signal-to-noise ratios against closed forms."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from scipy import stats

from pyro_elbo_lab import StandardELBO, compiled, signal_to_noise
from tests.support.tolerances import FALSE_ALARM_RATE

LOC, SCALE, N = 1.5, 0.4, 2000


def model() -> None:
    pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def guide() -> None:
    loc = pyro.param("loc", torch.tensor([LOC, 0.0]))
    pyro.sample("z", dist.Normal(loc, SCALE).to_event(1))


def test_closed_form_of_a_gaussian() -> None:
    """The pathwise gradient in loc is z ~ Normal(loc, scale): |t|/√n has a known distribution."""
    found = signal_to_noise(
        {"path": StandardELBO(gradient="pathwise"), "Pyro": Trace_ELBO()},
        model,
        guide,
        num_evaluations=N,
    )
    assert list(found["parameter"].values) == ["loc[0]", "loc[1]"]
    rate = FALSE_ALARM_RATE / 4
    for i, noncentrality in enumerate((LOC / SCALE * math.sqrt(N), 0.0)):
        low, high = stats.nct.ppf([rate / 2, 1 - rate / 2], N - 1, noncentrality)
        ratios = found["snr"].values[:, i] * math.sqrt(N)
        assert ((max(low, 0) <= ratios) & (ratios <= high)).all()
    np.testing.assert_allclose(
        found["snr_per_root_second"], found["snr"] / np.sqrt(found["seconds"])
    )
    overall = np.hypot(*found["mean"].values.T) / np.hypot(*found["sd"].values.T)
    np.testing.assert_allclose(found["overall_snr"], overall)
    assert found.attrs["noise"] == pytest.approx(1 / math.sqrt(N))


def test_more_particles_raise_it_by_their_root() -> None:
    objectives = {str(n): StandardELBO(n, vectorize_particles=n > 1) for n in (1, 16)}
    sd = signal_to_noise(objectives, model, guide, num_evaluations=N)["sd"].values[:, 0]
    ratio = (sd[0] / sd[1]) ** 2 / 16
    low, high = stats.f.ppf([FALSE_ALARM_RATE / 2, 1 - FALSE_ALARM_RATE / 2], N - 1, N - 1)
    assert low < ratio < high


def test_a_compiled_objective_gives_the_same_gradients() -> None:
    plain = StandardELBO()
    found = signal_to_noise({"a": plain, "b": compiled(StandardELBO())}, model, guide)
    np.testing.assert_allclose(found["mean"][0], found["mean"][1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["sd"][0], found["sd"][1], rtol=1e-5, atol=1e-6)


def test_nothing_of_the_callers_changes() -> None:
    guide()
    loc = pyro.param("loc")
    loc.grad = torch.ones(2)
    before, state = loc.detach().clone(), torch.get_rng_state()
    signal_to_noise({"ELBO": StandardELBO()}, model, guide, num_evaluations=5)
    torch.testing.assert_close(pyro.param("loc").detach(), before, rtol=0, atol=0)
    torch.testing.assert_close(loc.grad, torch.ones(2), rtol=0, atol=0)
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)


def test_a_gradient_without_noise_is_infinitely_clear() -> None:
    def learnt() -> None:
        pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(1.0)), 1.0), obs=torch.zeros(()))

    found = signal_to_noise({"ELBO": StandardELBO()}, learnt, lambda: None, num_evaluations=5)
    assert float(found["mean"][0, 0]) == 1.0
    assert np.isposinf(found["snr"].values).all()


def test_errors() -> None:
    with pytest.raises(ValueError, match="objectives is empty"):
        signal_to_noise({}, model, guide)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        signal_to_noise({"ELBO": StandardELBO()}, model, guide, num_evaluations=1)
    with pytest.raises(ValueError, match="has a parameter with a gradient"):
        signal_to_noise({"ELBO": StandardELBO()}, model, model)
