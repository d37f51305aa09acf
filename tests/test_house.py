"""The house rules that a reader would otherwise have to check by hand."""

import ast
import inspect
import re
import sys
from pathlib import Path

import pyro.infer
import pytest

import pyro_elbo_lab

ROOT = Path(__file__).parents[1]
MODULES = {path.stem: path for path in sorted((ROOT / "pyro_elbo_lab").glob("*.py"))}

# Each module may import those of the rows above its own.
STORY = [
    ["checks"],
    [
        "bounds",
        "paths",
        "explanation",
        "annealing",
        "state",
        "names",
        "noise",
        "guard",
        "datatree",
        "leftovers",
        "messages",
        "files",
        "precision",
    ],
    ["_chains"],
    ["reliability"],
    ["unseen"],
    ["activity"],
    ["reach"],
    ["environment"],
    ["footprints"],
    ["simplify", "scans", "dispatch", "dims", "smoothness", "netcdf", "folders"],
    ["inventory", "batches", "inputs", "fit_file"],
    ["leaves", "reads", "rewrites", "writes"],
    ["replay", "programs"],
    ["groups", "learnt"],
    ["simulation"],
    ["branches", "enumeration", "products", "rows"],
    ["structure"],
    ["layout", "sleep", "given", "expectations"],
    ["particles"],
    ["target", "baselines"],
    ["score"],
    ["gradients"],
    ["quasirandom", "wake", "mixture"],
    ["sampling", "plans"],
    ["independence"],
    ["guide_draws"],
    ["objective"],
    ["objectives", "annealed", "divergences", "analytic_kl"],
    ["capture", "recording", "optimizers", "budget"],
    ["inductor", "evaluation", "checkpoint"],
    ["compiled", "training", "svi_steps"],
    ["engines"],
    ["graphs"],
    ["graph_steps"],
    ["steps"],
    ["convert"],
    ["all_rows"],
    ["result"],
    ["fit", "ground_truth", "linear_response", "signal_to_noise", "decomposition"],
    ["potential"],
    ["density"],
    ["entry_point"],
    ["chains"],
    ["reference"],
    ["_correlations", "_draws", "_importance", "_joint", "_modes"],
    ["_distances", "_predictive", "_progress", "_sources", "diagnostics"],
    ["_blocks"],
    ["_side"],
    ["_scalars"],
    ["_dataset", "_errors"],
    ["verdict"],
    ["comparison"],
    ["_sandwich"],
    ["evidence"],
    ["_ranks", "_orphans"],
    ["_simulations"],
    ["calibration"],
    ["_style"],
    ["_figure"],
    ["plots_marginals", "plots_errors", "plots_pairs", "plots_weights", "plots_training"],
    ["plots_evidence", "plots_decomposition"],
    ["plots", "evidence_plot", "calibration_plot"],
    ["_numbers", "_page", "_illustrations"],
    ["_health", "_tables", "_contents"],
    ["_sections"],
    ["report"],
    ["_model_checks"],
    ["_model_file"],
    ["_specs"],
    ["_command"],
    ["_compare_command", "_evidence_command", "_sbc_command"],
    ["cli"],
    ["__init__"],
]
# Plot methods import the plots, which need the class that has the method, when they are called.
DEFERRED = {
    "calibration": {"calibration_plot"},
    "comparison": {"plots"},
    "evidence": {"evidence_plot"},
    "result": {"plots"},
}
RUN_MODELS_UNDER_POUTINE = {
    "branches",
    "structure",
    "rows",
    "particles",
    "quasirandom",
    "sampling",
    "sleep",
    "capture",
    "evaluation",
    "compiled",
    "convert",
    "inputs",
    "inventory",
    "potential",
    "programs",
    "dims",
    "reach",
    "replay",
    "groups",
    "guide_draws",
    "linear_response",
    "simulation",
}


def imports(module: str) -> set[str]:
    """Dotted names a module imports anywhere in its text, `pyro.poutine` used as such included."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = "pyro_elbo_lab." if node.level else ""
            names |= {f"{prefix}{node.module or ''}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "pyro.poutine":
            names.add("pyro.poutine")
    return names


def packages(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)}


def siblings(module: str) -> set[str]:
    return {name.split(".")[1] for name in imports(module) if name.startswith("pyro_elbo_lab.")}


def packages_reached(module: str) -> set[str]:
    """Packages imported by a module or by the modules that it imports."""
    below = siblings(module) - DEFERRED.get(module, set())
    return packages(module).union(*map(packages_reached, below))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_the_story(module: str) -> None:
    row = next((i for i, names in enumerate(STORY) if module in names), None)
    assert row is not None, f"give {module}.py its place in STORY"
    above = {name for names in STORY[:row] for name in names}
    upward = siblings(module) - above - DEFERRED.get(module, set())
    assert not upward, f"{module}.py imports {sorted(upward)}"
    assert "pyro_elbo_lab" not in imports(module), "import its modules, not the package"


def test_only_these_rooms_touch_poutine() -> None:
    users = {m for m in MODULES if any(name.startswith("pyro.poutine") for name in imports(m))}
    assert users <= RUN_MODELS_UNDER_POUTINE


def test_bounds_are_pure_torch() -> None:
    assert packages("bounds") - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.parametrize("module", ["comparison", "plots"])
def test_comparing_needs_no_torch(module: str) -> None:
    assert packages_reached(module).isdisjoint({"torch", "pyro"})


@pytest.mark.parametrize("module", MODULES)
def test_the_library_imports_no_models_and_no_tests(module: str) -> None:
    assert packages(module).isdisjoint({"models", "tests"})


def lacks(name: str) -> str | None:
    """What is missing from the docstring of a public name."""
    public = getattr(pyro_elbo_lab, name)
    documentation = inspect.getdoc(public)
    if not documentation:
        return f"{name} has no docstring"
    is_objective = inspect.isclass(public) and issubclass(public, pyro.infer.ELBO)
    if (inspect.isfunction(public) or is_objective) and ">>>" not in documentation:
        return f"the docstring of {name} has no example"
    return None


def lines_of_code(function: object) -> int:
    """Without signature and docstring."""
    node = ast.parse(inspect.getsource(function)).body[0]  # type: ignore[arg-type]
    assert isinstance(node, ast.FunctionDef)
    body = node.body[1:]
    return sum((s.end_lineno or s.lineno) - s.lineno + 1 for s in body)


def test_named_objectives_are_thin() -> None:
    thin = {
        name: lines_of_code(getattr(pyro_elbo_lab, name))
        for name in pyro_elbo_lab.__all__
        if name[0].isupper() and inspect.isfunction(getattr(pyro_elbo_lab, name))
    }
    assert len(thin) >= 13
    assert {name: lines for name, lines in thin.items() if lines > 15} == {}


def test_public_names_are_documented() -> None:
    assert pyro_elbo_lab.__all__
    missing = [lacking for name in pyro_elbo_lab.__all__ if (lacking := lacks(name))]
    assert not missing, "; ".join(missing)


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks run in order, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    assert blocks, "README.md has no Python code"
    namespace = {"__name__": "readme"}
    for block in blocks:
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], "README.md", "exec"), namespace)
