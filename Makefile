# Everything runs in .venv, which each target makes and fills when it needs it. All that a machine has to have is
# Python 3.11 to 3.13 with pip and venv, make and bash. PYTHON=… chooses the interpreter, ARGS=… adds arguments.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11; do \
	"$$each" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo "$$each" && break; done)

# Packages are installed uncompiled, which saves minutes; Python keeps the bytecode of what it then imports.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo ui test test-long reliability bench simulation docs fuzz screenshots lint format lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/demo.stamp ## make the environment in .venv, with every extra

demo: $(VENV)/demo.stamp ## transcribe samples/ twice, with nothing but this machine: see what the cache saves
	$(BIN)/python -m flows.demo $(ARGS)

ui: $(VENV)/demo.stamp ## the same against a Prefect server, whose address it prints
	$(BIN)/python -m flows.demo --ui $(ARGS)

test: $(VENV)/test.stamp ## run the tests against real servers, which they start themselves
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-long: $(VENV)/test.stamp ## run the tests that take minutes each
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m long $(ARGS) || \
	{ code=$$?; [ $$code -eq 5 ] && echo "There are no long tests."; }

reliability: $(VENV)/test.stamp ## try to break every promise, long tests too, and write docs/reliability.md
	$(BIN)/python -m pytest -n 2 --dist worksteal -m promise --reliability=docs/reliability.md tests $(ARGS)

bench: $(VENV)/bench.stamp ## measure ours against the peers and write docs/performance.md; ARGS="hit --json" selects
	$(BIN)/python -m benchmarks $(ARGS)

simulation: $(VENV)/bench.stamp ## push a million keys through the real tiers, some 15 minutes, and write docs/scaling.md
	$(BIN)/python -m benchmarks.simulation $(ARGS)

docs: $(VENV)/docs.stamp ## build the documentation into build/site; a broken link is an error
	$(BIN)/zensical build --clean --strict $(ARGS)

fuzz: $(VENV)/test.stamp ## feed random and damaged bytes to the decoders, FUZZ_SECONDS (60) for each
	$(BIN)/python -m pytest -n 2 -m long tests/fuzz $(ARGS)

screenshots: $(VENV)/test.stamp ## take the pictures of the report in Prefect's UI anew; needs Chromium
	$(BIN)/python -m tests.ui.screenshots $(ARGS)

lint: $(VENV)/test.stamp ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --warnings

format: $(VENV)/test.stamp ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/test.stamp ## pin all packages anew, with their hashes and for every Python, without an index address
	$(COMPILE) requirements/build.in --output-file requirements/demo.txt
	$(COMPILE) $(RUNNERS) requirements/build.in requirements/test.in --output-file requirements/test.txt
	$(COMPILE) $(RUNNERS) requirements/build.in requirements/test.in requirements/bench.in --output-file requirements/bench.txt
	$(COMPILE) requirements/build.in requirements/docs.in --output-file requirements/docs.txt

clean: ## remove the environment and all that was made here
	rm -rf $(VENV) .demo .cache build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

RUNNERS = --extra dask --extra ray
COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock" --extra all pyproject.toml

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11, 3.12 or 3.13 is needed; PYTHON=/path/to/it names one." >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

# pip, because it knows which index this machine uses. Its hundreds of lines become a few; when it fails, all show.
define install
	@echo "Installing about $$(grep -c '==' $<) pinned packages from $<: a minute or two the first time"
	@$(BIN)/python -m pip install --require-hashes --no-compile --progress-bar off --log $(VENV)/pip.log -r $< \
	2>$(VENV)/pip.errors | awk '/^Collecting/ && ++count % 20 == 0 { print "  " count " fetched"; fflush() } \
		/^Installing/ { print "  unpacking them: half a minute"; fflush() }' \
	|| { cat $(VENV)/pip.errors >&2; echo "The whole story is in $(VENV)/pip.log." >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-compile --editable .
endef

$(VENV)/demo.stamp: requirements/demo.txt pyproject.toml | $(BIN)/python
	$(install)
	@touch $@

# What the tests need includes what the demo needs.
$(VENV)/test.stamp: requirements/test.txt pyproject.toml | $(BIN)/python
	$(install)
	@touch $(VENV)/demo.stamp $@

# The benchmarks start the tests' servers, so they need all that and the peers.
$(VENV)/bench.stamp: requirements/bench.txt pyproject.toml | $(BIN)/python
	$(install)
	@touch $(VENV)/demo.stamp $(VENV)/test.stamp $@

$(VENV)/docs.stamp: requirements/docs.txt pyproject.toml | $(BIN)/python
	$(install)
	@touch $(VENV)/demo.stamp $@
