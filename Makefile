# Needs make and any python3 from 3.10. Everything else goes into .venv and .services.

PYTHON = python3
VENV = .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip -qq --disable-pip-version-check
SPHINX = $(BIN)/sphinx-build -q -W -n --keep-going -b html docs docs/_build/html
MATRIX = ends
FAULTS ?= 55
ARGS =
# Most tests wait, for workers and brokers: more at a time than there are processors.
JOBS = 3

.NOTPARALLEL:
.PHONY: help demo test lint types dist installed peers containers docs bench soak faults crashpoints matrix clean

help:
	@echo "make demo     see it work: one worker, one batch task, what it saves"
	@echo "make test     all checks: lint, types, package, tests, coverage, docs"
	@echo "make lint     ruff, imports between rooms, the changelog fragments, and the files for pre-commit and devcontainers"
	@echo "make types    mypy --strict"
	@echo "make dist     sdist and wheel in dist/, checked"
	@echo "make docs     the documentation, in docs/_build/html"
	@echo "make bench    this package beside its peers; ARGS='--list' for the cases"
	@echo "make soak     a million messages through one worker, whose memory must not grow"
	@echo "make faults   110 faults on brokers of its own, and what happened to each message (10 minutes)"
	@echo "make crashpoints  something is lost at each step of settling a batch (10 minutes)"
	@echo "make containers  a worker and brokers in containers; needs Docker, is skipped without it"
	@echo "make matrix   the tests on every Python found here, with the oldest and newest Celery"
	@echo "              (MATRIX=full: with every Celery)"
	@echo "make clean    remove all of the above, and stop the services that were started"
	@echo "Options: PYTHON=python3.12 (for a new .venv), ARGS='tests/unit -k buffer' (for pytest,"
	@echo "         or what else is run)"

# The tools and what the tests need, installed anew when pyproject.toml changes.
$(VENV)/tools.stamp: pyproject.toml
	$(PYTHON) scripts/venv.py $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install --upgrade . --group package --group dev
	@touch $@

$(VENV)/matrix.stamp: $(VENV)/tools.stamp
	$(PIP) install --upgrade --group matrix
	@touch $@

test: lint types installed peers
	rm -f .coverage .coverage.*
	$(BIN)/python scripts/services.py run $(BIN)/coverage run $(BIN)/pytest -n $(JOBS) --dist loadfile $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(SPHINX)

lint: $(VENV)/tools.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/towncrier build --draft --version unreleased >/dev/null
	$(BIN)/pre-commit validate-config
	$(BIN)/check-json .devcontainer/devcontainer.json

types: $(VENV)/tools.stamp
	$(BIN)/mypy --strict

dist: $(VENV)/tools.stamp
	rm -rf dist
	$(BIN)/python -m build --no-isolation >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	$(BIN)/twine check --strict dist/*

# The wheel in place of the source tree: a file left out of it is missed here, not by a user.
installed: dist
	$(PIP) install --no-deps --force-reinstall dist/*.whl
	$(BIN)/python scripts/check_installed.py

# Flower, the tools that watch tasks, type checkers, the original of this package, and what is measured
# beside it: what is there is left alone.
peers: $(VENV)/tools.stamp
	$(BIN)/python scripts/peers.py

# pytest-celery 1 cannot be installed beside 0.0, which the other tests use.
.venv-containers/containers.stamp: pyproject.toml
	$(PYTHON) scripts/venv.py .venv-containers
	.venv-containers/bin/python -m pip -qq --disable-pip-version-check install --upgrade pip
	.venv-containers/bin/python -m pip -qq --disable-pip-version-check install --group containers
	@touch $@

# Without a Docker engine these tests are skipped, and say so; REQUIRE_DOCKER=1 makes that an error.
containers: dist .venv-containers/containers.stamp
	.venv-containers/bin/python -m pip -qq --disable-pip-version-check install --no-deps \
	    --force-reinstall dist/*.whl
	.venv-containers/bin/pytest tests/containers $(ARGS)

docs: installed
	$(SPHINX)

# For each of two brokers, so many faults; the tests start the brokers.
faults: installed
	FAULTS=$(FAULTS) $(BIN)/pytest tests/faults/test_ledger.py $(ARGS)

# Of batches and of ordinary tasks; it takes six workers at a time.
crashpoints: installed
	CRASHPOINTS=all $(BIN)/python scripts/services.py run \
	    $(BIN)/pytest tests/faults/test_crash_points.py $(ARGS)

matrix: $(VENV)/matrix.stamp peers
	$(BIN)/python scripts/services.py run $(BIN)/python scripts/matrix.py $(MATRIX)

demo: .venv-demo/demo.stamp
	@.venv-demo/bin/python demo/demo.py

.venv-demo/demo.stamp: pyproject.toml $(wildcard celery_batches/*)
	$(PYTHON) scripts/venv.py .venv-demo
	.venv-demo/bin/python -m pip -qq --disable-pip-version-check install . "kombu[redis]"
	@touch $@

$(VENV)/bench.stamp: $(VENV)/tools.stamp
	$(PIP) install --upgrade --group bench
	@touch $@

bench: installed peers $(VENV)/bench.stamp
	$(BIN)/python scripts/services.py run $(BIN)/python benchmarks/run.py $(ARGS)

soak: installed
	$(BIN)/python scripts/services.py run $(BIN)/python benchmarks/soak.py $(ARGS)

clean:
	-test ! -d .services || $(PYTHON) scripts/services.py down
	rm -rf $(VENV) .venv-containers .venv-demo .venv-flower .venv-original .venv-tools .venv-typed .venv-bench-* .services .tox .coverage .coverage.* .hypothesis .mypy_cache
	rm -rf .pytest_cache .ruff_cache dist build docs/_build htmlcov
