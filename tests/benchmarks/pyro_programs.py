"""Programs of Pyro's examples and tutorials, with an objective of this package for Pyro's loss.

    python -m tests.benchmarks.pyro_programs --pyro PATH [--fit] [--only NAME ...]

PATH is a checkout of Pyro. Each program is run from there, with mock data where its own would have
to be downloaded, up to the first step of its `SVI`; model, guide, loss and arguments are taken
over. The table says whether our objective gives the loss that Pyro's gives under the same seed, or
within the noise of many seeds, what `compiled` does with it, and with `--fit` what
`fit(compile=True)` does.
"""

import argparse
import importlib
import io
import json
import linecache
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock, patch

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import infer, poutine
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal, AutoNormalizingFlow

from pyro_elbo_lab import AnalyticKLELBO, StandardELBO, compiled, fit
from pyro_elbo_lab.compilation.native import runner

DRAWS = 100
NOISE = 4.0  # standard errors
ROUNDING = 1e-4
FIT_STEPS = 5


class Program(NamedTuple):
    """What `SVI` was given in the program."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    loss: infer.ELBO
    args: tuple = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


class _StepError(Exception):
    """The first step of a program's SVI; holds the program."""


class _Recorder:
    """Stands where `SVI` stood."""

    def __init__(self, model: Any, guide: Any, optim: Any, loss: Any, **_: Any) -> None:
        self.given = model, guide, loss
        self.loss = getattr(loss, "loss", loss)

    def step(self, *args: Any, **kwargs: Any) -> float:
        raise _StepError(Program(*self.given, args, kwargs))


@contextmanager
def place(*folders: Path) -> Iterator[None]:
    """Modules of these folders can be imported; what is not installed is a mock."""
    before = set(sys.modules)
    sys.path[:0] = map(str, folders)
    mocks = {}
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "visdom", "wget"):
        mocks[name] = MagicMock()
    for name in (
        "scanpy",
        "anndata",
        "observations",
        "seaborn",
        "lightning",
        "wordcloud",
        "corner",
        "graphviz",
    ):
        mocks[name] = MagicMock()
    for name in ("matplotlib", "matplotlib.pyplot", "matplotlib.gridspec", "matplotlib.patches"):
        mocks[name] = MagicMock()
    mocks["matplotlib"].pyplot = mocks["matplotlib.pyplot"]
    mocks["matplotlib.pyplot"].subplots.return_value = MagicMock(), MagicMock()
    try:
        with patch.dict(sys.modules, mocks):
            yield
    finally:
        del sys.path[: len(folders)]
        for name in set(sys.modules) - before:
            origin = str(getattr(sys.modules[name], "__file__", ""))
            if any(origin.startswith(str(folder)) for folder in folders):
                del sys.modules[name]


def imported(folder: Path, name: str) -> Any:
    with place(folder):
        return importlib.import_module(name)


def up_to_svi(run: Callable[[], Any]) -> Program:
    """Run something up to the first step of its SVI."""
    silent = patch.object(pyro, "render_model", MagicMock()), redirect_stdout(io.StringIO())
    with patch.object(infer, "SVI", _Recorder), silent[0], silent[1]:
        try:
            run()
        except _StepError as step:
            return step.args[0]
    raise RuntimeError("it takes no step")


_LEFT_OUT = "%", "!", "assert pyro.__version__"


def notebook(path: Path, cells: Callable[[str], bool] = lambda text: True, **names: Any) -> Program:
    """Run the chosen cells of a notebook up to the first step of its SVI."""
    content = json.loads(path.read_text())
    code = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]
    space: dict[str, Any] = {"__name__": "notebook", **names}

    def run() -> None:
        for i, text in enumerate(code):
            lines = [x for x in text.splitlines() if not x.lstrip().startswith(_LEFT_OUT)]
            if cells(text):
                source = "\n".join(lines)
                cell = f"{path.stem}-{i}"
                linecache_of(cell, source)
                exec(compile(source, cell, "exec"), space)

    with place(path.parent), patch.dict(os.environ, CI="1"):
        return up_to_svi(run)


def linecache_of(name: str, source: str) -> None:
    """Reasons show the line of a cell."""
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)


PROGRAMS: dict[str, Callable[[Path], Program]] = {}


