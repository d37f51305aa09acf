"""NUTS in float64 on models that keep float32 tensors to themselves."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_elbo_lab.inference.nuts.nuts import nuts
from pyro_elbo_lab.inference.nuts.potential import isolated, logp_and_gradient, prepare
from pyro_elbo_lab.programs.precision import InFloat64, as_written
from tests.support.tolerances import assert_mean_equals

X = torch.linspace(0.1, 0.9, 40) ** 2
Y = 5 + 2 * X + 0.5 * torch.sin(100 * X)
DESIGN = torch.stack([torch.ones(40), X], 1)
PRIOR = dist.Normal(torch.zeros(2), torch.full((2,), 10.0)).to_event(1)
SCALE: Any = np.float32(0.5)
KEPT: dict[str, Any] = {"x": X, "rest": [Y]}
ARRAYS = X.numpy(), Y.numpy()


def line(x: Tensor, y: Tensor, scale: Any = 0.5) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    with pyro.plate("row", 40):
        pyro.sample("y", dist.Normal(a + b * x, scale), obs=y)


def in_globals() -> None:
    line(X, Y)


def in_a_closure() -> Callable[[], None]:
    x, y = X.clone(), Y.clone()
    return lambda: line(x, y)


class Buffer(nn.Module):
    x: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x", X.clone())
        self.y = Y

    def forward(self) -> None:
        line(self.x, self.y)


class Parameter(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(X.clone())

    def forward(self) -> None:
        line(self.x, Y)


class Layer(nn.Module):
    """The same line by way of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 40, bias=False)
        self.linear.weight.data = DESIGN.clone()

    def forward(self) -> None:
        w = torch.stack([pyro.sample(n, dist.Normal(0.0, 10.0)) for n in ("a", "b")])
        with pyro.plate("row", 40):
            pyro.sample("y", dist.Normal(self.linear(w), 0.5), obs=Y)


HOLDER = SimpleNamespace(x=X, y=Y)


def in_an_object() -> None:
    line(HOLDER.x, HOLDER.y)


def in_defaults(x: Tensor = X, y: Tensor = Y) -> None:
    line(x, y)


def in_a_dict_and_a_list() -> None:
    line(KEPT["x"], KEPT["rest"][0])


def in_numpy() -> None:
    line(torch.as_tensor(ARRAYS[0]), torch.from_numpy(ARRAYS[1]))


def as_a_number_of_numpy() -> None:
    line(X, Y, SCALE * torch.ones(40))


def in_a_prior_and_a_matrix() -> None:
    w = pyro.sample("w", PRIOR)
    with pyro.plate("row", 40):
        pyro.sample("y", dist.Normal(DESIGN @ w, 0.5), obs=Y)


def cast_and_made() -> None:
    w = pyro.sample("w", PRIOR)
    mean = torch.zeros(40, dtype=torch.float32)
    mean[:] = DESIGN @ w.float()
    with pyro.plate("row", 40):
        pyro.sample("y", dist.Normal(mean.to(torch.float32), 0.5), obs=Y)


MODELS = [
    in_globals,
    in_a_closure(),
    Buffer(),
    Parameter(),
    Layer(),
    in_an_object,
    in_defaults,
    in_a_dict_and_a_list,
    in_numpy,
    as_a_number_of_numpy,
    in_a_prior_and_a_matrix,
    cast_and_made,
]


def exact_log_density(w: Tensor) -> Tensor:
    mean = DESIGN.double() @ w
    likelihood = dist.Normal(mean, 0.5).log_prob(Y.double()).sum()
    return likelihood + dist.Normal(torch.zeros(2).double(), 10.0).log_prob(w).sum()


@pytest.mark.parametrize("model", MODELS, ids=lambda m: getattr(m, "__name__", type(m).__name__))
def test_the_density_has_all_digits(model: Callable[..., Any]) -> None:
    with isolated():
        potential = prepare(model, (), {})
    evaluate = logp_and_gradient(potential)  # outside, as in a thread of the sampler
    torch.set_default_dtype(torch.float64)
    point = torch.tensor([4.9, 2.1], requires_grad=True)
    exact = exact_log_density(point)
    exact.backward()
    assert point.grad is not None
    logp, gradient = evaluate(point.detach().numpy())
    assert logp == pytest.approx(exact.item(), rel=1e-13)
    np.testing.assert_allclose(gradient, point.grad, rtol=1e-10)


@pytest.mark.parametrize("model", [in_globals, Buffer()], ids=["globals", "buffer"])
def test_it_is_compiled_and_nothing_is_said(model: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tree = nuts(model, num_chains=2, progress=False)
    assert tree.attrs["density"] == "compiled"
    precision = 4 * DESIGN.double().T @ DESIGN.double() + torch.eye(2) / 100
    mean = torch.linalg.solve(precision, 4 * DESIGN.double().T @ Y.double())
    for name, expected in zip("ab", mean, strict=True):
        draws = torch.from_numpy(np.asarray(tree["posterior"][name])[:, ::10].ravel())
        assert_mean_equals(draws, expected)
    assert X.dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32


def test_what_is_kept_is_never_written_to() -> None:
    kept = torch.zeros(3)
    with InFloat64():
        for write in (lambda: kept.add_(1), lambda: kept.__setitem__(0, 1.0)):
            with pytest.raises(TypeError, match=r"writes to a float32 tensor of shape \(3,\)"):
                write()
    assert (kept == 0).all()


def test_tensors_made_inside_are_float64() -> None:
    with InFloat64() as mode:
        assert torch.zeros(2, dtype=torch.float32).dtype == torch.float64
        assert torch.ones(2).double().float().dtype == torch.float64
        assert (torch.ones(2, dtype=torch.int64) + 1).dtype == torch.int64
    assert mode.found == (2,)
    assert InFloat64().found is None


def test_a_compiler_within_it_works_in_its_own_precision() -> None:
    with InFloat64():
        with as_written():
            assert torch.ones(2, dtype=torch.float32).dtype == torch.float32
            with as_written():
                pass
            assert torch.ones(2, dtype=torch.float32).dtype == torch.float32
        assert torch.ones(2, dtype=torch.float32).dtype == torch.float64
    with as_written():
        assert torch.ones(2, dtype=torch.float32).dtype == torch.float32
