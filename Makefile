# `make demo` and `make test` need only make and Python 3.12 or newer: both set up .venv first.
# PYTHON names the interpreter to use; without it the first of these that works is taken.
PYTHON ?= python3.14 python3.13 python3.12 python3 python
VENV := .venv
BIN := $(VENV)/bin
QUICK := tests/statistics tests/documents/test_house.py tests/mutants tests/compilation/test_capture.py \
	$(addprefix tests/programs/test_,structure.py enumeration.py accepted_programs.py precision.py) \
	$(addprefix tests/objectives/test_,bounds.py layout.py paths.py sampling.py bad_arguments.py) \
	-k "not a_fault and not code_of_a_page"
INSTALLED := $(VENV)/.installed

LOWEST := .venv-lowest

.PHONY: help demo test test-lowest quick lint bench clean

help:
	@echo "make demo   compare three objectives with NUTS on eight schools, writes report/index.html"
	@echo "make test   run the tests, then lint"
	@echo "make test-lowest  the tests, with the lowest versions that pyproject.toml allows"
	@echo "make quick  run the tests that take little time, about a minute"
	@echo "make lint   check style (ruff) and types (mypy)"
	@echo "make bench  time training and NUTS beside Pyro and NumPyro; BENCH=--quick for a first look"
	@echo "make clean  remove $(VENV), the report and all caches"

demo: $(INSTALLED)
	$(BIN)/elbo-lab compare models/eight_schools.py \
		--guide normal --guide mvn \
		--objective standard --objective importance-weighted:16 --objective analytic-kl \
		--out report/

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder
	@$(MAKE) --no-print-directory lint

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

quick: $(INSTALLED)
	$(BIN)/python -m pytest -q -n auto --dist load $(QUICK)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(INSTALLED).bench
	$(BIN)/python -m tests.benchmarks.speed $(BENCH)
	$(BIN)/python -m tests.benchmarks.compile_cost $(BENCH)
	$(BIN)/python -m tests.benchmarks.nuts_speed $(BENCH)

$(INSTALLED).bench: $(INSTALLED)
	$(BIN)/python -m pip install --no-input --disable-pip-version-check -e ".[bench]"
	@touch $@

$(LOWEST)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --no-input --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct -e ".[test]"
	@touch $@

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV); the first time this downloads several GB, most of it PyTorch."
	$(BIN)/python -m pip install --no-input --disable-pip-version-check -e ".[test]"
	@touch $@

# A candidate may exist and still be too old, a shim that points nowhere, or lack venv: each is run.
$(BIN)/python:
	@for python in $(PYTHON); do \
		version=$$($$python -c "import sys; print('%d.%d' % sys.version_info[:2])" 2>&1) || \
			{ tried="$$tried\n  $$python: does not run"; continue; }; \
		$$python -c "import sys; sys.exit(sys.version_info < (3, 12))" || \
			{ tried="$$tried\n  $$python: is Python $$version"; continue; }; \
		$$python -m venv --clear $(VENV) >/dev/null 2>&1 || \
			{ tried="$$tried\n  $$python: is Python $$version, but its venv module does not work"; \
			rm -rf $(VENV); continue; }; \
		echo "Created $(VENV) with $$python (Python $$version)."; exit 0; \
	done; \
	printf '%b\n' "No Python 3.12 or newer with a working venv module was found. Tried:$$tried" >&2; \
	echo "Install one (on Debian and Ubuntu also its -venv package), or name it:" >&2; \
	echo "  make $(or $(firstword $(MAKECMDGOALS)),test) PYTHON=/path/to/python3" >&2; \
	exit 1

clean:
	rm -rf $(VENV) $(LOWEST) report build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