def program(name: str) -> Callable[[Callable[[Path], Program]], Callable[[Path], Program]]:
    def enter(build: Callable[[Path], Program]) -> Callable[[Path], Program]:
        PROGRAMS[name] = build
        return build

    return enter


@program("vae")
def _(pyro_: Path) -> Program:
    vae = imported(pyro_ / "examples/vae", "vae").VAE(z_dim=8, hidden_dim=32)
    return Program(vae.model, vae.guide, infer.Trace_ELBO(), (torch.rand(16, 784),))


def _ss_vae(pyro_: Path) -> Any:
    return imported(pyro_ / "examples/vae", "ss_vae_M2").SSVAE(
        z_dim=5, hidden_layers=[16], config_enum="parallel", aux_loss_multiplier=46
    )


@program("ss-vae, unlabeled")
def _(pyro_: Path) -> Program:
    vae = _ss_vae(pyro_)
    guide = infer.config_enumerate(vae.guide, "parallel", expand=True)
    images = torch.rand(6, 784).round()
    return Program(vae.model, guide, infer.TraceEnum_ELBO(max_plate_nesting=1), (images,))


@program("ss-vae, auxiliary loss")
def _(pyro_: Path) -> Program:
    vae = _ss_vae(pyro_)
    labels = torch.eye(10)[:6]
    args = torch.rand(6, 784).round(), labels
    return Program(vae.model_classify, vae.guide_classify, infer.Trace_ELBO(), args)


def _hmm(pyro_: Path, number: int, batch_size: int | None = None) -> Program:
    module = imported(pyro_ / "examples", "hmm")
    args = SimpleNamespace(
        hidden_dim=4, jit=False, nn_dim=6, nn_channels=2, raftery_parameterization=False
    )
    module.args = args
    lengths = torch.tensor([5, 3, 4, 5])
    sequences = (torch.rand(4, 5, 7) > 0.6).float()
    sequences = sequences * (torch.arange(5) < lengths[:, None])[..., None]
    model = module.models[str(number)]
    guide = AutoDelta(poutine.block(model, expose_fn=lambda msg: msg["name"].startswith("probs_")))
    if number == 5:
        module.tones_generator = None
    nesting = 1 if number == 0 else 2
    loss = infer.TraceEnum_ELBO(max_plate_nesting=nesting, strict_enumeration_warning=number != 7)
    return Program(
        model, guide, loss, (sequences, lengths), {"args": args, "batch_size": batch_size}
    )


for _number in (0, 1, 2, 4, 6, 7):
    PROGRAMS[f"hmm {_number}"] = partial(_hmm, number=_number)
PROGRAMS["hmm 1, in minibatches"] = partial(_hmm, number=1, batch_size=3)


@program("lda")
def _(pyro_: Path) -> Program:
    module = imported(pyro_ / "examples", "lda")
    args = SimpleNamespace(
        num_topics=3, num_words=12, num_docs=9, num_words_per_doc=6, layer_sizes="8-8",
        learning_rate=0.01, batch_size=4, num_steps=1, jit=False,
    )  # fmt: skip
    return _taken(module, args)


def _taken(module: Any, args: Any) -> Program:
    """The program that a module's `main` gives to SVI."""
    with patch.object(module, "SVI", _Recorder):
        return up_to_svi(lambda: module.main(args))


@program("dmm")
def _(pyro_: Path) -> Program:
    module = imported(pyro_ / "examples", "dmm")
    dmm = module.DMM(input_dim=11, z_dim=4, emission_dim=5, transition_dim=6, rnn_dim=7, num_iafs=0)
    poly = module.poly
    lengths = torch.tensor([5, 3, 4, 2])
    sequences = (torch.rand(4, 5, 11) > 0.5).float()
    batch = poly.get_mini_batch(torch.arange(4), sequences, lengths)
    return Program(dmm.model, dmm.guide, infer.Trace_ELBO(), (*batch, 0.5))


def _gamma(pyro_: Path, kind: str) -> Program:
    module = imported(pyro_ / "examples", "sparse_gamma_def")
    deep = module.SparseGammaDEF()
    images = torch.distributions.Poisson(2.0).sample((6, 64 * 64))
    guide = module.MyEasyGuide(deep.model) if kind == "easy" else deep.guide
    return Program(deep.model, guide, infer.TraceMeanField_ELBO(), (images,))


@program("sparse gamma, easy guide")
def _(pyro_: Path) -> Program:
    return _gamma(pyro_, "easy")


