# The two commands of the README: `make train` and `make test`. Each sets up .venv from nothing.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
DATA ?=
ARGS ?=

.PHONY: train test test-slow check format clean

train: $(READY)  ## train, evaluate with one and ten views, and write a report
	$(VENV)/bin/alexnet train $(DATA) $(ARGS)

test: $(READY)  ## the whole test suite, but for what is marked slow or gpu
	$(VENV)/bin/python -m pytest

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

check: test  ## tests, formatter, linter, type checker
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff format src tests
	$(VENV)/bin/ruff check --fix src tests

# A changed pyproject.toml is installed again; an interrupted installation leaves no .ready behind.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alexnet needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
