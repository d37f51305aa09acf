"""What is refused, and that the error names what was found: nothing is computed beforehand."""

import re
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro.infer import MCMC, NUTS

from pyro_elbo_lab import (
    StandardELBO,
    compare,
    decompose,
    evidence,
    from_guide,
    from_pyro,
    importance_diagnostics,
    linear_response,
    nuts,
    resampled,
    sbc,
    signal_to_noise,
    vsbc,
)

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(4, 100))
OBSERVED = torch.tensor(1.0)


def model(x: torch.Tensor = OBSERVED) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: torch.Tensor = OBSERVED) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.7))


def tree(z: np.ndarray = Z) -> xr.DataTree:
    posterior = xr.Dataset({"z": (("chain", "draw"), z)})
    return xr.DataTree.from_dict({"posterior": posterior})


def with_nan(z: np.ndarray) -> np.ndarray:
    z = z.copy()
    z.flat[3] = np.nan
    return z


def not_run() -> MCMC:
    return MCMC(NUTS(model), num_samples=10, disable_progbar=True)


FOR_BOTH: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: "nuts.nc", TypeError, "'reference' is a str; .*read the file first"),
    (lambda: [Z], TypeError, "'reference' is a list; expected an ArviZ DataTree"),
    (lambda: 3.0, TypeError, "'reference' is a float"),
    (lambda: Z, TypeError, "'reference' is a ndarray"),
    (lambda: pd.DataFrame({"z": Z[0]}), TypeError, "'reference' is a DataFrame"),
    (lambda: tree()["posterior"].to_dataset(), TypeError, "is a Dataset; .*DataTree.from_dict"),
    (lambda: model, TypeError, "'reference' is a function"),
    (not_run, ValueError, "'reference' is an MCMC without draws"),
    (xr.DataTree, ValueError, "'reference' has no posterior group"),
    (lambda: tree(Z[:, :1]), ValueError, "'reference' has 4 chains of 1 draws; at least 25"),
    (lambda: tree(Z * 1j), ValueError, "posterior variable 'z' of 'reference' is complex"),
    (lambda: tree(with_nan(Z)), ValueError, "1 NaN or infinite values"),
]


