"""Products of matrices called from C give what PyTorch's own give."""

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_elbo_lab.compilation.native import products
from tests.support.compilers import needs_compiler

pytestmark = needs_compiler

aten = torch.ops.aten

M, K, N = 128, 400, 100


def matrix(rows: int, columns: int, transposed: bool) -> Tensor:
    return torch.randn(columns, rows).t() if transposed else torch.randn(rows, columns)


def assert_rounded(found: Tensor, a: Tensor, b: Tensor) -> None:
    """Equal to the product but for the rounding of its K sums (Higham 2002, section 3.5)."""
    bound = (K + 2) * torch.finfo(a.dtype).eps * (a.abs() @ b.abs() + 1)
    assert ((found - a @ b).abs() <= bound).all()


def called(func: Any, args: tuple, out: Tensor) -> products.Product:
    """The product, after its function in C has written to `out`."""
    found = products.product(func, args, {"out": out})
    assert found is not None
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(found.arguments))(found.address)
    function(*found.arguments)
    return found


@pytest.mark.parametrize("slow", [False, True], ids=["usual", "onednn"])
@pytest.mark.parametrize("left", [False, True], ids=["a", "a transposed"])
@pytest.mark.parametrize("right", [False, True], ids=["b", "b transposed"])
def test_mm(slow: bool, left: bool, right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if slow and not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: slow)
    a, b = matrix(M, K, left), matrix(K, N, right)
    out = torch.full((M, N), float("nan"))
    found = called(aten.mm.out, (a, b), out)
    assert len(found.arguments) == (1 if slow else 3)
    assert_rounded(out, a, b)
    a.mul_(2)
    function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(found.arguments))(found.address)
    function(*found.arguments)
    assert_rounded(out, a, b)


def test_addmm(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch was built without oneDNN")
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    bias, a, b = torch.randn(N), matrix(M, K, False), matrix(K, N, True)
    out = torch.empty(M, N)
    assert len(called(aten.addmm.out, (bias, a, b), out).arguments) == 1
    assert_rounded(out - bias, a, b)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": torch.float64},
        {"size": 10},
        {"beta": 0.5},
    ],
    ids=["float64", "small", "factors"],
)
def test_what_onednn_does_not_get(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_mkl_is_slow", lambda: True)
    size, beta = change.get("size", 200), change.get("beta", 1)
    a = torch.randn(size, size, dtype=change.get("dtype", torch.float32))
    kwargs = {"out": torch.empty_like(a), "beta": beta, "alpha": 1}
    found = products.product(aten.addmm.out, (a[0], a, a), kwargs)
    assert found is not None and found.factors == (beta, 1)


def test_other_operators_are_no_products() -> None:
    assert products.product(aten.add.out, (torch.ones(2), 1), {"out": torch.empty(2)}) is None
