"""What an objective does with each latent of a model, as a table to print."""

from dataclasses import dataclass

from pyro_elbo_lab.objectives.plans import Plan, Route
from pyro_elbo_lab.programs.structure.factors import FactorKey


@dataclass(frozen=True)
class Row:
    """One latent.

    Attributes:
        site: its name.
        distribution: what the guide draws it from.
        drawn: "reparameterized" or "not reparameterized"; "-" for a function of other latents.
        place: "shared", "joint weight", or the plates whose cells have weights of their own.
        gradient: the estimator of its part of the gradient.
        kl: how its part of KL(q || p) is evaluated.
        why: the reason for all this.
    """

    site: str
    distribution: str
    drawn: str
    place: str
    gradient: str
    kl: str
    why: str


@dataclass(frozen=True)
class Explanation:
    """The answer of `objective.explain(model, guide, *args)`. Print it.

    Attributes:
        objective: the objective's name and arguments.
        rows: one for every latent of the guide.
        notes: what holds for all of them.
    """

    objective: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def __getitem__(self, site: str) -> Row:
        """The row of a site."""
        for row in self.rows:
            if row.site == site:
                return row
        raise KeyError(f"no latent '{site}'; there are {[row.site for row in self.rows]}")

    def __str__(self) -> str:
        header = ("site", "guide", "draws", "place", "gradient", "KL term", "why")
        table = [header] + [
            (r.site, r.distribution, r.drawn, r.place, r.gradient, r.kl, r.why) for r in self.rows
        ]
        widths = [max(len(line[i]) for line in table) for i in range(len(header) - 1)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True))
            for line in table
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([self.objective, *[line.rstrip() for line in lines], *self.notes])

    __repr__ = __str__


def rows_of(plan: Plan) -> tuple[Row, ...]:
    """One row for each site of the guide.

    Args:
        plan: what was decided for it.
    """
    rows = [_average(plan, name) for name in plan.structure.averaged]
    rows += [_latent(plan, name) for name in plan.structure.latents]
    rows += [_delta(plan, key) for key in plan.structure.reads if _is_delta(plan, key)]
    return tuple(rows)


def _latent(plan: Plan, name: str) -> Row:
    latent, choice = plan.structure.latents[name], plan.choices[name]
    cells = plan.layout.cells.get(FactorKey("guide", name))
    place = "shared"
    if cells is not None and name in plan.layout.local:
        place = f"cells of {', '.join(sorted(cells))}" if cells else "joint weight"
    route = plan.routes.get(name, Route("Monte Carlo"))
    return Row(
        site=name,
        distribution=latent.distribution,
        drawn="reparameterized" if latent.reparameterized else "not reparameterized",
        place=place,
        gradient=choice.estimator.replace("_", " "),
        kl=route.name,
        why="; ".join(filter(None, (choice.reason, route.reason))),
    )


def _is_delta(plan: Plan, key: FactorKey) -> bool:
    in_model = key.name in plan.structure.parents
    known = plan.structure.latents.keys() | plan.structure.averaged.keys()
    return key.side == "guide" and in_model and key.name not in known


def _average(plan: Plan, name: str) -> Row:
    site = plan.structure.averaged[name]
    why = f"infer={{'enumerate': '{site.how}'}} in the guide"
    if site.num_samples is None:
        return Row(name, site.distribution, "all values", "-", "exact", "exact sum", why)
    gradient = "pathwise" if site.reparameterized else "score"
    draws = f"{site.num_samples} at once"
    return Row(name, site.distribution, draws, "-", gradient, "Monte Carlo", why)


def _delta(plan: Plan, key: FactorKey) -> Row:
    sources = ", ".join(sorted(plan.structure.reads[key])) or "parameters only"
    return Row(key.name, "Delta", "-", "-", "pathwise", "Monte Carlo", f"a function of {sources}")
