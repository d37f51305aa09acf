"""Operators called from C give what they give in Python, in the memory of the recorded results."""

import ctypes
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pyro_elbo_lab.compilation.native import operators
from pyro_elbo_lab.compilation.native.operators import NativeCall, native_call
from tests.support.compilers import needs_compiler

pytestmark = needs_compiler

aten = torch.ops.aten

MASK = torch.tensor([[True, False, True], [False, True, False], [True, True, True]])


def positive(x: Tensor) -> Tensor:
    return x @ x.T + torch.eye(3)


def call(native: NativeCall) -> None:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(native.function)(native.argument)


@pytest.mark.parametrize(
    "operator, others, kwargs",
    [
        (aten.linalg_cholesky_ex.default, (), {"upper": True}),
        (aten.linalg_solve_triangular.default, (torch.ones(3, 2),), {"upper": False}),
        (aten.cumsum.default, (-1,), {}),
        (aten.sort.default, (0, True), {}),
        (aten.index.Tensor, ([MASK],), {}),
        (aten.index.Tensor, ([None, torch.tensor([2, 0])],), {}),
        (aten.triu.default, (1,), {}),
        (aten.topk.default, (2,), {}),
        (aten.linalg_pinv.default, (1e-3,), {"hermitian": True}),
    ],
)
def test_native_calls(operator: Any, others: tuple, kwargs: dict[str, Any]) -> None:
    x = positive(torch.randn(3, 3))
    results = operator(x, *others, **kwargs)
    native = native_call(operator, (x, *others), kwargs, results)
    assert native is not None
    x.copy_(positive(torch.randn(3, 3)))
    call(native)
    expected = tree_flatten(operator(x, *others, **kwargs))[0]
    assert expected
    for found, wanted in zip(tree_flatten(results)[0], expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_operators_in_place() -> None:
    x, values = torch.zeros(3, 3), torch.arange(6.0)
    native = native_call(
        aten.index_put_.default, (x, [MASK], values), {}, aten.index_put_(x, [MASK], values)
    )
    assert native is not None
    values += 1
    call(native)
    torch.testing.assert_close(x[MASK], values)


@pytest.mark.parametrize(
    "operator, args",
    [
        (aten.mul.Scalar, (2.0,)),  # a number of any type
        (aten.bernoulli.default, ()),  # random
        (aten._to_copy.default, ()),  # no form with out=
        (aten.detach.default, ()),  # the result is the argument
        (aten.linalg_eigh.default, ()),  # a string
    ],
)
def test_other_calls_stay_in_python(operator: Any, args: tuple) -> None:
    x = torch.eye(3)
    assert native_call(operator, (x, *args), {}, operator(x, *args)) is None


def test_a_pytorch_without_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_library", lambda: None)
    x = torch.eye(3)
    assert native_call(aten.cumsum.default, (x, 0), {}, aten.cumsum(x, 0)) is None


def test_calls_leak_no_tensors() -> None:
    x, index = torch.randn(3, 3), torch.tensor([2, 0])
    result = aten.index(x, [index])
    native = native_call(aten.index.Tensor, (x, [index]), {}, result)
    assert native is not None
    tensors: list[Any] = [x, index, result]  # PyTorch's stubs do not know of _use_count
    before = [tensor._use_count() for tensor in tensors]
    call(native)
    assert [tensor._use_count() for tensor in tensors] == before


def test_tensors_of_a_call_are_freed_with_it() -> None:
    matrix = np.eye(3, dtype=np.float32)
    memory = weakref.ref(matrix)  # numpy's array lives as long as a tensor on it
    x = torch.from_numpy(matrix)
    native = native_call(aten.cumsum.default, (x, -1), {}, aten.cumsum(x, -1))
    assert native is not None
    del x, matrix
    gc.collect()
    assert memory() is not None
    call(native)
    del native
    gc.collect()
    assert memory() is None
