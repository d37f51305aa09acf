"""The house rules that a reader would otherwise have to check by hand."""

import ast
import graphlib
import inspect
import re
import sys
from pathlib import Path

import pyro.infer
import pytest

import pyro_elbo_lab

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pyro_elbo_lab"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}

# Each room, and the rooms that its files may import.
BELOW = {
    "programs": set(),
    "statistics": set(),
    "objectives": {"programs"},
    "compilation": {"programs"},
    "figures": {"statistics"},
    "inference": {"programs", "statistics", "objectives", "compilation", "figures"},
    "trust": {"programs", "statistics", "objectives", "compilation", "figures", "inference"},
}
BELOW["report"] = {*BELOW["trust"], "trust"}
BELOW["cli"] = {*BELOW["report"], "report"}

ROOMS_THAT_RUN_MODELS = {
    "programs",
    "objectives.particles",
    "objectives.gradients",
    "compilation",
    "inference",
    "trust",
}
"""Under handlers of `pyro.poutine`."""


def room(module: str) -> str:
    return module.partition(".")[0]


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
    """The modules of the package that a module imports, for its types alone included."""
    found = set()
    for name in imports(module):
        path, _, last = name.removeprefix("pyro_elbo_lab.").rpartition(".")
        if name.startswith("pyro_elbo_lab.") and last != "__version__":
            found.add(f"{path}.{last}" if f"{path}.{last}" in MODULES else path)
    return found


def packages_reached(module: str) -> set[str]:
    """Packages imported by a module or by the modules that it imports."""
    return packages(module).union(*map(packages_reached, siblings(module)))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_the_plan(module: str) -> None:
    allowed = BELOW[room(module)] | {room(module)}
    upward = {name for name in siblings(module) if room(name) not in allowed}
    assert not upward, f"{module} imports {sorted(upward)}"
    assert "pyro_elbo_lab" not in imports(module), "import its modules, not the package"


def test_there_is_no_circle_between_files() -> None:
    graphlib.TopologicalSorter({module: siblings(module) for module in MODULES}).prepare()


def test_the_rooms_are_those_of_the_plan() -> None:
    assert {room(module) for module in MODULES} == BELOW.keys()
    assert not [name for name in MODULES if name.rpartition(".")[2].startswith("_")]


@pytest.mark.parametrize("module", [name for name in MODULES if name == room(name)])
def test_a_room_says_what_it_is(module: str) -> None:
    text = ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8"))) or ""
    assert "import" in text and "It gives" in text


def test_only_these_rooms_touch_poutine() -> None:
    users = {m for m in MODULES if any(name.startswith("pyro.poutine") for name in imports(m))}
    outside = {m for m in users if not m.startswith(tuple(ROOMS_THAT_RUN_MODELS))}
    assert not outside


def test_bounds_are_pure_torch() -> None:
    assert packages("objectives.bounds") - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.parametrize(
    "module", [name for name in MODULES if room(name) in ("statistics", "figures")]
)
def test_numbers_and_figures_need_no_torch(module: str) -> None:
    assert packages_reached(module).isdisjoint({"torch", "pyro"})


def test_comparing_needs_no_torch() -> None:
    assert packages_reached("trust.comparison.compare").isdisjoint({"torch", "pyro"})


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


PAGES = ["README.md", *sorted(f"tutorials/{p.name}" for p in (ROOT / "tutorials").glob("*.md"))]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in (ROOT / page).read_text()]
)
def test_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python blocks run in order, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    namespace = {"__name__": "page"}
    for block in blocks:
        lines_before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * lines_before + block[1], page, "exec"), namespace)


def test_the_readme_is_short_and_has_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900 and text.count("```python") >= 3


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "tests/benchmarks/README.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
