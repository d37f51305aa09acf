"""What is imported when: nothing that is not needed, and a word on what is missing."""

import ast

import pytest

import pyro_elbo_lab
from tests.support.processes import printed

HEAVY = (
    "torch",
    "pyro",
    "numpy",
    "arviz_base",
    "arviz_stats",
    "xarray",
    "pandas",
    "matplotlib",
    "sklearn",
    "scipy",
    "nutpie",
    "joblib",
    "torch._inductor",
)
LOADED = f"import sys; print([m for m in {HEAVY!r} if m in sys.modules])"


@pytest.mark.parametrize(
    "code",
    [
        "import pyro_elbo_lab; dir(pyro_elbo_lab); pyro_elbo_lab.__version__",
        "from pyro_elbo_lab.cli.options import parser; parser().format_help()",
    ],
)
def test_no_library_is_loaded_before_it_is_used(code: str) -> None:
    assert ast.literal_eval(printed(f"{code}; {LOADED}")) == []


def test_a_loss_loads_pyro_and_little_more() -> None:
    loaded = ast.literal_eval(printed(f"from pyro_elbo_lab import StandardELBO; {LOADED}"))
    assert loaded == ["torch", "pyro", "numpy"]


def test_every_public_name_is_there() -> None:
    assert [name for name in pyro_elbo_lab.__all__ if not hasattr(pyro_elbo_lab, name)] == []
    assert set(dir(pyro_elbo_lab)) >= set(pyro_elbo_lab.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pyro_elbo_lab.no_such_name  # type: ignore[attr-defined]


TRAINING = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
import torch, pyro, pyro.distributions as dist
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
import pyro_elbo_lab as lab
def model():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
guide, objective = AutoNormal(model), lab.ImportanceWeightedELBO(4)
SVI(model, guide, pyro.optim.Adam({{"lr": 0.01}}), objective).step()
quick = dict(num_steps=3, compile=False, progress=False)
result = lab.fit(model, guide, objective=objective, **quick)
assert result.losses.shape == (3,)
try:
    {use}
except ModuleNotFoundError as error:
    print(error)
"""

ARVIZ = ("arviz", "arviz_base", "arviz_stats", "arviz_plots")
MISSING = {
    "result.posterior()": (ARVIZ, "Fit.posterior needs arviz", "arviz"),
    "result.plot_loss()": (("matplotlib",), "Fit.plot_loss needs matplotlib", "matplotlib"),
    "lab.nuts(model)": (("nutpie",), "nuts needs nutpie", "nutpie"),
    "lab.compare": (("sklearn",), "compare needs scikit-learn", "scikit-learn"),
    "lab.from_guide": (("pandas", "xarray"), "from_guide needs xarray", "xarray"),
    "lab.sbc": (("joblib",), "sbc needs joblib", "joblib"),
}


@pytest.mark.parametrize("use", MISSING)
def test_what_is_missing_is_named_where_it_is_needed_and_nothing_else_fails(use: str) -> None:
    missing, said, package = MISSING[use]
    said_there = printed(TRAINING.format(missing=missing, use=use))
    assert said_there.strip() == f"{said}, which is not installed: pip install {package}"
