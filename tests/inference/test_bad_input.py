"""What `fit` and objectives cannot use is an error before any work is done."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_elbo_lab.inference.fitting.fit import fit
from pyro_elbo_lab.objectives.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives.annealed import AnnealedELBO
from pyro_elbo_lab.objectives.covering import (
    ChiUpperBound,
    ForwardKL,
    ReweightedWakeSleep,
    TailAdaptive,
)
from pyro_elbo_lab.objectives.lower_bounds import (
    CombinedImportanceWeighted,
    ImportanceWeightedELBO,
    JackknifeELBO,
    PartiallyImportanceWeighted,
    RenyiELBO,
    StandardELBO,
    ThermodynamicELBO,
)
from pyro_elbo_lab.objectives.schedules import cyclical_annealing, linear_annealing
from pyro_elbo_lab.programs.state import store_state

NAN = float("nan")
X = torch.tensor([1.0, 2.0, 3.0])


def model(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))


def sized(x: Tensor) -> None:
    """Of data that are no argument."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", 2):
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor([1.0, NAN]))


def covariates(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(z * x, 1.0), obs=torch.zeros(len(x)))


def unconstrained_by_a_plate(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)


def used_up() -> Any:
    spent = iter([X])
    next(spent)
    return spent


def broken(value: float) -> Tensor:
    return torch.tensor([1.0, value, value])


