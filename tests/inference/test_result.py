"""A fit owns its numbers: nothing that comes after it changes what it gives."""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
)
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_elbo_lab.compilation.compiled_objective import compiled
from pyro_elbo_lab.inference.fitting.fit import fit
from pyro_elbo_lab.inference.fitting.result import Fit
from pyro_elbo_lab.inference.trees.convert import from_guide
from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from pyro_elbo_lab.programs.state import store_state

Guide = Callable[..., Any]


def model(y: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m, s), obs=y)


def function(y: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))
    pyro.sample("s", dist.LogNormal(pyro.param("log_s", torch.tensor(0.0)), 0.2))


class Written(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.0))
        self.scale = PyroParam(torch.tensor(0.5), constraints.positive)
        self.linear = nn.Linear(1, 1)

    def forward(self, y: Tensor) -> None:
        pyro.sample("m", dist.Normal(self.loc, self.scale))
        pyro.sample("s", dist.LogNormal(self.linear(torch.zeros(1))[0], 0.2))


def parts() -> Guide:
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["m"])))
    guide.append(AutoDelta(poutine.block(model, expose=["s"])))
    return guide


class Encoder(nn.Module):
    """Whose running statistics are a part of what it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, y: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(y[:, None])))).mean(0)


def amortized(encoder: nn.Module | None = None) -> Guide:
    net = encoder or Encoder()

    def guide(y: Tensor) -> None:
        pyro.module("encoder", net)
        loc, log_s = net(y)
        pyro.sample("m", dist.Normal(loc, 0.3))
        pyro.sample("s", dist.LogNormal(log_s, 0.2))

    return guide


def flow() -> Guide:
    transform = dist.transforms.affine_autoregressive(2, hidden_dims=[4])

    def guide(y: Tensor) -> None:
        pyro.module("flow", transform)
        base = dist.Normal(torch.zeros(2), 0.5).to_event(1)
        both = pyro.sample(
            "both",
            dist.TransformedDistribution(base, [transform]),
            infer={"is_auxiliary": True},
        )
        pyro.sample("m", dist.Delta(both[0]))
        pyro.sample("s", dist.Delta(both[1].exp(), log_density=-both[1]))

    return guide


class Autoencoder(nn.Module):
    """Model and guide are methods of a module that is not Pyro's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()

    def guide(self, y: Tensor) -> None:
        amortized(self.encoder)(y)


GUIDES: dict[str, Callable[[], Guide]] = {
    "AutoNormal": lambda: AutoNormal(model),
    "AutoDiagonalNormal": lambda: AutoDiagonalNormal(model),
    "AutoMultivariateNormal": lambda: AutoMultivariateNormal(model),
    "AutoLowRankMultivariateNormal": lambda: AutoLowRankMultivariateNormal(model),
    "AutoDelta": lambda: AutoDelta(model),
    "AutoLaplaceApproximation": lambda: AutoLaplaceApproximation(model),
    "AutoIAFNormal": lambda: AutoIAFNormal(model),
    "AutoNormalizingFlow": lambda: AutoNormalizingFlow(
        model, lambda n: dist.transforms.affine_autoregressive(n)
    ),
    "AutoGuideList": parts,
    "function": lambda: function,
    "PyroModule": Written,
    "module with statistics": amortized,
    "flow": flow,
    "method": lambda: Autoencoder().guide,
}
ROWS = [torch.linspace(-3, -1, 15), torch.linspace(1, 3, 15)]


def train(guide: Guide, y: Tensor, num_steps: int = 30, **keywords: Any) -> Fit:
    optimizer = pyro.optim.Adam({"lr": 0.1})
    settings: dict[str, Any] = {"compile": False, "progress": False, "optimizer": optimizer}
    objective = StandardELBO()
    return fit(model, guide, y, objective=objective, num_steps=num_steps, **settings, **keywords)


def draws(result: Fit) -> np.ndarray:
    posterior = result.posterior(20)["posterior"].dataset
    return np.stack([posterior["m"].values, posterior["s"].values])


def everything(*modules: Any) -> dict[str, Tensor]:
    """The param store and all values in modules, with the tensors' identities."""
    found = {f"store: {name}": leaf for name, leaf in store_state()[0].items()}
    for i, module in enumerate(modules):
        if isinstance(module, nn.Module):
            found |= {f"{i}: {name}": x for name, x in module.state_dict(keep_vars=True).items()}
    return found