@program("sparse gamma, own guide")
def _(pyro_: Path) -> Program:
    return _gamma(pyro_, "own")


@program("sparse regression")
def _(pyro_: Path) -> Program:
    module = imported(pyro_ / "examples", "sparse_regression")
    hypers = {
        "expected_sparsity": 1.0, "alpha1": 3.0, "beta1": 1.0, "alpha2": 3.0, "beta2": 1.0,
        "alpha3": 1.0, "c": 1.0,
    }  # fmt: skip
    x, y, *_ = module.get_data(N=20, P=6, S=3, Q=2, sigma_obs=0.1)
    guide = AutoDelta(module.model, init_loc_fn=module.init_loc_fn)
    return Program(module.model, guide, infer.Trace_ELBO(), (x, y, hypers))


@program("neutra")
def _(pyro_: Path) -> Program:
    module = imported(pyro_ / "examples", "neutra")
    flow = partial(module.iterated, 1, module.block_autoregressive)
    guide = AutoNormalizingFlow(module.model, flow)
    return Program(module.model, guide, infer.Trace_ELBO(), (1.15, 1.0))


@program("svi with torch, local parameters")
def _(pyro_: Path) -> Program:
    module = imported(pyro_ / "examples", "svi_torch")
    pyro.settings.set(module_local_params=True)
    covariates = torch.randn(20)
    with torch.no_grad():
        data = module.Model(20)(covariates)
    model = module.Model(20)
    return Program(model, AutoNormal(model), infer.Trace_ELBO(), (covariates[:10], data[:10]))


@program("cvae")
def _(pyro_: Path) -> Program:
    module = imported(pyro_ / "examples/cvae", "cvae")
    baseline = imported(pyro_ / "examples/cvae", "baseline").BaselineNet(16, 16)
    net = module.CVAE(5, 16, 16, baseline)
    pixels = torch.rand(6, 28, 28)
    seen = pixels.clone()
    seen[:, :, :14] = -1
    return Program(net.model, net.guide, infer.Trace_ELBO(), (seen, pixels))


@program("air")
def _(pyro_: Path) -> Program:
    module = imported(pyro_ / "examples/air", "air")
    air = module.AIR(
        num_steps=2, x_size=10, window_size=6, z_what_size=3, rnn_hidden_size=8,
        encoder_net=[8], decoder_net=[8], predict_net=[8], bl_predict_net=[8],
    )  # fmt: skip
    kwargs = {"batch_size": 4, "z_pres_prior_p": lambda t: 0.5}
    return Program(air.model, air.guide, infer.TraceGraph_ELBO(), (torch.rand(8, 10, 10),), kwargs)


def _cjs(pyro_: Path, number: str) -> Program:
    module = imported(pyro_ / "examples/capture_recapture", "cjs")
    model = module.models[number]
    shown = poutine.block(model, expose_fn=lambda msg: msg["name"][:3] in ("phi", "rho"))
    history, sex = (torch.rand(9, 5) > 0.5).float(), (torch.rand(9) > 0.5).float()
    history[:, 0] = 1.0
    loss = infer.TraceEnum_ELBO(max_plate_nesting=1, num_particles=5, vectorize_particles=True)
    return Program(model, AutoDiagonalNormal(shown), loss, (history, sex))


for _name in "15":
    PROGRAMS[f"capture-recapture {_name}"] = partial(_cjs, number=_name)


@program("eight schools")
def _(pyro_: Path) -> Program:
    module = imported(pyro_ / "examples/eight_schools", "svi")
    return Program(module.model, module.guide, infer.Trace_ELBO(), (module.data,))


@program("scanvi")
def _(pyro_: Path) -> Program:
    module = imported(pyro_ / "examples/scanvi", "scanvi")
    net = module.SCANVI(num_genes=8, num_labels=4, l_loc=2.0, l_scale=0.5, scale_factor=0.02)
    guide = infer.config_enumerate(net.guide, "parallel", expand=True)
    counts = torch.distributions.Poisson(3.0).sample((6, 8))
    return Program(
        net.model, guide, infer.TraceEnum_ELBO(strict_enumeration_warning=False), (counts, None)
    )


@program("toy mixture")
def _(pyro_: Path) -> Program:
    module = imported(pyro_ / "examples", "toy_mixture_model_discrete_enumeration")
    prior, _, data = module.generate_data(12)
    return up_to_svi(lambda: module.train(prior, data, 1, 12))


