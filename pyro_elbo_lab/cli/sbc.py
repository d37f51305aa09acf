"""The command `elbo-lab sbc`."""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cloudpickle
import matplotlib

from pyro_elbo_lab.cli import session, specs
from pyro_elbo_lab.cli.model_file import ModelFile
from pyro_elbo_lab.cli.session import (
    blaming_fit,
    fitted,
    save_figure,
    say,
    stem,
)
from pyro_elbo_lab.figures.ranks import plot_sbc, plot_vsbc
from pyro_elbo_lab.inference.fitting.fit import Fit
from pyro_elbo_lab.inference.storage.netcdf import write_netcdf
from pyro_elbo_lab.trust.calibration.calibration import Calibration, sbc


def run(options: argparse.Namespace, command: str) -> None:
    """Simulate, fit, rank, print and write."""
    session.check_out(options.out)
    file, combinations = session.combinations(options)
    # No other process can import the user's module by the name under which it was loaded.
    cloudpickle.register_pickle_by_value(sys.modules["elbo_lab_model"])
    for title, (guide, objective) in combinations.items():
        say(f"calibrating {title}: {options.simulations} simulations")
        found = _calibrated(_Fitting(file, guide, objective, options))
        print(f"{title}: {found}\n{found.asking('symmetric')}\n\n{_printed(found)}\n")
        _write(found, Path(options.out), title)


@dataclass(frozen=True)
class _Fitting:
    """The way of fitting that is calibrated."""

    file: ModelFile
    guide: str
    objective: specs.ObjectiveSpec
    options: argparse.Namespace

    def __call__(self, model: Any, *args: Any, **kwargs: Any) -> Fit:
        given = replace(self.file, model=model, args=args, kwargs=kwargs)
        _, done = fitted(given, self.guide, self.objective, self.options, progress=False)
        return done


def _calibrated(fitting: _Fitting) -> Calibration:
    file, options = fitting.file, fitting.options
    with blaming_fit(file, fitting.guide, fitting.objective):
        return sbc(
            file.model,
            fitting,
            *file.args,
            num_simulations=options.simulations,
            num_draws=options.draws,
            n_jobs=options.jobs,
            seed=options.seed,
            **file.kwargs,
        )


def _printed(found: Calibration) -> str:
    return found.table.to_string(index=False, float_format="%.3g")


def _write(found: Calibration, folder: Path, title: str) -> None:
    matplotlib.use("Agg")

    def writing(folder: Path) -> Path:
        with stem(folder, title) as name:
            found.table.to_csv(f"{name}.csv", index=False)
            write_netcdf(found.ranks, f"{name}.nc")
            save_figure(plot_sbc(found), name)
            save_figure(plot_vsbc(found), name.with_name(f"{name.name}-symmetry"))
        return folder / f"{name.name}.csv, .nc, .png, .svg and {name.name}-symmetry.png, .svg"

    session.write("results", folder, writing)
