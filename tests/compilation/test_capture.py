"""Graphs of tensor programs: what becomes an input, what is drawn beforehand, how they are run."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_elbo_lab.compilation.capture.graph import Graph, capture
from pyro_elbo_lab.compilation.capture.guard import CaptureError
from pyro_elbo_lab.compilation.capture.simplify import simplify
from pyro_elbo_lab.compilation.native.recording import Feed, Recording
from pyro_elbo_lab.compilation.native.runner import checked_runner, runner_of
from tests.support.compilers import needs_compiler
from tests.support.tolerances import assert_mean_equals


def graph_of(function: object, *data: Tensor, leaves: tuple[Tensor, ...] = ()) -> Graph:
    return capture(function, leaves, data)  # type: ignore[arg-type]


def run(graph: Graph, *given: Tensor) -> list[Tensor]:
    noise = graph.noise.allocate()
    graph.noise.fill(noise)
    return list(graph.module(*given, *graph.constants, *noise))


X = torch.linspace(-1, 1, 5)
LEAF = torch.tensor(2.0, requires_grad=True)
READS = r"depends on a tensor's values \(test_capture.py, line"


def test_inputs_are_leaves_data_constants_and_noise() -> None:
    leaf, own = torch.ones(5, requires_grad=True), torch.full((5,), 2.0)
    graph = graph_of(lambda x: (leaf * x + own + torch.randn(5),), X, leaves=(leaf,))
    inputs = [node for node in graph.module.graph.nodes if node.op == "placeholder"]
    assert len(inputs) == 4 and graph.constants[0] is own
    torch.manual_seed(0)
    (found,) = run(graph, leaf, X)
    torch.manual_seed(0)
    torch.testing.assert_close(found, leaf * X + own + torch.randn(5))


def test_a_constant_is_read_when_the_graph_runs() -> None:
    own = torch.zeros(5)
    graph = graph_of(lambda x: (x + own,), X)
    own += 3
    torch.testing.assert_close(run(graph, X)[0], X + 3)


def randoms(x: Tensor) -> tuple[Tensor, ...]:
    return (
        torch.empty(3).normal_(),
        torch.randperm(7),
        torch.empty(20).uniform_(2, 3),
        torch.rand(2, 2),
        torch.zeros(5).bernoulli_(0.5) + x,  # fills a tensor that has values: stays in the graph
        torch.empty(4).normal_(),  # comes later, and stays too
    )


def test_random_numbers_are_those_of_the_program() -> None:
    graph = graph_of(randoms, X)
    assert [d.operator.__name__ for d in graph.noise.draws] == [
        "normal_.default", "randperm.default", "uniform_.default", "rand.default",
    ]  # fmt: skip
    assert len(graph.noise.rest) == 2
    torch.manual_seed(4)
    found = run(graph, X)
    torch.manual_seed(4)
    for one, other in zip(found, randoms(X), strict=True):
        torch.testing.assert_close(one, other)


def test_a_block_has_the_distribution_of_single_draws() -> None:
    graph = graph_of(lambda x: (torch.empty(3).normal_(1.0, 2.0), torch.randperm(4), x), X)
    torch.manual_seed(0)
    normals, permutations = graph.noise.block(4000)
    assert normals.shape == (4000, 3) and permutations.shape == (4000, 4)
    assert_mean_equals(normals, torch.ones(3))
    assert_mean_equals((normals - 1) ** 2, torch.full((3,), 4.0))
    assert (permutations.sort(1).values == torch.arange(4)).all()
    assert_mean_equals(permutations.double(), torch.full((4,), 1.5))


def test_writing_to_what_outlives_the_program_is_refused() -> None:
    counter = torch.zeros(())

    def counts(x: Tensor) -> tuple[Tensor]:
        counter.add_(1)
        return (x * counter,)

    with pytest.raises(CaptureError, match=r"writes to a tensor .* in aten\.add_"):
        graph_of(counts, X)
    with pytest.raises(CaptureError, match="writes to a tensor"):
        graph_of(lambda x: (x.mul_(2),), X)
    with pytest.raises(CaptureError, match="writes to a tensor"):
        graph_of(lambda x: (x[1:].mul_(2),), X)
    torch.testing.assert_close(run(graph_of(lambda x: ((x + 1).mul_(2),), X), X)[0], 2 * X + 2)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: (x if x.sum() > 0 else -x,), READS),
        (lambda x: (x * x[0].item(),), READS),
        (lambda x: (x[x > 0],), "a shape depends on a tensor's values"),
        (lambda x: (x.nonzero(),), "a shape depends on a tensor's values"),
        (lambda x: (LEAF.item() * x,), READS),
        (
            lambda x: (torch.from_numpy(LEAF.detach().numpy()) * x,),
            READS,
        ),
        (lambda x: (1 / 0,), r"ZeroDivisionError: division by zero \(test_capture.py, line"),
    ],
)
def test_reasons_name_the_users_line(function: object, reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        capture(function, (LEAF,), (X,), moving=(X,))  # type: ignore[arg-type]


@needs_compiler
@pytest.mark.parametrize(
    "operator, native", [(torch.linalg.cholesky, True), (torch.linalg.eigvalsh, False)]
)
def test_a_recording_repeats_kernels_and_operators(
    operator: Callable[[Tensor], Tensor], native: bool
) -> None:
    """Neither is a kernel: one is called from C, the other is called back in Python."""

    def program(x: Tensor, total: Tensor) -> tuple[Tensor]:
        factor = operator(torch.outer(x, x) + 3 * torch.eye(5))
        total.copy_(total + x.exp())
        return ((factor @ x).sin() + total,)

    x, total = X.clone(), torch.zeros(5)
    module = make_fx(program)(x, total)
    runner, reason = checked_runner(module, [x, total], lambda: None)
    assert not reason and isinstance(runner, Recording) and runner.native == native
    total.zero_()
    rows, outputs = torch.randn(6, 5), torch.empty(6, 5)
    runner.run(6, [Feed(rows, x)], [Feed(outputs, runner.outputs[0])])
    expected = torch.zeros(5)
    for row, output in zip(rows, outputs, strict=True):
        torch.testing.assert_close(output, program(row, expected)[0], rtol=1e-4, atol=1e-4)


@needs_compiler
def test_without_operators_a_recording_is_native() -> None:
    module = make_fx(lambda x, w: (torch.addmm(x, x, w, beta=2.0, alpha=0.5).exp() @ w,))(
        torch.ones(3, 3), torch.eye(3)
    )
    x, w = torch.randn(3, 3), torch.randn(3, 3)
    runner, _ = checked_runner(module, [x, w], lambda: None)
    assert isinstance(runner, Recording) and runner.native
    for _ in range(2):
        x.normal_()
        runner.run()
        torch.testing.assert_close(runner.outputs[0], module(x, w)[0], rtol=1e-4, atol=1e-4)


@needs_compiler
def test_what_fails_in_a_recording_is_an_error() -> None:
    x, index = torch.randn(5), torch.tensor([1, 2])
    module = make_fx(lambda x, i: (x[i].exp() * 2,))(x, index)
    runner, _ = checked_runner(module, [x, index], lambda: None)
    index.fill_(7)
    with pytest.raises(RuntimeError, match="out of bounds"):
        runner.run()


@needs_compiler
def test_a_factorization_that_fails_gives_nan() -> None:
    """Compilers leave out the check for it, which has no result."""
    square = torch.eye(3).expand(2, 3, 3).clone()
    module = make_fx(lambda a: (torch.linalg.cholesky(a * 2).exp(),))(square)
    runner, reason = checked_runner(module, [square], lambda: None)
    assert not reason
    square[1].fill_(-1.0)
    runner.run()
    assert torch.isfinite(runner.outputs[0][0]).all() and torch.isnan(runner.outputs[0][1]).all()
    with pytest.raises(torch.linalg.LinAlgError):
        module(square)


def test_a_plain_runner_feeds_and_emits() -> None:
    x = torch.zeros(5)
    runner = runner_of(make_fx(lambda x: (x * 2,))(x), [x])
    rows, outputs = torch.randn(3, 5), torch.empty(3, 5)
    runner.run(3, [Feed(rows, x)], [Feed(outputs, runner.outputs[0])])
    torch.testing.assert_close(outputs, 2 * rows)


def test_simplified_logistic_likelihoods_are_the_same() -> None:
    x = torch.tensor([-200.0, -3.0, 0.0, 1e-4, 5.0, 200.0], dtype=torch.float64)
    y = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0], dtype=torch.float64)

    def program(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
        return loss, torch.sigmoid(x), torch.sigmoid(y)

    module = make_fx(program)(x, y)
    simplify(module)
    targets = [str(node.target) for node in module.graph.nodes]
    assert targets.count("aten.exp.default") == 1 and targets.count("aten.sigmoid.default") == 1
    for one, other in zip(module(x, y), program(x, y), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-80)
