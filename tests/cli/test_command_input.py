"""Bad input on the command line: one clear line, exit code 2, before any work, nothing written."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pyro_elbo_lab.cli import main, session

HEADER = "import pyro\nimport pyro.distributions as dist\nimport torch\n"
MODEL = """
def data():
    return torch.tensor([1.0, 2.0, 1.5])

def model(x):
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    with pyro.plate("i", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
"""
GUIDE = """
def handmade(x):
    pyro.sample("z", dist.Normal(0.0, pyro.param("scale", torch.tensor(0.5))))

guides = {"mine": lambda: handmade}
"""
EXACT = """
def exact_draws(num_draws, x):
    return {"z": torch.randn(num_draws)}
"""
COMMANDS = ("compare", "evidence", "sbc")

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command, which must not fit or sample, and returns its code and what it said."""
    monkeypatch.chdir(tmp_path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(session, "fit", refuse)
    monkeypatch.setattr(session, "nuts", refuse)

    def run(command: str, *options: str, file: str = "m.py") -> tuple[int, str]:
        before = everything(tmp_path)
        try:
            code = main.main([command, file, *options])
        except SystemExit as end:  # argparse
            assert isinstance(end.code, int)
            code = end.code
        assert everything(tmp_path) == before
        return code, capsys.readouterr().err

    return run


def everything(folder: Path) -> set[str]:
    found = folder.rglob("*")
    return {str(path) for path in found if "__pycache__" not in path.parts}


def changed(old: str, new: str) -> str:
    assert old in MODEL
    return HEADER + MODEL.replace(old, new) + GUIDE


RETURN = "return torch.tensor([1.0, 2.0, 1.5])"

TWO = """\
    pyro.sample("a/b", dist.Normal(0.0, 1.0))
    pyro.sample("a.b", dist.Normal(0.0, 1.0))
"""

FILES: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", r"`model` is missing.*defines no function"),
    "NUL bytes": (b"x = 1\n\0\0\n", r"does not import: SyntaxError.*null bytes"),
    "not UTF-8": (b"x = '\xff\xfe'\n", r"does not import: SyntaxError"),
    "binary": (bytes(range(256)), r"does not import: SyntaxError"),
    "syntax error": (HEADER + "def model(:", r"line 4: the file does not import: SyntaxError"),
    "indentation": (HEADER + "def f():\nx = 1", r"line 5: .*IndentationError"),
    "model a number": (HEADER + "model = 3\ndef data(): ...", r"`model` is not a function"),
    "data a tensor": (HEADER + "def model(x): ...\ndata = torch.ones(3)", r"`data` is not a func"),
    "data raises": (changed(RETURN, "raise OSError('no disk')"), r"line 6 .*data\(\) failed: OSE"),
    "data raise no error": (changed(RETURN, "raise SystemExit('bye')"), r"failed: SystemExit: bye"),
    "data take arguments": (changed("data()", "data(path)"), r"`data` takes arguments; expected"),
    "data are nothing": (changed(RETURN, "pass"), r"the model failed: TypeError.*NoneType"),
    "data of another name": (changed(RETURN, "return {'y': 1}"), r"does not fit the model: .*'x'"),
    "data without names": (changed(RETURN, "return {1: 1}"), r"does not fit the model: .*string"),
    "data read once": (
        changed(RETURN, "return map(float, [1, 2])"),
        r"'x' .* is a map, which is",
    ),
    "a generator": (changed(RETURN, "yield 1.0"), r"'x' of the model is a generator, which is em"),
    "NaN": (changed("2.0, 1.5]", "float('nan')]"), r"'x' of the model has 1 NaN among 2 values"),
    "complex NaN": (
        changed("[1.0, 2.0, 1.5]", "[complex('nan'), 1j]"),
        r"'x' of the model has 1 NaN among 2",
    ),
    "complex data": (
        changed("[1.0, 2.0, 1.5]", "[1j, 2.0]"),
        r"site 'x' has values of torch.complex64.*view_as_real",
    ),
    "built-in model": (HEADER + "model = dict\ndef data(): return 1", r"m\.py: "),
    "NUL in a site's name": (changed('"z"', '"z\\0"'), r"'z\\x00' cannot be a variable"),
    "no name": (changed('"z"', '""'), r"A site called '' cannot be a variable"),
    "dot": (changed('"z"', '"."'), r"A site called '\.' cannot be a variable"),
    "site called draw": (changed('"z"', '"draw"'), r"A site called 'draw' cannot be"),
    "not Unicode": (changed('"z"', '"\\ud800"'), r"A site called '\\ud800' cannot be"),
    "plate's name": (changed('"i"', '"."'), r"A site called '\.' cannot be a variable"),
    "slash and dot": (
        changed("    with", TWO + "    with"),
        r"'a/b' and 'a\.b' would both be the variable 'a\.b'",
    ),
    "guides a list": (HEADER + MODEL + "guides = []", r"`guides` must be a dict"),
    "guide takes arguments": (
        HEADER + MODEL + GUIDE.replace("lambda: ", ""),
        r"'mine' takes arguments; expected .*lambda: guide",
    ),
    "guide without a name": (HEADER + MODEL + GUIDE.replace('"mine"', "3"), r"the key 3; expected"),
    "guide is None": (
        HEADER + MODEL + GUIDE.replace("handmade}", "None}"),
        r"'mine' of `guides` returned NoneType, expected a guide",
    ),
    "guide is a dict": (
        HEADER + MODEL + GUIDE.replace("lambda: handmade", "dict"),
        r"'mine' of `guides` returned dict, expected a guide",
    ),
    "exact draws a number": (HEADER + MODEL + EXACT + "\nexact_draws = 3", r"not a function"),
    "exact draws a list": (
        HEADER + MODEL + GUIDE + EXACT.replace('{"z": torch.randn(num_draws)}', "[1.0]"),
        r"must return a dict from site to tensor, got list",
    ),
    "exact draws a list each": (
        HEADER + MODEL + GUIDE + EXACT.replace("torch.randn(num_draws)", "[1.0, 2.0]"),
        r"exact_draws of 'z' are a list, expected a tensor",
    ),
    "exact draws NaN": (
        HEADER + MODEL + GUIDE + EXACT.replace("torch.randn(num_draws)", "torch.ones(2) / 0"),
        r"exact_draws of 'z' are not finite",
    ),
    "exact draws of one of two": (
        changed("    with", '    pyro.sample("w", dist.Normal(0.0, 1.0))\n    with') + EXACT,
        r"exact_draws lacks 'w'",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case: str, run: Run) -> None:
    text, message = FILES[case]
    Path("m.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    guide = ("--guide", "mine") if b"guides" in Path("m.py").read_bytes() else ()
    code, err = run("compare", *guide)
    check(code, err, message)
    assert err.startswith("elbo-lab: error: m.py")


def check(code: int, err: str, message: str) -> None:
    assert code == 2 and "Traceback" not in err
    assert re.search(message, err), err
    assert "usage:" in err or len(err.splitlines()) == 1, err


LONG = "a" * 300

PATHS: dict[str, tuple[str, str]] = {
    "missing": ("none.py", r"none\.py: there is no such file"),
    "a folder": ("folder", r"folder: it is no file"),
    "below a file": ("file/m.py", r"it cannot be read: .*Not a directory"),
    "too long": (f"{LONG}.py", r"it cannot be read: .*too long"),
    "NUL": ("a\0b.py", r"it cannot be read: .*null"),
    "empty": ("", r"it is no file"),
    "no Python": ("file", r"must end in \.py"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", PATHS)
def test_paths_of_files(case: str, command: str, run: Run) -> None:
    Path("folder").mkdir()
    Path("file").write_text("kept")
    name, message = PATHS[case]
    check(*run(command, file=name), message)


OUT: dict[str, tuple[str, str]] = {
    "a file": ("file", r"--out: file is a file; name a folder"),
    "below a file": ("file/out", r"--out: file/out cannot be written: Not a directory"),
    "too long": (LONG, r"--out: a+ cannot be written: File name too long; choose a shorter one"),
    "too long below": (f"new/{LONG}/out", r"--out: .*File name too long; choose a shorter one"),
    "NUL": ("a\0b", r"--out: A path cannot have a NUL"),
    "not writable": ("/proc/self/out", r"--out: /proc/self/out cannot be written: "),
    "a circle": ("circle", r"--out: circle cannot be written: "),
    "empty": ("", r"--out is empty; name a folder"),
}


@pytest.mark.skipif(os.name != "posix", reason="paths are those of POSIX")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", OUT)
def test_paths_of_results(case: str, command: str, run: Run) -> None:
    Path("m.py").write_text(HEADER + MODEL)
    Path("file").write_text("kept")
    Path("circle").symlink_to("circle")
    name, message = OUT[case]
    check(*run(command, "--out", name), message)


OPTIONS: dict[str, tuple[list[str], str, str]] = {
    "no particles": (["--objective", "renyi:"], COMMANDS[0], r"'', is no integer"),
    "zero particles": (["--objective", "importance-weighted:0"], COMMANDS[0], r"at least 1"),
    "NaN particles": (["--objective", "renyi:nan"], COMMANDS[0], r"'nan', is no integer"),
    "half particles": (["--objective", "chi:2.5"], COMMANDS[0], r"'2.5', is no integer"),
    "two signs": (["--objective", "standard:--3"], COMMANDS[0], r"'--3', is no integer"),
    "two numbers": (["--objective", "standard:3:4"], COMMANDS[0], r"'3:4', is no integer"),
    "particles missing": (["--objective", "chi"], COMMANDS[0], r"as in chi:16"),
    "case": (["--objective", "Standard"], COMMANDS[0], r"did you mean 'standard'"),
    "no objective": (["--objective", ""], COMMANDS[0], r"unknown objective ''; known: standard"),
    "no guide": (["--guide", ""], COMMANDS[0], r"unknown guide ''; known: normal"),
    "unknown guide": (["--guide", "nuts"], COMMANDS[0], r"unknown guide 'nuts'; known: normal"),
    "second guide": (["--guide", "normal", "--guide", "x"], COMMANDS[0], r"unknown guide 'x'"),
    "steps": (["--steps", "0"], COMMANDS[1], r"--steps: must be at least 1, got 0"),
    "half steps": (["--steps", "5.5"], COMMANDS[1], r"--steps: must be an integer, got '5.5'"),
    "steps no number": (["--steps", ""], COMMANDS[1], r"--steps: must be an integer, got ''"),
    "few samples": (["--num-samples", "99"], COMMANDS[1], r"must be at least 100, got 99"),
    "few draws": (["--draws", "24"], COMMANDS[0], r"--draws: must be at least 25, got 24"),
    "few simulations": (["--simulations", "0"], COMMANDS[2], r"must be at least 10, got 0"),
    "no jobs": (["--jobs", "0"], COMMANDS[2], r"--jobs: must be at least 1, or -1 .* got 0"),
    "jobs no number": (["--jobs", "all"], COMMANDS[2], r"--jobs: must be an integer, got 'all'"),
    "seed no number": (["--seed", "x"], COMMANDS[0], r"--seed: must be an integer, got 'x'"),
    "seed below 0": (["--seed=-1"], COMMANDS[2], r"--seed: must be from 0 to 2\*\*32 - 1, got -1"),
    "seed too large": (["--seed", str(2**32)], COMMANDS[2], r"--seed: must be from 0 to"),
    "unknown option": (["--particles", "3"], COMMANDS[0], r"unrecognized arguments: --particles"),
    "a point": (["--guide", "delta"], COMMANDS[1], r"'delta' sets z to single values.*no density"),
    "chains of sbc": (["--chains", "3"], COMMANDS[2], r"unrecognized arguments: --chains"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, run: Run) -> None:
    Path("m.py").write_text(HEADER + MODEL)
    options, command, message = OPTIONS[case]
    check(*run(command, *options), message)


def test_an_unknown_command(run: Run) -> None:
    check(*run("nuts"), r"invalid choice: 'nuts'")


DISCRETE = """
def data():
    return torch.tensor([1.0, 2.0, 1.5])

def model(x):
    z = pyro.sample("z", dist.Bernoulli(0.5))
    with pyro.plate("i", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

def handmade(x):
    pyro.sample("z", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))))

guides = {"mine": lambda: handmade}
"""


@pytest.mark.parametrize("command", ["compare", "evidence"])
def test_models_that_nuts_cannot_sample_are_refused_before_the_fit(command: str, run: Run) -> None:
    Path("m.py").write_text(HEADER + DISCRETE)
    check(*run(command, "--guide", "mine"), r"NUTS failed: ValueError: .*'z'")


def test_objectives_that_do_not_take_a_guide_are_refused_before_the_fit(run: Run) -> None:
    """The first objective would do."""
    Path("m.py").write_text(HEADER + MODEL)
    options = ["--guide", "iaf", "--objective", "standard", "--objective", "tail-adaptive:5"]
    check(*run("compare", *options), r"guide 'iaf' with objective 'tail-adaptive:5' failed: ")
