"""Dependencies of programs, as far as the estimators rest on them."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal, AutoNormalMessenger

from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.structure.analysis import analyze
from pyro_elbo_lab.programs.structure.factors import FactorKey

X = torch.tensor([0.3, -1.2, 0.8])


def model():
    g = pyro.sample("g", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Normal(g, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=X)
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.1))


def reads(structure, side, name):
    return structure.reads[FactorKey(side, name)]


def test_hand_written_guide():
    def guide():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("g", dist.Normal(z.mean(), 1.0))

    structure, *_ = analyze(Pair(model, guide))
    assert list(structure.latents) == ["z", "g"]
    assert structure.latents["g"].upstream == {"z"}
    assert [latent.generation for latent in structure.latents.values()] == [0, 1]
    assert structure.latents["z"].plates == {"data"}
    assert reads(structure, "model", "g") == {"g", "z"}  # g was drawn from z
    assert reads(structure, "model", "x") == {"z"}
    assert reads(structure, "model", "y") == set()
    assert structure.max_plate_nesting == 1


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal, AutoNormalMessenger])
def test_autoguides(autoguide):
    guide = autoguide(model)
    guide()
    structure, *_ = analyze(Pair(model, guide))
    joint = autoguide is AutoMultivariateNormal
    names = {AutoNormal: "z_unconstrained", AutoNormalMessenger: "z"}
    z = "_AutoMultivariateNormal_latent" if joint else names[autoguide]
    assert reads(structure, "model", "x") == {z}
    assert structure.latents[z].plates == (set() if joint else {"data"})
    assert all(latent.reparameterized and latent.evaluable for latent in structure.latents.values())


def test_discrete_and_indexed():
    def mixture():
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.0])[k], 1.0), obs=X[0])

    structure, *_ = analyze(
        Pair(mixture, lambda: pyro.sample("k", dist.Categorical(torch.ones(2))))
    )
    assert not structure.latents["k"].reparameterized
    assert reads(structure, "model", "x") == {"k"}


def test_latents_that_leave_the_tensor_world_may_be_read_by_anything():
    def branch():
        k = pyro.sample("k", dist.Bernoulli(0.5))
        loc = 1.0 if k.item() > 0.5 else -1.0
        pyro.sample("x", dist.Normal(loc, 1.0), obs=X[0])

    structure, *_ = analyze(Pair(branch, lambda: pyro.sample("k", dist.Bernoulli(0.5))))
    assert reads(structure, "model", "x") == {"k"}


def test_flow_without_inverse_is_not_evaluable():
    flow = dist.transforms.block_autoregressive(2)

    def program():
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [flow]))

    structure, *_ = analyze(
        Pair(lambda: pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1)), program)
    )
    assert structure.latents["z"].reparameterized
    assert not structure.latents["z"].evaluable


def test_analysis_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    guide = AutoNormal(model)
    guide()
    before = torch.get_rng_state()
    analyze(Pair(model, guide))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(state, before)


def test_observed_in_the_model_but_sampled_in_the_guide():
    def guide():
        pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'x' is observed in the model but sampled in the guide"):
        analyze(Pair(model, guide))


def test_shapes_that_disagree():
    def guide():
        pyro.sample("g", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    with pytest.raises(ValueError, match="disagree at site 'z'"):
        analyze(Pair(model, guide))


def test_programs_that_cannot_be_followed_depend_on_everything():
    def strict():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        if type(a) is not torch.Tensor:
            raise TypeError("only plain tensors")
        pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(a, 1.0), obs=X[0])

    def guide():
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match="Could not follow.*only plain tensors"):
        structure, *_ = analyze(Pair(strict, guide))
    assert reads(structure, "model", "x") == {"a", "b"}
    assert structure.latents["b"].upstream == {"a"}
    assert structure.parents["a"] == {"b"}
