# What a newcomer runs: `make demo`, `make test`. Both set up the virtual environment first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test tests test-deep lint benchmark documents conformance clean

help:
	@echo "make demo       simulated Epic -> \$$export -> NDJSON -> OMOP in PostgreSQL, and its result"
	@echo "make test       formatting, lint, types, order of imports, and all tests"
	@echo "make test-deep  hours of random histories: nights under kills (SEED=, NIGHTS=, KILLS=), property tests"
	@echo "make setup      only the virtual environment in $(VENV)"
	@echo "make benchmark  the pipeline against its floor, with peak memory"
	@echo "make documents  the pages of docs/ that are made from the mappings"
	@echo "make conformance  docs/conformance.md, from the results of the tests that show a requirement"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "epic-omop needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,postgres]'
	touch $(STAMP)

demo: setup
	$(BIN)/epic-omop demo

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Most tests wait for PostgreSQL or for a program, so there are twice as many processes as cores. Files are given out
# in the order of their names, which has the long ones (faults, integration) before the short ones (unit). Programs
# that tests start must find compiled modules, also where the environment says that none are written. Frames of tests are
# small: several threads of polars would only wait for each other.
PYTEST := PYTHONDONTWRITEBYTECODE= POLARS_MAX_THREADS=1 $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder

# The types are checked in parallel with the tests: one of them waits now and then.
test: setup
	@$(MAKE) --no-print-directory --jobs 2 lint tests

tests: setup
	$(PYTEST)

# Not a part of `test`: docs/random-nights.md. `hypothesis` is the mark of property tests.
SEED ?= 1
NIGHTS ?= 50
KILLS ?= 60

test-deep: setup
	$(PYTEST) -s --all-deep --dist load tests/faults/test_random_nights.py --fault-seed $(SEED) --fault-nights $(NIGHTS) --fault-kills $(KILLS)
	$(PYTEST) -m deep
	$(PYTEST) --timeout 0 --hypothesis-profile=deep -m hypothesis

benchmark: setup
	$(BIN)/python -m benchmarks

documents: setup
	$(BIN)/python -m tools.documents

conformance: setup
	$(PYTEST) -m requirement --requirements-json .requirements.json
	$(BIN)/python -m tools.conformance --results .requirements.json

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
