"""The table of awkward programs: what is captured, and what has to run eagerly and say why.

    from tests.compilation.programs_table.awkward import PROGRAMS

A new row is a function that builds the program, decorated with `registry.program`, in the module
of its kind.
"""

from tests.compilation.programs_table import (
    arguments,
    autoguides,
    hidden,
    latents,
    losses,
    modules,
    plates,
    states,
    surroundings,
    values,
)
from tests.compilation.programs_table.registry import PROGRAMS, Program, Run

__all__ = ["PROGRAMS", "Program", "Run"]

KINDS = [
    latents,
    autoguides,
    plates,
    modules,
    arguments,
    hidden,
    surroundings,
    losses,
    values,
    states,
]
