"""The figures at the top of the README, made anew: python -m tests.benchmarks.gallery [NAME ...]

They lie in tutorials/images. `speed` times training steps: run it on a quiet machine.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from models import eight_schools, robust_regression
from pyro_elbo_lab import StandardELBO, compare, evidence, fit, from_guide, nuts, plot_pairs
from pyro_elbo_lab.figures.panels import entitle
from pyro_elbo_lab.figures.theme import COLORS, WIDTH, settings
from tests.benchmarks import harness
from tests.benchmarks.contenders import FIT, NUMPYRO, PYRO, contenders
from tests.benchmarks.problems import PROBLEMS

FOLDER = Path(__file__).parents[2] / "tutorials" / "images"
SHOWN = {PYRO: "0.6", NUMPYRO: COLORS[4], FIT: COLORS[0]}


def trust() -> Figure:
    """Two guides of a robust regression beside NUTS: the pair of weights each gets most wrong."""
    model, args = robust_regression.model, robust_regression.data()
    trees = {}
    for name, make in {"mean-field": AutoNormal, "full rank": AutoMultivariateNormal}.items():
        pyro.clear_param_store()
        guide = make(model, init_scale=0.5)
        fit(model, guide, *args, objective=StandardELBO(10, vectorize_particles=True))
        trees[name] = from_guide(guide, model, *args, num_samples=4000)
    comparison = compare(trees, nuts(model, *args))
    print(comparison)
    return plot_pairs(comparison)


def bounds() -> Figure:
    """The ladder of bounds of eight schools' evidence."""
    model, args = eight_schools.model, eight_schools.data()
    pyro.clear_param_store()
    guide = AutoMultivariateNormal(model, init_scale=0.5)
    fit(model, guide, *args, objective=StandardELBO(10, vectorize_particles=True), num_steps=4000)
    found = evidence(model, guide, *args, reference=nuts(model, *args))
    print(found)
    return found.plot()


def speed() -> Figure:
    """Microseconds a training step: Pyro, NumPyro and the compiled fit."""
    harness.use_one_thread()
    times = {}
    for name in ("eight schools", "logistic", "radon"):
        entrants = [c for c in contenders(PROBLEMS[name], 1, "cpu", True) if c.name in SHOWN]
        medians = harness.interleaved(entrants, rounds=9)
        times[name] = {who: float(np.median(values)) for who, values in medians.items()}
    print(times)
    with settings():
        figure, axes = plt.subplots(figsize=(WIDTH, 2.6), layout="constrained")
        height = 0.8 / len(SHOWN)
        for i, (who, color) in enumerate(SHOWN.items()):
            y = np.arange(len(times)) + (i - 1) * height
            bars = axes.barh(y, [t[who] for t in times.values()], height, color=color, label=who)
            axes.bar_label(bars, fmt=_two_digits, padding=3, fontsize=8)
        axes.set_xscale("log")
        axes.set_yticks(range(len(times)), list(times))
        axes.invert_yaxis()
        axes.set_xlabel("µs a step of gradient and Adam, logarithmic")
        axes.margins(x=0.12)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(SHOWN))
        entitle(figure, "A training step: less is better")
    return figure


def _two_digits(x: float) -> str:
    return f"{float(f'{x:.2g}'):,g}"


FIGURES: dict[str, Callable[[], Figure]] = {"trust": trust, "bounds": bounds, "speed": speed}


def main() -> None:
    """Write the figures that are asked for, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(FIGURES), metavar="NAME")
    for name in parser.parse_args().names:
        pyro.set_rng_seed(0)
        FIGURES[name]().savefig(FOLDER / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
