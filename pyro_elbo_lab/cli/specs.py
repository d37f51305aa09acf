"""Names on the command line: guides and objectives."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyro.infer import ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)

from pyro_elbo_lab.cli.model_file import InputError, ModelFile
from pyro_elbo_lab.objectives.analytic_kl import AnalyticKLELBO
from pyro_elbo_lab.objectives.covering import ChiUpperBound, ForwardKL, TailAdaptive
from pyro_elbo_lab.objectives.lower_bounds import (
    ImportanceWeightedELBO,
    JackknifeELBO,
    RenyiELBO,
    StandardELBO,
    ThermodynamicELBO,
)
from pyro_elbo_lab.programs.structure.marks import hide_enumerated

# The noise of a doubly reparameterized gradient is that of the draw divided by the guide's scale: a
# guide as narrow as Pyro starts them (0.1) moves slowly.
_SCALE = {"init_scale": 0.5}

GUIDES: dict[str, Callable[..., Any]] = {
    "normal": partial(AutoNormal, **_SCALE),
    "diagonal": partial(AutoDiagonalNormal, **_SCALE),
    "mvn": partial(AutoMultivariateNormal, **_SCALE),
    "lowrank": partial(AutoLowRankMultivariateNormal, **_SCALE),
    "iaf": AutoIAFNormal,
    "delta": AutoDelta,
}
"""Guides that Pyro derives from the model, by name."""

OBJECTIVES: dict[str, tuple[Callable[..., ELBO], int | None]] = {
    "standard": (StandardELBO, 10),
    "importance-weighted": (ImportanceWeightedELBO, None),
    "analytic-kl": (AnalyticKLELBO, 10),
    "renyi": (partial(RenyiELBO, 0.5), None),
    "thermodynamic": (ThermodynamicELBO, None),
    "jackknife": (JackknifeELBO, None),
    "chi": (ChiUpperBound, None),
    "forward-kl": (ForwardKL, None),
    "tail-adaptive": (TailAdaptive, None),
}
"""Objectives by name, each with the number of particles that it takes when none is given. They are
those whose guide is the approximation: where paths of `AnnealedELBO` start is not."""


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective as asked for: `standard`, `importance-weighted:16`."""

    spec: str
    build: Callable[..., ELBO]
    num_particles: int


def objective(spec: str) -> ObjectiveSpec:
    """Read `name` or `name:K`.

    Raises:
        InputError: if the name is unknown, or K missing where needed, no integer or below 1.

    >>> objective("importance-weighted:16").num_particles
    16
    >>> objective("importance-weigthed:16")
    Traceback (most recent call last):
    pyro_elbo_lab.cli.model_file.InputError: unknown objective 'importance-weigthed' (did you mean \
'importance-weighted'?); known: standard, importance-weighted, analytic-kl, renyi, thermodynamic, \
jackknife, chi, forward-kl, tail-adaptive
    """
    name, colon, particles = spec.partition(":")
    build, default = OBJECTIVES[_known("objective", name, OBJECTIVES)]
    if not colon and default is None:
        raise InputError(f"objective {spec!r} needs its number of particles, as in {spec}:16")
    if not colon:
        return ObjectiveSpec(spec, build, default or 1)
    try:
        number = int(particles)
    except ValueError as error:
        raise InputError(
            f"objective {spec!r}: the number of particles, {particles!r}, is no integer"
        ) from error
    try:
        build(number)
    except ValueError as error:
        raise InputError(f"objective {spec!r}: {error}") from error
    return ObjectiveSpec(spec, build, number)


def guide(name: str, file: ModelFile) -> Any:
    """A new guide: one of the file's own `guides`, or else one of `GUIDES`.

    Those of `GUIDES` leave out what is marked to be summed out.

    Raises:
        InputError: if neither knows the name, or the file's function returns no guide.
    """
    if name in file.guides:
        found = file.guides[name]()
        if not callable(found):
            raise InputError(
                f"{file.path}: the function {name!r} of `guides` returned {type(found).__name__}, "
                "expected a guide"
            )
        return found
    return GUIDES[_known("guide", name, {**file.guides, **GUIDES})](hide_enumerated(file.model))


def _known(what: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    if name in names:
        return name
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise InputError(f"unknown {what} {name!r}{hint}; known: {', '.join(names)}")