@pytest.mark.parametrize("make, error, message", FOR_BOTH)
def test_references_of_the_wrong_kind(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evidence(model, guide, reference=make())
    with pytest.raises(error, match=message):
        compare({"q": tree()}, make())


@pytest.mark.parametrize(
    "reference, error, message",
    [
        ({}, ValueError, "different numbers of draws, none at all"),
        ({"w": Z[0]}, ValueError, r"has \['w'\], from which .* 'z' does not follow"),
        ({"z": Z[0], "w": Z[0, :50]}, ValueError, r"numbers of draws, \{'z': 100, 'w': 50\}"),
        ({"z": Z[0, :1]}, ValueError, "has 1 draws of 'z'; at least 25"),
        ({"z": Z.T}, ValueError, r"draws of shape \(4,\) for latent 'z' .* has shape \(\)"),
        ({"z": with_nan(Z[0])}, ValueError, "1 NaN or infinite values for latent 'z'"),
        ({"z": Z[0] * 1j}, TypeError, "complex128 values of shape"),
        ({"z": np.array(["a"] * 100)}, TypeError, "<U1 values of shape"),
        ({"z": 3.0}, TypeError, r"float64 values of shape \(\) for 'z'"),
    ],
)
def test_draws_for_evidence(reference: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evidence(model, guide, reference=reference)


def test_evidence_takes_a_finished_mcmc() -> None:
    mcmc = MCMC(NUTS(model), num_samples=50, warmup_steps=50, disable_progbar=True)
    mcmc.run()
    assert "EUBO" in evidence(model, guide, reference=mcmc, num_samples=200).table["name"].values


@pytest.mark.parametrize(
    "approximations, reference, error, message",
    [
        ({"q": tree()}, None, TypeError, "'reference' is a NoneType"),
        ({"q": tree()}, {}, ValueError, "'reference' is an empty mapping"),
        ({"q": tree()}, {"z": Z * 1j}, TypeError, "'z' of 'reference' holds complex128 values"),
        ({"q": tree()}, {"z": [[0.0, 1.0], [2.0]]}, ValueError, "'z' of 'reference' is no array"),
        ({"q": tree()}, {"w": Z}, ValueError, r"no varying parameter in common: 'q' has \['z'\]"),
        ({"q": tree()}, {"z": np.ones((4, 100))}, ValueError, "no varying parameter in common"),
        ({"q": None}, tree(), TypeError, "'q' is a NoneType"),
        (tree(), tree(), TypeError, "approximations is a DataTree; expected a mapping"),
        ([tree()], tree(), TypeError, "approximations is a list"),
        ("q", tree(), TypeError, "approximations is a str"),
    ],
)
def test_what_compare_refuses(
    approximations: Any, reference: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compare(approximations, reference)


def weights() -> xr.DataTree:
    result = tree(Z[:1])
    stats = xr.Dataset({"log_weight": (("chain", "draw"), Z[:1])})
    result["sample_stats"] = xr.DataTree(stats)
    return result


def fit_fn(*args: Any) -> None:
    raise AssertionError("nothing may be fitted")


OBJECTIVES = {"ELBO": StandardELBO()}
COUNTS: dict[str, Callable[[Any], Any]] = {
    "num_samples of from_guide": lambda n: from_guide(guide, model, num_samples=n),
    "num_samples of nuts": lambda n: nuts(model, num_samples=n),
    "num_chains of nuts": lambda n: nuts(model, num_chains=n),
    "num_warmup of nuts": lambda n: nuts(model, num_warmup=n),
    "num_samples of evidence": lambda n: evidence(model, guide, num_samples=n),
    "num_samples of decompose": lambda n: decompose(model, guide, num_samples=n),
    "num_samples of linear_response": lambda n: linear_response(model, guide, num_samples=n),
    "num_evaluations": lambda n: signal_to_noise(OBJECTIVES, model, guide, num_evaluations=n),
    "num_simulations of sbc": lambda n: sbc(model, fit_fn, OBSERVED, num_simulations=n),
    "num_draws of vsbc": lambda n: vsbc(model, fit_fn, OBSERVED, num_draws=n),
    "num_draws of resampled": lambda n: resampled(weights(), n),
}


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("value", [-1, True, 100.5, "100", float("nan")])
def test_counts(count: str, value: Any) -> None:
    error = ValueError if value == -1 and not isinstance(value, bool) else TypeError
    message = rf"{count.split()[0]} must be .*at least \d+, got {re.escape(repr(value))}"
    with pytest.raises(error, match=message):
        COUNTS[count](value)


PROGRAMS: list[tuple[Callable[[], Any], str]] = [
    (lambda: from_guide(None, model), "guide must be a Pyro program .*, got None"),  # type: ignore[arg-type]
    (lambda: from_guide(guide, "model"), "model must be a Pyro program"),  # type: ignore[arg-type]
    (lambda: evidence(model, OBSERVED), "guide must be a Pyro program"),  # type: ignore[arg-type]
    (lambda: decompose(None, guide), "model must be a Pyro program"),  # type: ignore[arg-type]
    (lambda: nuts(3), "model must be a Pyro program .*, got 3"),  # type: ignore[arg-type]
    (lambda: sbc(model, None, OBSERVED), "fit_fn must be a Pyro program"),  # type: ignore[arg-type]
    (lambda: signal_to_noise([StandardELBO()], model, guide), "objectives is a list"),  # type: ignore[arg-type]
    (lambda: signal_to_noise({"a": "elbo"}, model, guide), r"objectives\['a'\] is 'elbo'"),
    (lambda: importance_diagnostics({"z": Z}), "expected a DataTree .*, got dict"),  # type: ignore[arg-type]
    (lambda: from_pyro({"z": Z}), "mcmc is a dict, expected a finished"),
]


@pytest.mark.parametrize("call, message", PROGRAMS)
def test_things_that_are_no_programs(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_an_mcmc_that_was_not_run() -> None:
    with pytest.raises(ValueError, match=r"The MCMC has no draws: call its run\(...\) first"):
        from_pyro(not_run(), model)


def empty() -> None:
    with pyro.plate("rows", 0):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def complex_data() -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1 + 1j))


CALLS: list[Callable[[Any], Any]] = [
    lambda m: StandardELBO().loss(m, guide),
    lambda m: from_guide(guide, m),
    lambda m: evidence(m, guide),
    lambda m: decompose(m, guide),
    lambda m: linear_response(m, guide),
    lambda m: nuts(m, progress=False),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "program, message",
    [
        (empty, "Plate 'rows' has size 0"),
        (complex_data, "Site 'x' of the model has complex values"),
    ],
)
def test_empty_plates_and_complex_data(
    program: Callable[[], None], message: str, call: Callable[[Any], Any]
) -> None:
    with pytest.raises(ValueError, match=message):
        call(program)


def test_complex_values_with_a_real_density_are_welcome() -> None:
    class Circular(dist.TorchDistribution):
        """Complex noise of unit variance in real and imaginary part."""

        arg_constraints: ClassVar[dict[str, Any]] = {}
        support = torch.distributions.constraints.real

        def __init__(self, mean: torch.Tensor) -> None:
            self.mean_ = mean
            super().__init__(mean.shape, validate_args=False)

        def expand(self, batch_shape: Any, _instance: Any = None) -> "Circular":
            return Circular(self.mean_.expand(batch_shape))

        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            return -((value - self.mean_).abs() ** 2) / 2

    def program() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", Circular(z), obs=torch.tensor(1 + 1j))

    assert np.isfinite(from_guide(guide, program)["sample_stats"]["log_weight"]).all()
