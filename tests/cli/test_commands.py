"""The command line: from a model file to a report, and bad input refused with a reason."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from pyro_elbo_lab.cli import compare, main, options, session, specs
from pyro_elbo_lab.cli.model_file import InputError, ModelFile, blaming, load
from pyro_elbo_lab.cli.session import stem
from pyro_elbo_lab.objectives.objective import Objective
from tests.support.tolerances import critical_value

HEADER = """\
import pyro
import pyro.distributions as dist
import torch
"""

CONJUGATE = (
    HEADER
    + """
def data():
    return torch.tensor([1.0, 2.0, 1.5]), 1.0

def model(x, scale):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("i", len(x)):
        pyro.sample("x", dist.Normal(mu, scale), obs=x)

def handmade(x, scale):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.5))

guides = {"handmade": lambda: handmade}
"""
)
SHORT = ["--steps", "50", "--num-samples", "200"]
SHORT += ["--chains", "2", "--warmup", "100", "--draws", "100"]

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("my_model.py").write_text(text)
        return Path("my_model.py")

    return write


def run(file: Path | str, *options: str) -> int:
    return main.main(["compare", str(file), *options])


def test_compare_end_to_end(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(CONJUGATE)
    options = ["--guide", "handmade", "--guide", "normal", "--objective", "importance-weighted:4"]
    options += ["--objective", "analytic-kl", "--out", "out/report", *SHORT]
    assert run(file, *options) == 0
    names = [f"{g}, {o}" for g in ("handmade", "normal") for o in ("importance-weighted:4", "anal")]
    out, err = capfd.readouterr()
    for name in names:
        assert re.search(f"^{re.escape(name)}.*: ", out, re.MULTILINE)
    assert "max_abs_mean_error" in out
    assert "fitting normal, analytic-kl (4 of 4)" in err and "Traceback" not in err
    page = Path("out/report/index.html").read_text(encoding="utf-8")
    assert f"elbo-lab compare my_model.py {' '.join(options)}" in page
    assert "gradient evaluations" in page and 'id="training"' in page
    with xr.open_datatree("out/report/normal-analytic-kl.nc", engine="h5netcdf") as tree:
        assert tree.attrs["gradient_evaluations"] == 50 * 10  # steps, particles unless said
        assert tree["posterior"].sizes["draw"] == 200
    with xr.open_datatree("out/report/reference.nc", engine="h5netcdf") as tree:
        assert dict(tree["posterior"].sizes) == {"chain": 2, "draw": 100}


def test_compare_bounds_the_evidence_with_the_parameters_of_each_fit(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ELBOs are those of the draws that were compared, up to noise; unfitted ones are not."""
    options = ["--guide", "handmade", "--guide", "normal", "--num-samples", "2000"]
    assert run(write(CONJUGATE), *SHORT, *options, "--out", "r") == 0
    bounds = pd.read_csv("r/evidence.csv")
    summary = pd.read_csv("r/summary.csv", index_col=0)
    elbo = bounds[bounds["name"] == "ELBO"].set_index("approximation")
    assert len(elbo) == 2
    error = (elbo["value"] - summary["elbo"]) / np.hypot(elbo["se"], summary["elbo_se"])
    assert (abs(error) < critical_value(2)).all()
    # x ~ Normal(0, I + 4) once mu is integrated out.
    x, covariance = torch.tensor([1.0, 2.0, 1.5]), torch.eye(3) + 4.0
    exact = float(dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x))
    lower = bounds[(bounds["side"] == "lower") & bounds["believable"]]
    assert (lower["value"] - critical_value(len(lower)) * lower["se"] < exact).all()
    assert capsys.readouterr().out.count("log p(x) is at least") == 2
    assert 'id="evidence"' in Path("r/index.html").read_text(encoding="utf-8")


LEARNT = CONJUGATE.replace("dist.Normal(0.0, 2.0)", "dist.Normal(start(), 1.0)").replace(
    "\nguides =", "def start():\n    return pyro.param('a', torch.tensor(-20.0))\n\nguides ="
)


