# On a machine with Python 3.11 or newer and make: `make demo`, `make test`. Another Python: `make test PYTHON=python3.13`.

PYTHON ?= python3
VENV ?= .venv

VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ENVIRONMENT := $(VENV)/bin/python$(VERSION)
INSTALLED := $(VENV)/installed-$(VERSION)
INSTALL := $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable

PLAIN := tests/faults tests/scale $(addprefix tests/integration/test_,backend.py bind.py host_engine.py pipeline.py pool.py loops.py sync_engine.py)

.DEFAULT_GOAL := help
.PHONY: help check types fix hooks test test-slow test-plain test-matrix coverage faults capabilities nightly fuzz demo docs migration lock wheel bench bench-quick

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

check: $(INSTALLED) ## Lint, formatting, types, direction of imports
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

types: $(INSTALLED) ## What mypy and pyright make of the public API
	$(INSTALL) '.[dev,types]'
	$(VENV)/bin/mypy tests/typing
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

fix: $(INSTALLED) ## Let ruff repair what it can, and format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

hooks: $(INSTALLED) ## Have git check each commit: ruff, mypy, direction of imports
	$(VENV)/bin/pre-commit install

test: $(INSTALLED) ## Run the tests, on CHECKPOINT_STORE_TEST_URL or an embedded server; ARGS="-k sweep" narrows them
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 -m "not slow" $(ARGS)

test-slow: $(INSTALLED) ## Run all tests, the slow ones too
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 $(ARGS)

test-plain: $(INSTALLED) ## The tests of faults, pools and hosts' engines with all shortcuts off
	CHECKPOINT_STORE_TEST_SHORTCUTS=off $(VENV)/bin/python -m pytest -n logical --maxprocesses 8 -m "not slow" $(or $(ARGS),$(PLAIN))

coverage: $(INSTALLED) ## Run the tests and report which lines and branches none of them reaches
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --cov -m "not slow" $(ARGS)

faults: $(INSTALLED) ## Inject faults under load: a table of what was tried, acknowledged and lost
	$(VENV)/bin/python -m tests.faults

capabilities: $(INSTALLED) ## Try everything the library can on one server, partitions, a replica, PgBouncer and Citus: a table
	$(VENV)/bin/python -m tests.scale

nightly: $(INSTALLED) ## Our savers in the tests of LangGraph, Deep Agents, Aegra and the Agent Server; ARGS="aegra" for one
	$(VENV)/bin/python -m tests.hosts_nightly $(ARGS)

test-matrix: $(INSTALLED) ## The tests on old and new servers, SQLAlchemy, LangGraph, Python; ARGS="--slice oldest newest" is CI's part
	$(VENV)/bin/python tests/matrix.py $(ARGS)

fuzz: $(INSTALLED) ## Throw odd input at every call, CASES=5000 at each test, and count how they end
	CHECKPOINT_STORE_FUZZ_CASES=$(or $(CASES),5000) $(VENV)/bin/python -m pytest -n logical --maxprocesses 8 tests/fuzz

demo: $(INSTALLED) ## Kill an agent in the middle of a step, and watch another process finish its work
	$(VENV)/bin/python examples/survive_kill.py

docs: $(INSTALLED) ## Build the documentation into site/, and look at its pages in Chromium if there is one
	$(INSTALL) '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict
	$(VENV)/bin/python docs/theme/check.py site

migration: $(INSTALLED) ## Write a revision from what changed in schema.py: make migration m="what it does"
	@test -n "$$m" || { echo 'Say what the migration does: make migration m="what it does"'; exit 1; }
	PATH="$(VENV)/bin:$$PATH" python -m checkpoint_store.embedded \
		sh -c 'alembic upgrade head && alembic revision --autogenerate -m "$$m" && ruff format alembic/versions'

lock: $(ENVIRONMENT) ## Lock what pyproject.toml asks for in constraints.txt; ARGS=--upgrade takes the newest of everything
	$(VENV)/bin/python -m pip install --quiet 'uv>=0.7'
	UV_CUSTOM_COMPILE_COMMAND='make lock' $(VENV)/bin/uv pip compile --quiet --no-config --universal \
		--python-version 3.11 --all-extras --annotation-style line --output-file constraints.txt pyproject.toml $(ARGS)

wheel: $(INSTALLED) ## Build the sdist and the wheel into dist/, install each in an environment of its own, and try it
	$(INSTALL) '.[dev,release]'
	rm -rf dist
	$(VENV)/bin/python -m build
	$(VENV)/bin/python -m twine check --strict dist/*
	$(VENV)/bin/python tests/packaging/release.py dist/*

bench: $(INSTALLED) ## Measure against the stock saver, on one server, and draw the plots
	$(VENV)/bin/python -m benchmarks
	$(VENV)/bin/python -m benchmarks.plots

bench-quick: $(INSTALLED) ## The same in under two minutes, for a first impression
	$(VENV)/bin/python -m benchmarks --quick

# A target of its own for each Python, so that another one starts afresh and changed requirements only update.
$(INSTALLED): pyproject.toml constraints.txt | $(ENVIRONMENT)
	@echo 'Installing what is needed into $(VENV): this takes about a minute.'
	$(INSTALL) '.[dev]'
	@touch $@

$(ENVIRONMENT):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12'; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo '$(PYTHON) can make no environments; on Debian and Ubuntu: apt install python3-venv'; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
