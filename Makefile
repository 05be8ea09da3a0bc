# The short way to everything. Needs Python 3.11 or newer (with venv) and make; all else is installed into .venv here.
#
#   make demo                       install, train a small model on digits, leave runs/demo
#   make test                       install, lint and the fast tests
#   make demo PYTHON=python3.12     with this interpreter (it counts only while .venv does not exist yet)
#   make demo TORCH_INDEX=URL       an extra package index that has CPU wheels of torch; without it pip takes
#                                   what its usual index offers, which may be a large CUDA build

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
TORCH_INDEX ?=
WORKERS ?= 2
PYTEST_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --quiet --quiet -c constraints.txt
TORCH := torch==2.13.0
# One thread in each test worker: several of them share the machine, and results must not hang on the thread count.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: help demo test test-all lint format bench clean

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.stamp-core  ## train on digits with progress (a few minutes), leave runs/demo with report.html
	$(BIN)/atonce demo

test: lint  ## lint, types, import rules and the fast tests
	$(PYTEST) -m "not slow and not cuda" $(PYTEST_ARGS)

test-all: lint  ## the same with the slow tests, and with the CUDA tests where there is a device
	$(PYTEST) $(PYTEST_ARGS)

lint: .venv/.stamp-dev  ## style, format, types, docstrings, who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pydoclint src
	$(BIN)/lint-imports --no-logo

format: .venv/.stamp-dev  ## let ruff put imports and layout in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/.stamp-dev  ## the speed and quality measurements (long; not part of the tests)
	$(BIN)/python benchmarks/run.py

clean:  ## remove .venv and the tools' caches (runs/ stays)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# The environment. Stamps are newer than what they were made from, so an install is repeated only when that changes.
.venv/bin/python:
	@set -e; chosen=""; \
	for python in $(or $(PYTHON),python3.13 python3.12 python3.11 python3 python); do \
	  if command -v "$$python" >/dev/null 2>&1 \
	    && "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then \
	    chosen="$$python"; break; \
	  fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	  echo "No Python 3.11, 3.12 or 3.13 found$(if $(PYTHON), at PYTHON=$(PYTHON)). Name one: make ... PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	echo "making .venv with $$chosen ($$("$$chosen" -V))"; \
	"$$chosen" -m venv .venv || { \
	  rm -rf .venv; \
	  echo "This Python cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; \
	}

.venv/.stamp-torch: constraints.txt | .venv/bin/python
	@echo "installing $(TORCH)"
	@$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH)
	@touch $@

.venv/.stamp-core: pyproject.toml constraints.txt .venv/.stamp-torch
	@echo "installing atonce and what it needs"
	@$(INSTALL) -e .
	@touch $@

.venv/.stamp-dev: pyproject.toml constraints.txt .venv/.stamp-torch .venv/.stamp-pydoclint
	@echo "installing atonce with the tools for development"
	@$(INSTALL) -e ".[dev]"
	@touch $@ .venv/.stamp-core

# pydoclint lives in an environment of its own: it needs a fork of docstring_parser that unpacks into the same folder as the
# original, and with the fork tyro's --help loses the descriptions of a dataclass's fields.
.venv/.stamp-pydoclint: constraints.txt | .venv/bin/python
	@rm -rf .venv/pydoclint && $(BIN)/python -m venv --without-pip .venv/pydoclint
	@$(PIP) --python .venv/pydoclint install --quiet --quiet -c constraints.txt pydoclint
	@ln -sf ../pydoclint/bin/pydoclint $(BIN)/pydoclint
	@touch $@
