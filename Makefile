# Everything starts here: `make demo` and `make test` need nothing but Python >= 3.11 with venv, and pip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LIGHT := $(VENV)/.light
READY := $(VENV)/.ready
# Compiled modules are kept, whatever the environment says: hundreds of processes start.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
# Modules are compiled when they are first used: all of them would take a minute, and most are never used.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable

.PHONY: help setup demo docs site dist test torture floors quick check format bench bench-check clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

setup: $(READY)  ## private virtual environment in .venv, with all that training and tests need

$(LIGHT): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $(LIGHT)

$(READY): $(LIGHT)
	$(INSTALL) '.[train,dev,docs]'
	touch $(READY)

demo: $(LIGHT)   ## the main job on photos that come with regraft, offline; needs no torch
	REGRAFT_OFFLINE=1 PYTHONDONTWRITEBYTECODE= $(BIN)/regraft demo

docs: $(READY)   ## run the notebooks in examples/ anew, in both languages, and make the site
	$(BIN)/python examples/notebooks.py
	$(MAKE) site

site: $(READY)   ## the documentation as a site, in site/; strict
	$(BIN)/python docs/write_commands.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs site

dist: $(READY)   ## wheel and sdist, checked, and tried in clean environments (PYTHONS="3.11 3.13" TRAIN=1)
	$(BIN)/python deploy/dist.py $(foreach python,$(PYTHONS),--python $(python)) $(if $(TRAIN),--train)

test: $(READY)   ## all tests but the long forms; with REGRAFT_DATA also those on real photos
	$(PYTEST) -m 'not gpu' -n 2 --dist worksteal --max-worker-restart 0 --durations 25

torture: $(READY)  ## the long forms: every value, and faults in their full number
	REGRAFT_TRIALS=200 $(PYTEST) -m slow --timeout 0 tests
	$(BIN)/python deploy/floors.py

floors: $(READY) ## the lowest versions that pyproject.toml allows, installed and tried with the core
	$(BIN)/python deploy/floors.py

quick: $(READY)  ## the tests that import no torch and start no process: under two minutes
	$(PYTEST) --quick -n 2 --dist worksteal --max-worker-restart 0 -rfE

check: $(READY)  ## style and types
	$(BIN)/ruff check src tests bench examples docs deploy tools
	$(BIN)/ruff format --check src tests bench examples docs deploy tools
	$(BIN)/mypy

format: $(READY) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix src tests bench examples docs deploy tools
	$(BIN)/ruff format src tests bench examples docs deploy tools

bench: $(READY)  ## measure everything that has not been measured: hours; results go to bench/results/*.json
	$(BIN)/python bench/frozen.py --slow
	for name in limits engines serving searching scanning scale training prefixes regimes fits peers; do $(BIN)/python bench/$$name.py || exit; done

bench-check: $(READY)  ## a minute of measuring: fails where a speed ratio has fallen to less than half of that on record
	$(BIN)/python bench/limits.py --check
	$(BIN)/python bench/frozen.py --check

clean:           ## remove the environment, caches and what the demo made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache regraft-demo site dist
