"""Which plates become cells."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_elbo_lab.objectives.particles.layout import lay_out
from pyro_elbo_lab.programs.pair import Pair
from pyro_elbo_lab.programs.structure.analysis import analyze
from pyro_elbo_lab.programs.structure.factors import FactorKey

ZERO = torch.zeros(())


def laid_out(program, local_plates="auto"):
    """The layout of a program whose sites x and y are observed, and absent in the guide."""

    def model():
        with pyro.poutine.condition(data={name: ZERO for name in ("x", "y", "xa", "xb")}):
            program()

    guide = pyro.poutine.block(program, hide_fn=lambda site: site["name"][0] in "xy")
    structure, *_ = analyze(Pair(model, guide))
    return lay_out(structure, local_plates)


def sample(name, loc=ZERO):
    return pyro.sample(name, dist.Normal(loc, 1.0))


def flat():
    g = sample("g")
    with pyro.plate("a", 2):
        z = sample("z", g)
        sample("x", z)


def nested():
    g = sample("g")
    with pyro.plate("a", 2, dim=-2):
        z = sample("z", g)
        with pyro.plate("b", 3, dim=-1):
            w = sample("w", z)
            sample("x", w + z)


def crossed():
    a, b = pyro.plate("a", 2, dim=-2), pyro.plate("b", 3, dim=-1)
    with a:
        row = sample("row")
    with b:
        column = sample("column")
    with a, b:
        sample("x", row * column)


def side_by_side():
    g = sample("g")
    with pyro.plate("a", 2):
        sample("xa", sample("za", g))
    with pyro.plate("b", 3):
        sample("xb", sample("zb", g))


def test_locals_and_globals():
    layout = laid_out(flat)
    assert layout.local == {"z"}
    assert FactorKey("model", "g") not in layout.cells
    assert layout.cells[FactorKey("model", "x")] == {"a"}
    assert layout.cells[FactorKey("guide", "z")] == {"a"}


def test_nested_plates_have_the_cells_of_the_outer_one():
    layout = laid_out(nested)
    assert layout.local == {"z", "w"}
    assert set(layout.cells.values()) == {frozenset({"a"})}


def test_named_inner_plates_demote_the_outer_latent():
    layout = laid_out(nested, ("a", "b"))
    assert layout.local == {"w"}
    assert layout.cells[FactorKey("model", "x")] == {"a", "b"}
    assert FactorKey("model", "z") not in layout.cells


def test_crossed_plates_take_the_outer_one():
    layout = laid_out(crossed)
    assert layout.local == {"row"}
    assert layout.cells[FactorKey("model", "x")] == {"a"}
    assert FactorKey("guide", "column") not in layout.cells


def test_plates_side_by_side_have_cells_each():
    layout = laid_out(side_by_side)
    assert layout.cells[FactorKey("model", "xa")] == {"a"}
    assert layout.cells[FactorKey("model", "xb")] == {"b"}
    assert FactorKey("model", "g") not in layout.cells


def test_joint_weights_by_name_and_without_plates():
    assert laid_out(flat, ()).local == {"g", "z"}
    assert laid_out(lambda: sample("g")).local == {"g"}


def test_refusals():
    with pytest.raises(ValueError, match=r"expected 'auto' or a tuple.*\('a',\)"):
        laid_out(flat, "a")
    with pytest.raises(ValueError, match="names 'c'"):
        laid_out(flat, ("c",))

    def read_outside():
        with pyro.plate("a", 2):
            z = sample("z")
        sample("y", z.sum(-1))

    with pytest.raises(ValueError, match="'y' of the model lies outside plate 'a'"):
        laid_out(read_outside, ("a",))
    assert laid_out(read_outside).local == {"z"}
    assert laid_out(read_outside).cells[FactorKey("model", "y")] == frozenset()