FIT: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "compile a word": ({"compile": "never"}, ValueError, "compile must be one of True.*'never'"),
    "compile yes": ({"compile": "yes"}, ValueError, "compile must be one of .*got 'yes'"),
    "compile None": ({"compile": None}, ValueError, "compile must be one of .*got None"),
    "compile 0": ({"compile": 0}, ValueError, "compile must be one of True, False.*got 0"),
    "half a step": ({"num_steps": 5.5}, ValueError, "num_steps must be .*an integer, got 5.5"),
    "steps as truth": ({"num_steps": True}, ValueError, "num_steps must be .*got True"),
    "steps as text": ({"num_steps": "10"}, ValueError, "num_steps must be .*got '10'"),
    "no step": ({"num_steps": 0}, ValueError, "num_steps must be at least 1.*got 0"),
    "objective text": ({"objective": "elbo"}, TypeError, "objective must be a loss.*'elbo'"),
    "objective class": ({"objective": Trace_ELBO}, TypeError, r"objective.*pass Trace_ELBO\(\)"),
    "objective uncalled": (
        {"objective": StandardELBO},
        TypeError,
        r"objective must be .*call it: pass StandardELBO\(\)",
    ),
    "objective None": ({"objective": None}, TypeError, "objective must be .*got None"),
    "torch optimizer": (
        {"optimizer": torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.25)},
        TypeError,
        r"optimizer must be one of pyro.optim.*pyro.optim.Adam\(\{'lr': 0.25\}\)",
    ),
    "torch optimizer class": (
        {"optimizer": torch.optim.SGD},
        TypeError,
        r"optimizer must be one of pyro.optim.*pyro.optim.SGD\(\{'lr': 0.01\}\)",
    ),
    "optimizer uncalled": (
        {"optimizer": pyro.optim.Adam},
        TypeError,
        r"optimizer must .*call it: pass Adam\(\{'lr'",
    ),
    "optimizer false": ({"optimizer": False}, TypeError, "optimizer must .*got False"),
    "learning rate": (
        {"lr": 0.1},
        TypeError,
        r"model does not take .*'lr'.*it takes \(x.*belongs in pyro.optim.* as optimizer=",
    ),
    "unknown keyword": ({"epochs": 3}, TypeError, "'epochs' belongs in num_steps="),
    "too many arguments": ({"args": (X, X)}, TypeError, "model does not take.*2 positional"),
    "too few arguments": ({"args": ()}, TypeError, "model does not take.*missing.*'x'"),
    "guide takes less": ({"guide": lambda: None}, TypeError, "guide does not take the arguments"),
    "empty batches": ({"args": (), "batches": []}, ValueError, "batches is empty"),
    "spent generator": ({"args": (), "batches": used_up()}, ValueError, "batches is empty"),
    "batches and args": ({"batches": [X]}, ValueError, "from args or from batches"),
    "batches a number": ({"args": (), "batches": 3}, TypeError, "batches must be .*got a int"),
    "batches a dict": ({"args": (), "batches": {"x": X}}, TypeError, "batches must be .*a dict"),
    "guide factory": (
        {"guide": lambda x: AutoNormal(model)},
        TypeError,
        "guide draws no site but returned a AutoNormal: it makes a guide",
    ),
    "guide without sites": (
        {"guide": lambda x: None},
        ValueError,
        "guide has no sample sites, but the model has the latent site 'z'",
    ),
    "guide a class": ({"guide": AutoNormal}, TypeError, r"guide is the class.*AutoNormal\(model\)"),
    "guide None": ({"guide": None}, TypeError, "guide must be a function.*got None"),
    "model a number": ({"model": 3}, TypeError, "model must be a function.*got 3"),
    "seed None": ({"seed": None}, ValueError, "seed must be .*got None"),
    "seed negative": ({"seed": -1}, ValueError, "seed must be at least 0.*got -1"),
    "seed too large": ({"seed": 2**40}, ValueError, "seed must be at most 4294967295"),
    "average NaN": ({"average": NAN}, ValueError, "average must be a share.*got nan"),
    "average text": ({"average": "all"}, ValueError, "average must be a share.*got 'all'"),
    "average 1.5": ({"average": 1.5}, ValueError, "average must be a share.*got 1.5"),
    "callback alone": ({"callbacks": print}, TypeError, "callbacks must be a list.*callbacks="),
    "callback text": ({"callbacks": ["print"]}, TypeError, "callbacks .*one of them is 'print'"),
    "progress text": ({"progress": "no"}, ValueError, "progress must be one of .*got 'no'"),
    "complex data": ({"args": (X * 1j,)}, TypeError, "'x' is torch.complex64, expected real"),
    "NaN in data": ({"args": (broken(NAN),)}, ValueError, "Site 'x' observes 2 NaN among its 3"),
    "inf in data": ({"args": (broken(math.inf),)}, ValueError, "Site 'x' .* 2 infinite numbers"),
    "NaN elsewhere": ({"model": sized}, ValueError, "Site 'y' observes 1 NaN among its 2"),
    "NaN in covariates": (
        {"model": covariates, "args": (broken(NAN),)},
        ValueError,
        "Argument 'x' has 2 NaN among its 3 elements",
    ),
    "empty plate": ({"args": (X[:0],)}, ValueError, "Plate 'rows' has size 0: there are no data"),
    "empty data": (
        {"model": unconstrained_by_a_plate, "args": (X[:0],)},
        ValueError,
        r"Site 'x' observes a tensor of shape \(0,\): there are no data",
    ),
}


def state() -> tuple[Any, ...]:
    store = {name: x.detach().clone() for name, x in store_state()[0].items()}
    numpy_state = np.random.get_state()[1]
    return store, torch.get_rng_state(), random.getstate(), numpy_state


@pytest.mark.parametrize("case", FIT)
def test_fit_refuses(case: str) -> None:
    changes, kind, message = FIT[case]
    pyro.param("loc", torch.tensor(2.0))
    before = state()
    keywords = {"objective": StandardELBO(), "num_steps": 5, "progress": False, **changes}
    programs = keywords.pop("model", model), keywords.pop("guide", guide)
    with pytest.raises(kind, match=message) as caught:
        fit(*programs, *keywords.pop("args", (X,)), **keywords)
    assert type(caught.value) is kind
    store, torch_state, python_state, numpy_state = state()
    assert store == before[0]
    assert torch.equal(torch_state, before[1])
    assert python_state == before[2]
    assert (numpy_state == before[3]).all()