@pytest.mark.parametrize("command", ["compare", "evidence"])
def test_the_reference_has_the_parameters_that_the_fit_has_learnt(
    command: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """The evidence is largest at a = mean(x) = 1.5; at the first a it is -176 nats."""
    options = ["--steps", "4000", "--num-samples", "2000", "--chains", "2", "--draws", "1000"]
    assert main.main([command, str(write(LEARNT)), *options, "--out", "r"]) == 0
    out, err = capsys.readouterr()
    assert "the parameters just learnt: a" in err
    x, covariance = torch.tensor([1.0, 2.0, 1.5]), torch.eye(3) + 1.0
    best = float(dist.MultivariateNormal(torch.full((3,), 1.5), covariance).log_prob(x))
    low, high = re.findall(r"at least ([-.\d]+) .* at most ([-.\d]+) ", out)[0]
    assert abs(float(low) - best) < 0.05 and abs(float(high) - best) < 0.05
    if command == "compare":
        assert "a: as the fit has learnt them" in Path("r/index.html").read_text(encoding="utf-8")


def test_fits_that_learn_parameters_are_compared_one_by_one(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(LEARNT), "--guide", "normal", "--guide", "handmade") == 2
    assert re.search(r"learns parameters \(a\).*Choose one guide", capsys.readouterr().err)


EXACT = """
def exact_draws(num_draws, x, scale):
    precision = 1 / 4 + len(x) / scale**2
    return {"mu": x.sum() / precision + torch.randn(num_draws) / precision**0.5}
"""


def test_exact_draws_of_the_file_are_the_reference(write: Write) -> None:
    assert run(write(CONJUGATE + EXACT), *SHORT, "--out", "r") == 0
    with xr.open_datatree("r/reference.nc", engine="h5netcdf") as tree:
        assert tree.attrs["reliability"] == "exact draws, taken as such."
        assert tree["posterior/mu"].shape == (1, 200)


def test_a_guide_without_density_is_compared_without_evidence(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(CONJUGATE), "--guide", "delta", "--out", "r", *SHORT) == 0
    assert "no bounds of the evidence" in capsys.readouterr().err
    assert not Path("r/evidence.csv").exists()


def test_the_same_seed_gives_the_same_report(write: Write) -> None:
    file = write(CONJUGATE)
    for out in ("a", "b"):
        assert run(file, "--out", out, "--seed", "3", *SHORT) == 0
    tables = [Path(out, "table.csv").read_text() for out in ("a", "b")]
    assert tables[0] == tables[1]


def changed(old: str, new: str) -> str:
    assert old in CONJUGATE
    return CONJUGATE.replace(old, new)


BAD_FILES = {
    "not python": ("def model(:", r"my_model\.py, line 1: the file does not import: SyntaxError"),
    "import fails": ("x = 1\ny = x / 0\n", r"line 2 \(y = x / 0\): .*ZeroDivisionError"),
    "unknown import": ("import no_such_package", r"line 1 .*No module named 'no_such_package'"),
    "exits": ("import sys\nsys.exit(3)", r"line 2 \(sys.exit\(3\)\): .*SystemExit: 3"),
    "no model": ("def data(): return ()\ndef modell(): ...", r"`model` is missing.*data, modell"),
    "no data": ("def model(): ...", r"`data` is missing; the file must define .* and `data\(\)`"),
    "data no function": ("def model(): ...\ndata = 3", r"`data` is not a function"),
    "data raises": (
        changed("    return torch.tensor([1.0, 2.0, 1.5]), 1.0", "    return open('no.csv')"),
        r"line 6 \(return open\('no.csv'\)\): data\(\) failed: FileNotFoundError",
    ),
    "wrong number of arguments": (
        changed("return torch.tensor([1.0, 2.0, 1.5]), 1.0", "return torch.ones(3)"),
        r"what data\(\) returns does not fit the model: missing a required argument: 'scale'",
    ),
    "nan": (
        changed("[1.0, 2.0, 1.5]", "[1.0, float('nan'), float('nan')]"),
        r"argument 'x' of the model has 2 NaN among 3 values",
    ),
    "nested nan": (
        changed("torch.tensor([1.0, 2.0, 1.5]), 1.0", "{'y': [torch.ones(2) / 0 * 0]}, 1.0"),
        r"argument 'x'\['y'\]\[0\] of the model has 2 NaN among 2 values",
    ),
    "model raises": (
        changed("    with pyro.plate", "    mu = {}['oops']\n    with pyro.plate"),
        r"line 10 \(mu = \{\}\['oops'\]\): the model failed: KeyError: 'oops'",
    ),
    "invalid parameter": (
        changed("dist.Normal(0.0, 2.0)", "dist.Normal(0.0, -2.0)"),
        r"line 9 .*the model failed: ValueError: Expected parameter scale",
    ),
    "outside the support": (
        changed("dist.Normal(mu, scale), obs=x", "dist.Poisson(scale), obs=-x"),
        r"the model failed: ValueError.*'x'",
    ),
    "empty plate": (
        changed("torch.tensor([1.0, 2.0, 1.5])", "torch.ones(0)"),
        r"line 10 .*the model failed: ValueError: Plate 'i' has size 0",
    ),
    "nothing latent": (
        changed("dist.Normal(0.0, 2.0))", "dist.Normal(0.0, 2.0), obs=torch.ones(()))"),
        r"the model has no latent site",
    ),
    "exact draws of a wrong shape": (
        CONJUGATE + EXACT.replace("randn(num_draws)", "randn(())"),
        r"exact_draws of 'mu' have shape \(\), expected \(2,\)",
    ),
    "exact draws of another site": (
        CONJUGATE + EXACT.replace('"mu"', '"nu"'),
        r"exact_draws returns 'nu', no latent site",
    ),
    "guides no dict": (
        changed('{"handmade": lambda: handmade}', "[handmade]"),
        r"`guides` must be",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(case: str, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = BAD_FILES[case]
    assert run(write(text), "--out", "report") == 2
    err = capsys.readouterr().err
    assert err.startswith("elbo-lab: error: my_model.py") and "Traceback" not in err
    assert re.search(message, err, re.DOTALL), err
    assert not Path("report").exists()


BAD_GUIDES = {
    "another site": (
        changed('pyro.sample("mu", dist.Normal(pyro', 'pyro.sample("nu", dist.Normal(pyro'),
        r"guide 'handmade' failed: .*'mu'",
    ),
    "one site too many": (
        changed("\nguides =", '    pyro.sample("nu", dist.Normal(0.0, 1.0))\n\nguides ='),
        r"guide 'handmade' failed: .*'nu' of the guide is missing in the model",
    ),
    "raises": (
        changed("\nguides =", "    raise RuntimeError('oops')\n\nguides ="),
        r"line 15 .*guide 'handmade' failed: RuntimeError: oops",
    ),
    "factory raises": (
        changed("lambda: handmade", "lambda: 1 / 0"),
        r"line 16 .*guide 'handmade' failed: ZeroDivisionError",
    ),
}


@pytest.mark.parametrize("case", BAD_GUIDES)
def test_bad_guides_are_refused(
    case: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = BAD_GUIDES[case]
    assert run(write(text), "--guide", "handmade", "--out", "report") == 2
    err = capsys.readouterr().err
    assert re.search(message, err, re.DOTALL) and "Traceback" not in err, err
    assert not Path("report").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guide", "nromal"], r"unknown guide 'nromal' \(did you mean 'normal'\?\); known: hand"),
        (["--guide", "hand"], r"did you mean 'handmade'"),
        (
            ["--objective", "standart"],
            r"unknown objective 'standart' \(did you mean 'standard'\?\)",
        ),
        (
            ["--objective", "elbo"],
            r"unknown objective 'elbo'; known: standard, importance-weighted",
        ),
        (["--objective", "importance-weighted"], r"needs its number of particles"),
        (["--objective", "importance-weighted:0"], r"must be at least 1"),
        (["--objective", "standard:-3"], r"must be at least 1"),
        (["--objective", "standard:two"], r"'two', is no integer"),
        (["--objective", "standard:"], r"'', is no integer"),
        (["--out", "my_model.py"], r"--out: my_model.py is a file"),
        (["--out", "."], r"--out: \. holds more than an earlier report, such as my_model.py"),
    ],
)
def test_bad_options_are_refused(
    options: list[str], message: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(CONJUGATE), *options) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in Path().iterdir() if path.suffix != ""] == ["my_model.py"]


@pytest.mark.parametrize("option", ["--steps", "--chains", "--num-samples", "--draws", "--warmup"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_bad_numbers_are_refused(
    option: str, value: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(write(CONJUGATE), option, value)
    assert exit_.value.code == 2
    assert option in capsys.readouterr().err


def test_missing_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("no-such-file.py") == 2
    assert capsys.readouterr().err == "elbo-lab: error: no-such-file.py: there is no such file\n"


def test_a_file_that_is_no_python_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.txt").write_text("")
    assert run(tmp_path / "model.txt") == 2
    assert "must end in .py" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("returned", "args", "kwargs"),
    [
        ("(1.0, 2.0)", (1.0, 2.0), {}),
        ("{'b': 2.0, 'a': 1.0}", (), {"b": 2.0, "a": 1.0}),
        ("[1.0, 2.0]", ([1.0, 2.0],), {}),
        ("()", (), {}),
    ],
)
def test_data_become_arguments(returned: str, args: tuple, kwargs: dict, write: Write) -> None:
    sample = '    pyro.sample("z", dist.Normal(0.0, 1.0))\n'
    head = f"def data(): return {returned}\ndef model(a=0.0, b=0.0):\n"
    file = load(write(HEADER + head + sample))
    assert (file.args, file.kwargs) == (args, kwargs)


def test_a_model_file_may_import_its_neighbors(write: Write) -> None:
    Path("my_neighbor.py").write_text("SCALE = 3.0")
    file = load(write("from my_neighbor import SCALE\n" + CONJUGATE))
    assert set(file.guides) == {"handmade"}


def test_loading_leaves_no_trace(write: Write) -> None:
    pyro.param("loc", torch.tensor(5.0))
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    file = load(write(CONJUGATE))
    session.check_guide(file, "handmade")
    assert torch.rand(()) == expected
    assert {k: v.item() for k, v in pyro.get_param_store().items()} == {"loc": 5.0}


def test_fits_of_one_guide_do_not_share_parameters(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fit starts where the guide starts: its first loss is what a fit alone would have."""
    first = {}

    def remember(comparison: object, path: object, *, losses: dict, **_: object) -> str:
        first.update({name: values[0] for name, values in losses.items()})
        return "nowhere"

    monkeypatch.setattr(compare, "write_report", remember)
    options = ["--guide", "handmade", "--objective", "standard", "--objective", "standard:10"]
    assert run(write(CONJUGATE), *options, *SHORT) == 0
    assert len(first) == 2 and len(set(first.values())) == 1


def test_interruption_exits_cleanly(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "nuts", interrupt)
    assert run(write(CONJUGATE), *SHORT) == 130
    assert "interrupted; no report was written" in capsys.readouterr().err
    assert not Path("report").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("where", ["fit", "nuts", "write_report"])
def test_sigterm_leaves_nothing(
    where: str, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = compare if where == "write_report" else session
    whole, before = getattr(place, where), signal.getsignal(signal.SIGTERM)

    def ended(*args: Any, **kwargs: Any) -> Any:
        if where == "fit":
            return whole(*args, **kwargs, callbacks=[end])
        return end()

    def end(*_: Any) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    monkeypatch.setattr(place, where, ended)
    assert run(write(CONJUGATE), *SHORT) == 143
    assert "interrupted; no report was written" in capsys.readouterr().err
    assert not Path("report").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_files_of_different_fits_have_different_names(tmp_path: Path) -> None:
    guides = ["normal", "a.b", "a-b", "A-b", "a", "a/b", "", "x" * 300, "x" * 300 + "y", "a,"]
    objectives = ["standard", "renyi:5", "b-standard", "renyi-5", "renyi:51", "b, standard"]
    titles = {f"{guide}, {objective}" for guide in guides for objective in objectives}
    names = set()
    for title in titles:
        with stem(tmp_path / "out", title) as name:
            assert re.fullmatch(r"[a-z0-9._-]{1,80}", name.name)
            names.add(name.name)
    assert len(names) == len(titles)
    assert {"normal-standard", "normal-renyi-5"} <= names
    assert not list(tmp_path.iterdir())


def test_an_interrupted_fit_stops_the_command(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fit` returns the steps that it has taken when it is interrupted."""
    whole = session.fit

    def cut_short(*args: object, num_steps: int, **kwargs: object) -> object:
        return whole(*args, num_steps=num_steps // 2, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "fit", cut_short)
    assert run(write(CONJUGATE), *SHORT) == 130
    assert not Path("report").exists()


def test_a_full_disk_is_reported(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(compare, "write_report", fail)
    assert run(write(CONJUGATE), *SHORT) == 2
    assert "the report cannot be written: no space left" in capsys.readouterr().err


def test_faults_of_ours_are_not_blamed_on_the_user() -> None:
    with pytest.raises(TypeError), blaming(Path("my_model.py"), "fitting failed"):
        len(3)  # type: ignore[arg-type]
    with (
        pytest.raises(InputError, match=r"my_model.py: fitting failed: ValueError: NaN"),
        blaming(Path("my_model.py"), "fitting failed"),
    ):
        raise ValueError("NaN")


def toy() -> None:
    pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_the_help_names_what_there_is() -> None:
    """It is printed before what builds guides and objectives is loaded."""
    assert tuple(specs.GUIDES) == options.GUIDES
    assert tuple(specs.OBJECTIVES) == options.OBJECTIVES


@pytest.mark.parametrize("name", specs.GUIDES)
def test_every_guide_name_builds_a_guide_of_the_model(name: str) -> None:
    guide = specs.guide(name, ModelFile(Path("toy.py"), toy, (), {}, {}))
    assert guide()["z"].shape == (2,)


@pytest.mark.parametrize("name", specs.OBJECTIVES)
def test_every_objective_name_builds_an_objective(name: str) -> None:
    spec = specs.objective(f"{name}:7")
    objective = spec.build(spec.num_particles, vectorize_particles=True)
    assert isinstance(objective, Objective)
    assert spec.num_particles == 7


def test_a_guide_of_the_file_goes_before_one_of_ours() -> None:
    file = ModelFile(Path("toy.py"), toy, (), {}, {"normal": lambda: toy})
    assert specs.guide("normal", file) is toy
