"""What a fit leaves behind, in memory and in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyro_elbo_lab.inference.fitting.batches import as_arguments
from pyro_elbo_lab.inference.fitting.fit_file import read, write
from pyro_elbo_lab.inference.fitting.inputs import check_objective
from pyro_elbo_lab.inference.fitting.learnt import Learnt
from pyro_elbo_lab.programs.arguments import integer
from pyro_elbo_lab.programs.extras import needing
from pyro_elbo_lab.programs.pair import Pair, Program
from pyro_elbo_lab.programs.state import gradients_on, seeded
from pyro_elbo_lab.programs.training import Programs, run_both, set_up, training_programs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from xarray import DataTree

__all__ = ["Fit"]


@dataclass(frozen=True)
class Fit:
    """A finished fit. It owns what was learnt: copies of parameters and buffers, which no later
    fit, no other guide and no change of the param store touches.

    Attributes:
        losses: the objective's loss at every step, in nats, shape (num_steps,).
        seconds: wall time of the training, compiling included.
        num_steps: the steps taken: fewer than asked for if the fit was interrupted.
        guide: the guide, whose parameters were the fitted ones when the fit ended. A later fit of
            the same guide, or of another function with `pyro.param` statements of the same names,
            moves them on; `restore` gives them back.
        objective: the objective that was minimized.
        compile_seconds: what of the wall time it took to capture and compile the step.
        compilation: how steps were taken, and why.
        parameters: the fitted unconstrained parameters of model and guide, by name.
        averaged: their averages over the last steps, if these were asked for.
        buffers: those of the modules of model and guide, such as running statistics, by name.
    """

    losses: np.ndarray
    seconds: float
    num_steps: int
    guide: Program
    objective: ELBO
    compile_seconds: float = 0.0
    compilation: str = "eager"
    averaged: Mapping[str, Tensor] = field(default_factory=dict)
    _learnt: Learnt = field(default=Learnt({}), repr=False)
    _model: Program | None = field(default=None, repr=False)
    _args: tuple = field(default=(), repr=False)
    _kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _batches: Iterable[Any] | None = field(default=None, repr=False)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The fitted unconstrained parameters of model and guide, by name."""
        return self._learnt.parameters

    @property
    def buffers(self) -> Mapping[str, Tensor]:
        """Those of the modules of model and guide, by name."""
        return self._learnt.buffers

    def posterior(self, num_samples: int = 1000, seed: int = 0, data: Any = None) -> DataTree:
        """Draws from the guide as this fit left it, scored by guide and model on all data: see
        `from_guide`.

        The param store, the guide and the model are afterwards as before. Modules are used in the
        mode, training or evaluation, that they are in. The tree also has what `compare` says about
        the training: a group `training` with `loss` over the steps, and the attributes `seconds`
        and `gradient_evaluations`, of single particles.

        A fit on `batches` is scored on one pass of them put together, where they have a length and
        hold every row once, as a list or a `DataLoader` without replacement does. Elsewhere draws
        have no log-weights, and a warning says why.

        Args:
            num_samples: how many, at least 1.
            seed: of the draws.
            data: positional arguments that hold all data, a tensor or a tuple, in place of those
                of the fit.

        Raises:
            ValueError: an argument out of its range; the fit has no model; the guide's or the
                model's modules have other parameters than when they were fitted.

        Warns:
            UserWarning: the draws are not scored on all data.
        """
        if self._model is None:
            raise ValueError("This fit was loaded without a model: call from_guide yourself.")
        integer("num_samples", num_samples, least=1)
        integer("seed", seed, least=0)
        with needing("Fit.posterior"):
            from xarray import Dataset, DataTree

            from pyro_elbo_lab.inference.fitting.all_rows import from_batches
            from pyro_elbo_lab.inference.trees.convert import from_guide
        model, args, kwargs = self._model, self._args, self._kwargs
        pair = Pair(model, self.guide, args, kwargs)
        once = Programs(pair, lambda: run_both(pair))
        with gradients_on(), seeded(seed), self._learnt.in_place(once):
            if data is None and self._batches is not None:
                tree = from_batches(self.guide, model, self._batches, args, kwargs, num_samples)
            else:
                given = args if data is None else as_arguments(data)
                tree = from_guide(self.guide, model, *given, num_samples=num_samples, **kwargs)
        tree["training"] = DataTree(Dataset({"loss": ("step", self.losses)}))
        particles = int(getattr(self.objective, "num_particles", 1))
        tree.attrs |= {
            "seconds": float(self.seconds),
            "gradient_evaluations": self.num_steps * particles,
        }
        return tree

    def restore(self, averaged: bool = False) -> None:
        """Give guide and model the values that this fit ended with, or their averages.

        They are written to the parameters and buffers of modules and to the param store, from which
        namesakes of other modules are dropped.

        Args:
            averaged: whether to take the averages.

        Raises:
            ValueError: there are no averages, or a parameter that has another shape or is missing.
                Nothing has been written then.
        """
        if averaged and not self.averaged:
            raise ValueError("No averages were kept: call fit(..., average=0.5), for example.")
        if self._model is None:
            raise ValueError("This fit was loaded without a model, so it has nothing to restore.")
        values = self._learnt.with_parameters(self.averaged) if averaged else self._learnt
        pair = Pair(self._model, self.guide, self._args, self._kwargs)
        programs = training_programs(self.objective, pair)
        with gradients_on():
            values.written(programs)

    def plot_loss(self, ax: Axes | None = None) -> Axes:
        """Draw the losses over the steps, and their running median.

        Args:
            ax: where to draw, by default on new axes.
        """
        with needing("Fit.plot_loss"):
            from pyro_elbo_lab.figures.training import plot_loss
        return plot_loss(self.losses, ax)

    def save(self, path: str | Path) -> None:
        """Write everything but the programs to a file, which `load` reads.

        An earlier file at the path is replaced when the new one is whole, and not before.

        Args:
            path: of the file.

        Raises:
            OSError: the file cannot be written.
        """
        names = ("num_steps", "seconds", "compile_seconds", "compilation")
        content: dict[str, Any] = {name: getattr(self, name) for name in names}
        content["losses"] = torch.from_numpy(self.losses)
        content["parameters"] = dict(self.parameters)
        content["averaged"] = dict(self.averaged)
        content["buffers"] = dict(self.buffers)
        write(path, content)

    @staticmethod
    def load(
        path: str | Path,
        model: Program,
        guide: Program,
        *args: Any,
        objective: ELBO,
        **kwargs: Any,
    ) -> Fit:
        """Read a fit, and give the parameters of model and guide its values.

        They go to the device of the first tensor among the arguments; without one to the device
        that they were fitted on, or to the CPU where that is not present.

        Args:
            path: of the file.
            model: the model that was fitted.
            guide: a guide of the same kind as the fitted one.
            args: positional arguments of both.
            objective: the objective that was minimized.
            kwargs: keyword arguments of both.

        Raises:
            ValueError: the file is no fit, or is broken; a parameter or buffer that file or
                programs lack, or that has another shape or type, or is NaN. Nothing has been
                written then.
            OSError: the file cannot be read.
        """
        check_objective(objective)
        content = read(path, _device_of(args, kwargs))
        losses = content.pop("losses").cpu().numpy()
        learnt = Learnt(content.pop("parameters"), content.pop("buffers"))
        with gradients_on():
            pair = Pair(model, guide, args, kwargs)
            set_up(pair)
            programs = training_programs(objective, pair)
            learnt = learnt.written(programs)
        return Fit(
            losses=losses, guide=guide, objective=objective, _learnt=learnt, _model=model,
            _args=args, _kwargs=kwargs, **content,
        )  # fmt: skip


def _device_of(*arguments: Any) -> torch.device | None:
    tensors = (x for x in tree_leaves(arguments) if isinstance(x, Tensor))
    return next((x.device for x in tensors), None)
