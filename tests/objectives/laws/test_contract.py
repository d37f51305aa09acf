"""Law 7: all entry points of a loss agree, and instances can be used anywhere."""

import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO, SVI
from pyro.optim import SGD

from tests.objectives.laws import toys
from tests.objectives.laws.registry import ROWS, rows_and_gradients

each_objective = pytest.mark.parametrize(("row", "gradient"), rows_and_gradients())


def build(row, gradient, **keywords):
    many = {"num_outer": 3} if row.averages else {}
    return row.build(gradient=gradient, vectorize_particles=True, **many, **keywords)


def start(toy):
    pyro.clear_param_store()
    toy.model()
    toy.guide()
    store = pyro.get_param_store()
    return [store[name].unconstrained() for name in toy.parameters]


def gradients_of(parameters):
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    return grads


@each_objective
def test_entry_points_share_value_and_gradient(row, gradient):
    toy = toys.discrete(plate=True) if gradient == "score" else toys.hierarchical(num_data=2)
    objective, parameters = build(row, gradient), start(toy)
    assert isinstance(objective, ELBO)
    pyro.set_rng_seed(1)
    loss = objective.loss(toy.model, toy.guide)
    pyro.set_rng_seed(1)
    assert objective.loss_and_grads(toy.model, toy.guide) == loss
    grads = gradients_of(parameters)
    pyro.set_rng_seed(1)
    differentiable = objective.differentiable_loss(toy.model, toy.guide)
    differentiable.backward()
    assert differentiable.item() == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(gradients_of(parameters), grads)
    pyro.set_rng_seed(1)
    assert objective(toy.model, toy.guide)().item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_one_instance_serves_two_models_and_survives_a_copy(row):
    objective = build(row, row.gradients[0])
    fresh = build(row, row.gradients[0])
    shallow, deep = toys.local(num_data=2), toys.hierarchical(num_data=4)
    for toy in (shallow, deep, shallow):
        start(toy)
        losses = []
        again = pickle.loads(pickle.dumps(objective))
        for one in (objective, fresh, again):
            pyro.set_rng_seed(2)
            losses.append(one.loss(toy.model, toy.guide))
        assert losses[0] == losses[1] == losses[2]


class Decoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1).double()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_modules_of_model_and_guide_train(row):
    """The model's does not under an upper bound, which is for the guide alone."""
    x = torch.tensor([0.3, 1.2], dtype=torch.float64)
    decoder, encoder = Decoder(), Decoder()

    def model():
        pyro.module("decoder", decoder)
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), x.new_ones(())))
            loc = decoder.linear(z.unsqueeze(-1)).squeeze(-1)
            pyro.sample("x", dist.Normal(loc, x.new_ones(())), obs=x)

    def guide():
        pyro.module("encoder", encoder)
        with pyro.plate("data", 2):
            loc = encoder.linear(x.unsqueeze(-1)).squeeze(-1)
            pyro.sample("z", dist.Normal(loc, x.new_ones(())))

    before = [decoder.linear.weight.clone(), encoder.linear.weight.clone()]
    svi = SVI(model, guide, SGD({"lr": 0.01}), loss=build(row, row.gradients[0]))
    svi.step()
    learnt = [
        not torch.equal(*pair)
        for pair in zip(before, [decoder.linear.weight, encoder.linear.weight], strict=True)
    ]
    assert learnt == [row.bounds != "above", True]