@program("autoname mixture")
def _(pyro_: Path) -> Program:
    module = imported(pyro_ / "examples/contrib/autoname", "mixture")
    data = torch.tensor([0.0, 1.0, 20.0, 30.0])
    return Program(module.model, module.guide, infer.Trace_ELBO(), (data,), {"k": 2})


@program("cevae")
def _(pyro_: Path) -> Program:
    from pyro.contrib.cevae import CEVAE

    cevae = CEVAE(feature_dim=5, latent_dim=4, hidden_dim=6, num_layers=2, num_samples=2)
    x, t, y = torch.randn(8, 5), (torch.rand(8) > 0.5).float(), (torch.rand(8) > 0.5).float()
    cevae.whiten = lambda rows: rows
    loss = infer.Trace_ELBO()
    return Program(cevae.model, cevae.guide, loss, (), {"x": x, "t": t, "y": y, "size": 100})


@program("mixed hmm")
def _(pyro_: Path) -> Program:
    folder = pyro_ / "examples/mixed_hmm"
    module = imported(folder.parent, "mixed_hmm.model")
    states, steps, persons, groups = 2, 4, 3, 2
    config: dict[str, Any] = {
        "MISSING": 1e-6,
        "sizes": {
            "state": states,
            "random": 2,
            "group": groups,
            "individual": persons,
            "timesteps": steps,
        },
        "group": {"random": "continuous", "fixed": None},
        "individual": {
            "random": "continuous",
            "fixed": None,
            "mask": torch.ones(persons, groups).bool(),
        },
        "timestep": {
            "random": None,
            "fixed": None,
            "mask": torch.ones(steps, persons, groups).bool(),
        },
        "observations": {
            "step": torch.rand(steps, persons, groups) + 0.1,
            "angle": torch.rand(steps, persons, groups),
            "omega": 0.1 + 0.8 * torch.rand(steps, persons, groups),
        },
    }
    # the example keeps (groups, individuals, time) the other way round
    for name, x in config["observations"].items():
        config["observations"][name] = x.permute(2, 1, 0).transpose(0, 1)
    config["timestep"]["mask"] = torch.ones(persons, groups, steps).bool()
    model = partial(module.model_generic, config)
    guide = partial(module.guide_generic, config)
    return Program(model, guide, infer.TraceEnum_ELBO(max_plate_nesting=2))


def _tutorial(name: str, cells: Callable[[str], bool] = lambda text: True, **names: Any) -> None:
    PROGRAMS[f"tutorial: {name}"] = lambda pyro_: notebook(
        pyro_ / "tutorial/source" / f"{name}.ipynb", cells, **names
    )


def _words(*words: str) -> Callable[[str], bool]:
    return lambda text: any(word in text for word in words)


def _frame(*_: Any, **__: Any) -> Any:
    import pandas

    rng = np.random.default_rng(0)
    return pandas.DataFrame(
        {
            "cont_africa": rng.integers(0, 2, 12).astype(float),
            "rugged": rng.random(12),
            "rgdppc_2000": np.exp(rng.normal(8, 1, 12)),
        }
    )


@contextmanager
def mock_tables() -> Iterator[None]:
    import pandas

    with patch.object(pandas, "read_csv", _frame):
        yield


for _name in ("svi_part_i", "intro_part_ii", "easyguide", "mle_map", "svi_flow_guide", "gmm"):
    _tutorial(_name)
for _name in ("dirichlet_process_mixture", "ekf", "modules", "working_memory", "tracking_1d"):
    _tutorial(_name)
for _name in ("svi_part_iii", "bayesian_regression", "intro_long"):
    _tutorial(_name)
_tutorial(
    "prodlda",
    _words("class Encoder", "prodLDA = ProdLDA", "import math"),
    pyro=pyro, dist=dist, torch=torch, smoke_test=True, device=torch.device("cpu"), num_topics=3,
    docs=torch.distributions.Poisson(1.0).sample((40, 30)), batch_size=32, learning_rate=1e-3,
    num_epochs=1, trange=lambda n: MagicMock(__iter__=lambda self: iter(range(n))),
)  # fmt: skip


@dataclass
class Row:
    """A line of the table."""

    name: str
    theirs: str = ""
    ours: str = ""
    equal: str = ""
    compiled: str = ""
    fitted: str = ""
    seconds: float = field(default=0.0)