def modules_in(guide: Guide) -> list[Any]:
    cells = getattr(guide, "__closure__", None) or ()
    return [guide, getattr(guide, "__self__", None), *[cell.cell_contents for cell in cells]]


@pytest.fixture(params=[False, True], ids=["in the store", "local"])
def local(request: pytest.FixtureRequest) -> Any:
    with pyro.settings.context(module_local_params=request.param):
        yield request.param


@pytest.mark.parametrize("kind", GUIDES)
def test_a_fit_keeps_its_numbers(kind: str, local: bool, tmp_path: Path) -> None:
    """Whatever happens to the param store, to another guide or to the same one."""
    fits = [train(GUIDES[kind](), y) for y in ROWS]
    expected = [draws(result) for result in fits]
    assert expected[0][0].mean() < expected[1][0].mean() - 1
    parameters = {name: x.clone() for name, x in fits[0].parameters.items()}

    before = everything(*modules_in(fits[0].guide), *modules_in(fits[1].guide))
    values = {name: x.detach().clone() for name, x in before.items()}
    random = torch.get_rng_state()
    np.testing.assert_array_equal(draws(fits[0]), expected[0])
    np.testing.assert_array_equal(draws(fits[1]), expected[1])
    after = everything(*modules_in(fits[0].guide), *modules_in(fits[1].guide))
    assert before.keys() == after.keys()
    for name, x in before.items():
        assert after[name] is x, f"posterior() has replaced {name}"
        torch.testing.assert_close(x.detach(), values[name], rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)

    train(fits[0].guide, ROWS[1] + 1, num_steps=5)
    pyro.clear_param_store()
    for result, draws_then in zip(fits, expected, strict=True):
        np.testing.assert_array_equal(draws(result), draws_then)
    for name, x in parameters.items():
        torch.testing.assert_close(fits[0].parameters[name], x, rtol=0, atol=0)
    assert not list(pyro.get_param_store())

    fits[0].save(tmp_path / "fit.pt")
    loaded = Fit.load(tmp_path / "fit.pt", model, GUIDES[kind](), ROWS[0], objective=StandardELBO())
    np.testing.assert_array_equal(draws(loaded), expected[0])
    np.testing.assert_array_equal(draws(fits[1]), expected[1])


@pytest.mark.parametrize("kind", ["AutoNormal", "function", "PyroModule", "module with statistics"])
def test_restore_writes_the_values_for_good(kind: str) -> None:
    fits = [train(GUIDES[kind](), y) for y in ROWS]
    expected = draws(fits[0])
    fits[0].restore()
    pyro.set_rng_seed(0)
    tree = from_guide(fits[0].guide, model, ROWS[0], num_samples=20)
    np.testing.assert_array_equal(tree["posterior"]["m"].values, expected[0])
    assert fits[0].parameters.keys() <= set(pyro.get_param_store())


def test_edits_by_hand_do_not_reach_a_fit() -> None:
    guide = Written()
    result = train(guide, ROWS[0])
    expected = draws(result)
    with torch.no_grad():
        guide.loc.add_(5.0)
    guide.scale = torch.tensor(9.0)
    guide.linear.weight = nn.Parameter(torch.full((1, 1), 7.0))
    guide.linear.bias = nn.Parameter(torch.full((1,), 7.0))
    pyro.get_param_store()["loc"] = torch.tensor(8.0)
    np.testing.assert_array_equal(draws(result), expected)
    assert guide.linear.bias.item() == 7.0


def test_parameters_of_a_model_are_the_fits_own() -> None:
    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(0.0))

        def forward(self, y: Tensor) -> None:
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            pyro.deterministic("shifted", m + self.shift)
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(m + self.shift, 1.0), obs=y)

    fits, means = [], []
    for y in ROWS:
        program = Regression()
        fits.append(
            fit(
                program,
                AutoNormal(program),
                y,
                objective=StandardELBO(),
                num_steps=80,
                compile=False,
                progress=False,
            )
        )
        means.append(float(fits[-1].posterior(50)["posterior"]["shifted"].mean()))
    assert means[0] < -1 and means[1] > 1
    again = [float(result.posterior(50)["posterior"]["shifted"].mean()) for result in fits]
    assert again == means


