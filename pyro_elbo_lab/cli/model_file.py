"""A user's model file: loaded, run once and found fit for use, or refused with a reason."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro

from pyro_elbo_lab.cli import model_checks
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.state import seeded
from pyro_elbo_lab.programs.structure.factors import factors
from pyro_elbo_lab.programs.structure.runs import run

Program = Callable[..., Any]


class InputError(Exception):
    """Something the user gave cannot be used; the message says what, where and what to do."""


@dataclass(frozen=True)
class ModelFile:
    """What a model file defines, `args` and `kwargs` for the model from its `data()`, and
    the names of the parameters that the model learns."""

    path: Path
    model: Program
    args: tuple
    kwargs: dict[str, Any]
    guides: Mapping[str, Callable[[], Program]]
    exact_draws: Program | None = None
    learnt: tuple[str, ...] = ()


def load(path: str | Path) -> ModelFile:
    """Load a model file, get its data and run its model once.

    The file defines `model`, a Pyro model, and `data()`, which returns a tuple (the model's
    positional arguments), a dict (its keyword arguments) or anything else (its one argument). It
    may define `guides`, a dict of functions without arguments that return a guide, and
    `exact_draws(num_draws, ...)`, a function of the model's arguments that draws its latents
    from the posterior, each (num_draws, *shape).

    Raises:
        InputError: if the file does not exist, import or define these; if the data contain NaN
            or do not fit the model; if the model raises, has no latent site, or one whose name or
            values cannot be kept; if a guide takes arguments, or exact draws are not what they
            should be.
    """
    path = Path(path)
    module = _imported(path)
    model, data = _callable(module, path, "model"), _callable(module, path, "data")
    _refuse(path, model_checks.of_function("`data`", data))
    with blaming(path, "data() failed"):
        returned = data()
    args, kwargs = _arguments(returned)
    _check_arguments(path, model, args, kwargs)
    exact_draws = _callable(module, path, "exact_draws") if hasattr(module, "exact_draws") else None
    learnt = _check_model(path, model, exact_draws, args, kwargs)
    guides = getattr(module, "guides", {})
    _refuse(path, model_checks.of_guides(guides))
    return ModelFile(path, model, args, kwargs, guides, exact_draws, learnt)


@contextmanager
def blaming(path: Path, doing: str) -> Iterator[None]:
    """Turn what the user's code raises into an InputError that points at its line.

    Errors that Pyro or this package raise about the user's model are treated alike. Others, without
    a line of the user's among their causes, are faults of this package and propagate.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        place = _place(error, path)
        about_values = isinstance(
            error,
            ValueError
            | RuntimeError
            | ArithmeticError
            | NotImplementedError
            | SystemExit
            | SyntaxError,
        )
        if isinstance(error, InputError) or not (place or about_values):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{place or f'{path}: '}{doing}: {reason}") from error


def _refuse(path: Path, complaints: Iterable[str]) -> None:
    for complaint in complaints:
        raise InputError(f"{path}: {complaint}")


def _imported(path: Path) -> ModuleType:
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        missing = isinstance(error, FileNotFoundError)
        problem = "there is no such file" if missing else f"it cannot be read: {error}"
        raise InputError(f"{path}: {problem}") from error
    if not path.is_file():
        raise InputError(f"{path}: it is no file; name a Python file")
    spec = importlib.util.spec_from_file_location("elbo_lab_model", path.resolve())
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look for it there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    with blaming(path, "the file does not import"):
        spec.loader.exec_module(module)
    return module


def _callable(module: ModuleType, path: Path, name: str) -> Program:
    found = getattr(module, name, None)
    if callable(found):
        return found
    defined = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
    problem = "not a function" if hasattr(module, name) else "missing"
    raise InputError(
        f"{path}: `{name}` is {problem}; the file must define `model`, a Pyro model, and `data()`, "
        f"its arguments. It defines {', '.join(defined) or 'no function'}"
    )


def _arguments(returned: Any) -> tuple[tuple, dict[str, Any]]:
    if isinstance(returned, tuple):
        return returned, {}
    if isinstance(returned, dict):
        return (), returned
    return (returned,), {}


def _check_arguments(path: Path, model: Program, args: tuple, kwargs: dict[str, Any]) -> None:
    try:
        named = inspect.signature(model).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise InputError(f"{path}: what data() returns does not fit the model: {error}") from error
    except ValueError as error:
        raise InputError(f"{path}: `model` is not a function written in Python: {error}") from error
    _refuse(path, model_checks.of_data(named))


def _check_model(
    path: Path, model: Program, exact_draws: Program | None, args: tuple, kwargs: dict[str, Any]
) -> tuple[str, ...]:
    """Run the model once, and its exact draws; returns the names of its parameters."""
    with blaming(path, "the model failed"), seeded(0), pyro.get_param_store().scope():
        trace, _ = run(Pair(model, _no_guide, args, kwargs))
        _refuse(path, model_checks.of_sites(trace.nodes))
        trace.compute_log_prob()
        if exact_draws is not None:
            draws = exact_draws(2, *args, **kwargs)
            _refuse(path, model_checks.of_exact_draws(draws, 2, trace))
    sites = factors(trace, type(trace)())
    if all(site["is_observed"] for site in sites.values()):
        raise InputError(f"{path}: the model has no latent site: there is no posterior to find")
    return tuple(name for name, site in trace.nodes.items() if site["type"] == "param")


def _no_guide(*args: Any, **kwargs: Any) -> None:
    """A guide that leaves every site to the model."""


def _place(error: BaseException, path: Path) -> str:
    """The line of the user's file that was being run when `error` arose, or nothing."""
    file = str(path.resolve())
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"{path}, line {error.lineno}: "
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == file:
            return f"{path}, line {frame.lineno} ({frame.line}): "
    return _place(error.__context__, path) if error.__context__ else ""