def objective_for(loss: Any) -> Any:
    """Our objective in place of Pyro's loss."""
    kind = AnalyticKLELBO if isinstance(loss, infer.TraceMeanField_ELBO) else StandardELBO
    nesting = getattr(loss, "max_plate_nesting", float("inf"))
    return kind(
        loss.num_particles, vectorize_particles=loss.vectorize_particles, max_plate_nesting=nesting
    )


def losses(loss: Any, p: Program, draws: int) -> np.ndarray:
    found = []
    for seed in range(draws):
        pyro.set_rng_seed(seed)
        with torch.no_grad():
            found.append(float(loss.loss(p.model, p.guide, *p.args, **p.kwargs)))
    return np.array(found)


def agreement(theirs: np.ndarray, ours: np.ndarray) -> str:
    if np.allclose(theirs, ours, rtol=ROUNDING):
        return "equal"
    error = np.sqrt((theirs.var(ddof=1) + ours.var(ddof=1)) / len(ours))
    z = abs(theirs.mean() - ours.mean()) / error
    return f"{z:.1f} se" if z < NOISE else f"**differs, {z:.0f} se**"


def short(text: str) -> str:
    return " ".join(text.split())[:230].replace("|", "/")


def examine(name: str, pyro_: Path, with_fit: bool, draws: int = DRAWS) -> Row:
    pyro.clear_param_store()
    pyro.settings.set(module_local_params=False)
    pyro.set_rng_seed(0)
    row, started = Row(name), time.perf_counter()
    try:
        with mock_tables():
            p = PROGRAMS[name](pyro_)
    except Exception as error:
        row.compiled = f"not run: {type(error).__name__}: {short(str(error))}"
        traceback.print_exc(limit=-3)
        return row
    row.theirs = type(p.loss).__name__
    mine = objective_for(p.loss)
    row.ours = type(mine).__name__ if type(mine).__name__ != "Objective" else mine.name
    try:
        losses(p.loss, p, 1), losses(mine, p, 1)  # plans and lazy parameters are made
        row.equal = agreement(losses(p.loss, p, draws), losses(mine, p, draws))
        row.compiled = short(
            compiled(mine, backend="graph").status(p.model, p.guide, *p.args, **p.kwargs)
        )
    except Exception as error:
        row.equal = f"refused: {short(str(error))}"
    if not row.compiled:
        row.compiled = f"with {row.theirs}: {ran(p.loss, p)}"
    if with_fit and not row.equal.startswith("refused"):
        row.fitted = fitted(mine, p)
    row.seconds = time.perf_counter() - started
    return row


def ran(loss: Any, p: Program) -> str:
    """What `compiled` does with a loss."""
    try:
        status = compiled(loss, backend="graph").status
        return short(status(p.model, p.guide, *p.args, **p.kwargs))
    except Exception as error:
        return f"failed: {short(str(error))}"


def fitted(mine: Any, p: Program) -> str:
    try:
        result = fit(
            p.model, p.guide, *p.args, objective=mine, num_steps=FIT_STEPS, compile=True,
            optimizer=pyro.optim.Adam({"lr": 1e-3}), progress=False, **p.kwargs,
        )  # fmt: skip
        return short(result.compilation)
    except Exception as error:
        return f"failed: {short(str(error))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pyro", type=Path, required=True, help="a checkout of Pyro")
    parser.add_argument(
        "--fit", action="store_true", help="also fit, compiled, which takes minutes"
    )
    parser.add_argument("--only", nargs="*", help="names of programs")
    parser.add_argument("--draws", type=int, default=DRAWS, help="losses that are compared")
    parser.add_argument(
        "--quick", action="store_true", help="fits run their graphs without inductor"
    )
    options = parser.parse_args()
    if options.quick:
        runner.MOST_NODES = 0
    names = options.only or list(PROGRAMS)
    print("| program | Pyro's loss | ours | losses | `compiled` | `fit(compile=True)` | s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    captured = 0
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = examine(name, options.pyro.resolve(), options.fit, options.draws)
        captured += row.compiled.endswith("captured")
        cells = row.name, row.theirs, row.ours, row.equal, row.compiled, row.fitted
        print("| " + " | ".join(cells) + f" | {row.seconds:.0f} |", flush=True)
    print(f"\n{captured} of {len(names)} captured.")


if __name__ == "__main__":
    main()
