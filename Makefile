# Every target sets up what it needs first: Python 3.11 or newer and make are
# enough. docs/development.md says what each target is for.

VENV ?= .venv
WORKERS ?= auto

# The first Python that is new enough and can make virtual environments.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
PYTEST := $(PY) -m pytest -n $(WORKERS)
COVERAGE_OPTIONS := $(if $(COVERAGE),--cov --cov-report=term)

.DEFAULT_GOAL := help
.NOTPARALLEL:

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(READY)  ## Publish, update, break and revert a real scanning engine, under two minutes
	@$(PY) examples/yara/demo.py

# SOURCE is the feed to mirror, ROOT the vendor's first root.json.
.PHONY: server
server: $(READY)  ## Run the Security Server on this machine (SOURCE=URL ROOT=root.json)
	@$(VENV)/bin/serverctl run $(if $(SOURCE),--source $(SOURCE)) $(if $(ROOT),--trust-root $(ROOT))

.PHONY: test
test: $(READY)  ## Run the tests (WORKERS=0: one by one; COVERAGE=1: with the 90 % floor)
	@$(PYTEST) $(COVERAGE_OPTIONS) $(TESTS)

.PHONY: test-windows
test-windows: $(READY)  ## As root: the Windows side, under Wine (docs/development.md)
	@HOLDFAST_WINE=$${HOLDFAST_WINE:-$(CURDIR)/build/wine} $(PYTEST) tests/system/windows \
		tests/system/packaging/test_windows_installer.py

# As root: 2,000 power cuts and every call that a disk can refuse, from a fresh seed.
.PHONY: soak
soak: $(READY)  ## As root: power cuts and bad disks for half an hour (CUTS=2000 BAD_CALLS=0 POWER_SEED=n)
	@seed=$${POWER_SEED:-$$(date +%s)}; echo "soak: POWER_SEED=$$seed"; \
	CUTS=$(or $(CUTS),2000) BAD_CALLS=$(or $(BAD_CALLS),0) POWER_SEED=$$seed \
	$(PYTEST) tests/system/power tests/integration/test_bad_calls.py

.PHONY: fuzz
fuzz: $(VENV)/.fuzz  ## Feed damaged incrementals to the rebuild (RUNS=1000000; guided on Linux x86-64)
	@$(PY) -m tests.fuzz.fuzz_delta $(or $(RUNS),1000000)

# Whatever keeps atheris from being installed, the fuzzing goes on without it.
$(VENV)/.fuzz: $(READY) requirements/fuzz.txt
	@$(PY) -m pip install --quiet --require-hashes --no-deps --only-binary :all: \
		-r requirements/fuzz.txt || echo "fuzz: atheris can't be installed; going on unguided" >&2
	@touch $@

.PHONY: check
check: lint  ## What to run before each commit: lint, then the tests with coverage
	@$(MAKE) --no-print-directory test COVERAGE=1

.PHONY: lint
lint: style types check-windows arrows  ## Style, types and the direction of imports, without the tests

.PHONY: style
style: $(READY)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

.PHONY: types
types: $(READY)
	@$(PY) -m mypy

.PHONY: check-windows
check-windows: $(READY)  ## Types as they are on Windows, where the server doesn't run
	@$(PY) -m mypy --platform win32 -p feed -p agent -p publisher -p service -p builder
	@$(PY) -m mypy --platform win32 packaging/windows/setup_agent.py

.PHONY: arrows
arrows: $(READY)
	@$(VENV)/bin/lint-imports --no-logo

.PHONY: format
format: $(READY)  ## Rewrite the sources in the house format
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

.PHONY: bench
bench: $(READY)  ## Measure what docs/performance.md reports
	@$(PY) -m bench

# PACKAGE holds options of packaging/builder, as in PACKAGE="--python 3.13".
BUILDER := PYTHONPATH=packaging $(PY) -m builder

.PHONY: packages
packages: $(READY)  ## Build .deb and .rpm of agent and server into dist/, with bills of materials
	@$(BUILDER) deb rpm $(PACKAGE)

.PHONY: package-deb package-rpm package-windows
package-deb package-rpm package-windows: package-%: $(READY)
	@$(BUILDER) $* $(PACKAGE)

.PHONY: setup
setup: $(READY)  ## Make the virtual environment, which every other target does by itself

$(READY): requirements/dev.txt requirements/prepare.py pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "No Python 3.11 or newer with ensurepip was found; name one: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	@$(PYTHON) requirements/prepare.py $(VENV)

.PHONY: locks
locks: $(VENV)/.uv  ## Write requirements/*.txt again from pyproject.toml (UPGRADE=1: newest versions)
	@sh requirements/lock.sh $(VENV)/bin/uv $(if $(UPGRADE),--upgrade)

$(VENV)/.uv: $(READY) requirements/uv.txt
	@$(PY) -m pip install --quiet --require-hashes --no-deps -r requirements/uv.txt
	@touch $@

.PHONY: clean
clean:  ## Remove the virtual environment, caches and build results
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* .hypothesis
	rm -rf .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
