"""Parts of a gradient, on graphs small enough to differentiate by hand."""

import torch

from pyro_elbo_lab.objectives.gradients.paths import through, without


def graph():
    x = torch.tensor(2.0, requires_grad=True)
    a = 3 * x
    b = a * x
    return x, a, b, a * b * x  # total = 9 x^4


def grad(total, x):
    return torch.autograd.grad(total, x, retain_graph=True)[0].item()


def test_parts_add_up():
    x, a, b, total = graph()
    for generations in ([[a]], [[b]], [[a], [b]]):
        assert grad(through(total, generations), x) + grad(without(total, generations), x) == 288.0


def test_no_path_counts_twice():
    x, a, b, total = graph()
    # d total/dx with a and b fixed is a b = 72, everything else flows through a or b
    assert grad(without(total, [[a], [b]]), x) == 72.0
    assert grad(through(total, [[a], [b]]), x) == 288.0 - 72.0


def test_single_tensor():
    x, _, b, total = graph()
    # through b: a x db/dx = 6 * 2 * 12
    assert grad(through(total, [[b]]), x) == 144.0


def test_tensors_outside_the_graph_do_not_matter():
    x, _, _, total = graph()
    y = torch.tensor(1.0, requires_grad=True)
    constant = torch.tensor(1.0)
    assert through(total, [[y, constant], []]).item() == 0.0
    assert grad(without(total, [[y]]), x) == 288.0


def test_constant_total():
    _, a, _, _ = graph()
    assert through(torch.tensor(1.0), [[a]]).item() == 0.0