CONSTRUCTORS: dict[str, tuple[Callable[[], Any], str]] = {
    "negative weight": (lambda: StandardELBO(kl_weight=-1.0), "StandardELBO: kl_weight .* -1.0"),
    "weight NaN": (lambda: AnalyticKLELBO(kl_weight=NAN), "AnalyticKLELBO: kl_weight .* nan"),
    "weight text": (lambda: RenyiELBO(0.5, 2, kl_weight="a"), "kl_weight .* got 'a'"),
    "weight tensor": (lambda: StandardELBO(kl_weight=torch.tensor(-2.0)), "kl_weight .*-2"),
    "annealing in 0": (lambda: linear_annealing(0), "linear_annealing: num_steps .* got 0"),
    "annealing in -5": (lambda: linear_annealing(-5), "linear_annealing: num_steps .* got -5"),
    "annealing in 2.5": (lambda: linear_annealing(2.5), "num_steps .* integer, got 2.5"),  # type: ignore[arg-type]
    "annealing from NaN": (lambda: linear_annealing(5, NAN), "start must be a weight .* nan"),
    "annealing from 2": (lambda: linear_annealing(5, 2.0), "start must be a weight .* got 2.0"),
    "no period": (lambda: cyclical_annealing(0), "cyclical_annealing: period .* got 0"),
    "never rising": (lambda: cyclical_annealing(9, rising=0.0), "rising must be .* got 0.0"),
    "alpha NaN": (lambda: RenyiELBO(NAN, 2), "RenyiELBO: alpha .*nan"),
    "alpha text": (lambda: RenyiELBO("1", 2), "RenyiELBO: alpha .*'1'"),  # type: ignore[arg-type]
    "alpha inf": (lambda: RenyiELBO(math.inf, 2), "RenyiELBO: alpha .*inf"),
    "particles NaN": (lambda: StandardELBO(NAN), "StandardELBO: a number of particles .* nan"),  # type: ignore[arg-type]
    "particles text": (lambda: ImportanceWeightedELBO("8"), "number of particles .* '8'"),  # type: ignore[arg-type]
    "outer 0": (lambda: PartiallyImportanceWeighted(2, 0), "number of particles .* got 0"),
    "beta NaN": (lambda: CombinedImportanceWeighted(NAN, 2), "beta must be a share .* nan"),
    "beta text": (lambda: CombinedImportanceWeighted("a", 2), "beta must be a share .*'a'"),  # type: ignore[arg-type]
    "order 1.5": (lambda: JackknifeELBO(4, 1.5), "JackknifeELBO: order .* 1.5"),  # type: ignore[arg-type]
    "order too high": (lambda: JackknifeELBO(4, 4), "order=4: expected 1 <= order < num_particles"),
    "schedule None": (lambda: ThermodynamicELBO(4, None), "schedule must be numbers .* None"),  # type: ignore[arg-type]
    "schedule NaN": (lambda: ThermodynamicELBO(4, (0.0, NAN, 1.0)), "does not rise from 0 to 1"),
    "n NaN": (lambda: ChiUpperBound(4, NAN), "ChiUpperBound: n must be a number above 1.* nan"),
    "n inf": (lambda: ChiUpperBound(4, math.inf), "ChiUpperBound: n must be .* inf"),
    "insomnia NaN": (lambda: ReweightedWakeSleep(4, insomnia=NAN), "insomnia must be .* nan"),
    "dreams 0": (lambda: ReweightedWakeSleep(4, num_dreams=0), "num_dreams must be .* got 0"),
    "few particles": (lambda: ForwardKL(2.5), "ForwardKL: num_particles must be .* 2.5"),  # type: ignore[arg-type]
    "tail NaN": (lambda: TailAdaptive(4, NAN), "TailAdaptive: beta must be .* nan"),
    "AIS steps": (lambda: AnnealedELBO(4, 2.5), "AnnealedELBO: num_steps .* 2.5"),  # type: ignore[arg-type]
    "AIS outer": (lambda: AnnealedELBO(4, outer="sum"), "AnnealedELBO: outer .* 'sum'"),
    "nesting -1": (lambda: StandardELBO(max_plate_nesting=-1), "max_plate_nesting .* got -1"),
    "vectorize yes": (lambda: StandardELBO(vectorize_particles="yes"), "vectorize_.* got 'yes'"),
}


