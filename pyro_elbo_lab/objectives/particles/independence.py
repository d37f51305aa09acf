"""Whether the cells of local plates are independent, as weights of their own take for granted."""

from collections.abc import Mapping
from typing import Any

from pyro_elbo_lab.objectives.particles.layout import Layout
from pyro_elbo_lab.objectives.particles.sampling import draw, touching_cells
from pyro_elbo_lab.programs.state import gradients_on
from pyro_elbo_lab.programs.structure import Program, Recall, Structure, Values, aside

__all__ = ["latent_between_cells"]


def latent_between_cells(
    model: Program,
    guide: Program,
    args: tuple,
    kwargs: Mapping[str, Any],
    structure: Structure,
    layout: Layout,
    recall: Values | None = None,
) -> str | None:
    """The name of a local latent on which log-densities of other cells depend, None if none.

    It is found from the gradients of one draw, also where the caller has switched gradients off,
    and the random state is as before afterwards.

    Args:
        model: a Pyro model.
        guide: a Pyro guide.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        structure: their dependencies.
        layout: the cells.
        recall: draws that the program is to repeat, from `structure.to_recall`.
    """
    if not any(layout.cells.values()):
        return None
    options: dict[str, Any] = {"structure": structure, "layout": layout, "leaves": True}
    with aside(Recall(recall or {})), gradients_on():
        return touching_cells(draw(model, guide, args, dict(kwargs), **options))