def test_a_network_registered_under_a_name_in_use_is_trained() -> None:
    """Pyro alone trains the network that had the name first, and leaves the second as it is."""
    train(amortized(), ROWS[0], num_steps=3)
    second = Encoder()
    start = second.last.bias.detach().clone()
    train(amortized(second), ROWS[1], num_steps=3)
    assert (second.last.bias - start).abs().min() > 0.05


def test_two_modules_with_one_name_for_their_parameters_are_refused() -> None:
    class Scaled(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.tensor(0.0))

        def forward(self, y: Tensor) -> None:
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(m + self.loc, s), obs=y)

    with pytest.raises(ValueError, match=r"Two modules .* have a parameter 'loc'"):
        fit(Scaled(), Written(), ROWS[0], objective=StandardELBO(), num_steps=2, progress=False)


def test_parameters_that_not_every_run_reads_are_kept() -> None:
    def sometimes(y: Tensor) -> None:
        runs.append(1)
        loc = pyro.param(f"loc_{len(runs) % 3}", torch.tensor(0.5))
        pyro.sample("m", dist.Normal(loc, 0.1))
        pyro.sample("s", dist.LogNormal(0.0, 0.1))

    runs: list[int] = []
    result = train(sometimes, ROWS[1], num_steps=12)
    assert set(result.parameters) == {"loc_0", "loc_1", "loc_2"}


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_around_it_a_fit_trains(context: Callable[[], Any]) -> None:
    expected = train(AutoNormal(model), ROWS[0])
    with context():
        found = train(AutoNormal(model), ROWS[0])
        inside = train(AutoNormal(model), torch.linspace(-3, -1, 15))
        np.testing.assert_array_equal(draws(found), draws(expected))
    np.testing.assert_array_equal(found.losses, expected.losses)
    np.testing.assert_array_equal(inside.losses, expected.losses)
    assert found.parameters["AutoNormal.locs.m"] < -0.5


def test_without_gradients_around_them_objectives_give_gradients() -> None:
    def gradient(loss: ELBO, context: Callable[[], Any] = nullcontext) -> Tensor:
        pyro.clear_param_store()
        function(ROWS[0])
        pyro.set_rng_seed(1)
        with context():
            loss.loss_and_grads(model, function, ROWS[0])
        found = store_state()[0]["loc"].grad
        assert found is not None
        return found

    expected = gradient(StandardELBO())
    for context in (torch.no_grad, torch.inference_mode):
        for loss in (StandardELBO(), compiled(StandardELBO(), backend="graph")):
            torch.testing.assert_close(gradient(loss, context), expected)


def test_running_statistics_are_not_moved_by_looking() -> None:
    net = Encoder()
    result = train(amortized(net), ROWS[0], num_steps=7)
    moved = int(net.norm.num_batches_tracked or 0)
    assert moved >= 7
    result.posterior(10)
    assert net.norm.num_batches_tracked == moved
    assert [x for name, x in result.buffers.items() if "tracked" in name] == [moved]


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, pyro
from tests.inference.test_result import GUIDES, ROWS, draws, model
from pyro_elbo_lab.objectives.lower_bounds import StandardELBO
from pyro_elbo_lab.inference.fitting.result import Fit
for kind in ("AutoNormal", "PyroModule", "function", "flow", "module with statistics"):
    loaded = Fit.load(f"{kind}.pt", model, GUIDES[kind](), ROWS[0], objective=StandardELBO())
    np.testing.assert_array_equal(draws(loaded), np.load(f"{kind}.npy"))
    pyro.clear_param_store()
print("same")
"""


def test_another_process_loads_the_same_numbers(tmp_path: Path) -> None:
    for kind in ("AutoNormal", "PyroModule", "function", "flow", "module with statistics"):
        result = train(GUIDES[kind](), ROWS[0], num_steps=20)
        result.save(tmp_path / f"{kind}.pt")
        np.save(tmp_path / f"{kind}.npy", draws(result))
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})" + SCRIPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "same", textwrap.shorten(done.stderr, 2000)