@pytest.mark.parametrize("case", CONSTRUCTORS)
def test_constructors_refuse(case: str) -> None:
    build, message = CONSTRUCTORS[case]
    with pytest.raises(ValueError, match=message):
        build()


def test_a_reference_of_another_kind() -> None:
    with pytest.raises(TypeError, match=r"reference must be draws by site.*got a str"):
        ForwardKL(4, reference="nuts.nc")


@pytest.mark.parametrize("weight", [NAN, -0.5, "a", None])
def test_a_schedule_that_gives_no_weight(weight: Any) -> None:
    objective = StandardELBO(kl_weight=lambda step: 1.0 if step < 2 else weight)
    with pytest.raises(ValueError, match=f"StandardELBO: kl_weight at step 2 must be .*{weight}"):
        fit(model, guide, X, objective=objective, num_steps=4, progress=False)


def test_a_generator_that_is_used_up_ends_the_fit_and_nothing_is_lost() -> None:
    batches = (X + i for i in range(3))
    with pytest.warns(UserWarning, match=r"batches were used up after 3 of 10 steps"):
        result = fit(
            model, guide, batches=batches, objective=StandardELBO(), num_steps=10, progress=False
        )
    assert result.num_steps == len(result.losses) == 3
    assert result.posterior(5)["posterior"]["z"].sizes["draw"] == 5


def test_masked_data_must_be_numbers_too() -> None:
    """Their log-density is left out, but its gradient would be NaN."""

    def masked(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)), pyro.poutine.mask(mask=~x.isnan()):
            pyro.sample("x", dist.Normal(z, 1.0, validate_args=False), obs=x)

    with pytest.raises(ValueError, match=r"Site 'x' observes 2 NaN.*or the gradient of it"):
        fit(masked, guide, broken(NAN), objective=StandardELBO(), num_steps=5, progress=False)


def test_data_that_are_not_finite_but_have_a_density_are_welcome() -> None:
    class Censored(dist.Normal):
        """NaN stands for a value below 0."""

        def log_prob(self, value: Tensor) -> Tensor:
            seen = super().log_prob(value.nan_to_num())
            return torch.where(value.isnan(), self.cdf(torch.zeros(())).log(), seen)

    def censored(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", Censored(z, 1.0, validate_args=False), obs=x)

    found = fit(censored, guide, broken(NAN), objective=StandardELBO(), num_steps=3, progress=False)
    assert np.isfinite(found.losses).all()


def test_one_group_of_several_may_be_empty() -> None:
    def groups(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)
        pyro.sample("none", dist.Normal(z, 1.0).expand([0]).to_event(1), obs=x[:0])

    found = fit(groups, guide, X, objective=StandardELBO(), num_steps=3, progress=False)
    assert found.num_steps == 3


def test_a_last_step_that_makes_a_parameter_nan() -> None:
    """The loss before it is finite, so that only the parameters tell."""

    def rooted(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("at", torch.zeros(())).sqrt(), 1.0))

    with pytest.raises(FloatingPointError, match=r"The last step made 1 of the 1 .*'at' NaN"):
        fit(
            model,
            rooted,
            X,
            objective=StandardELBO(gradient="pathwise"),
            optimizer=pyro.optim.Adam({"lr": 0.1}),
            num_steps=1,
            progress=False,
        )


def test_a_batch_with_nan_is_named_by_its_step() -> None:
    batches = [X, X, broken(NAN)]
    with pytest.raises((FloatingPointError, ValueError), match=r"step 3|'x'"):
        fit(model, guide, batches=batches, objective=Trace_ELBO(), num_steps=9, progress=False)
