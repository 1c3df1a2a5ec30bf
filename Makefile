# Needs make and a Python >= 3.11 with venv and pip; everything else goes into .venv.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?= -n 3 --dist loadscope
SOAK_CYCLES ?= 1000
SOAK_SECONDS ?= 600
BENCH_ARGS ?=
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint types imports unit soak bench sdk-tests clean

help:
	@echo 'make demo       kill -9 a real MCP server in mid-stream and check that nothing is lost'
	@echo 'make test       lint, types, import rules, tests'
	@echo 'make lint       ruff            make types      mypy and pyright, strict'
	@echo 'make soak       on each store, 1,000 kill -9 cycles with a ledger, and ten minutes of histories'
	@echo 'make bench      every benchmark make sdk-tests  the tests of the MCP SDK on our event store'
	@echo 'make clean      remove the virtual environment and caches'

$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Setting up $(VENV) with $$("$$python" -V), once."; \
			"$$python" -m venv --clear $(VENV); \
			$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
			touch $@; \
			exit 0; \
		fi; \
	done; \
	echo 'Holdfast needs Python 3.11 or newer with venv and pip (on Debian: python3-venv).' >&2; \
	echo 'None was found on the PATH; name one: make PYTHON=/path/to/python3 ...' >&2; \
	exit 1

demo: $(STAMP)
	@$(BIN)/holdfast demo

test: lint types imports unit

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy
	@$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(STAMP)
	@$(BIN)/lint-imports

unit: $(STAMP)
	@$(BIN)/pytest $(PYTEST_ARGS)

soak: $(STAMP)
	HOLDFAST_SOAK_CYCLES=$(SOAK_CYCLES) HOLDFAST_SOAK_SECONDS=$(SOAK_SECONDS) \
		$(BIN)/pytest tests/crash tests/histories -o faulthandler_timeout=0 $(PYTEST_ARGS)

bench: $(STAMP)
	@$(BIN)/python -m bench all $(BENCH_ARGS)

sdk-tests: $(STAMP)
	@$(BIN)/python tests/integrations/sdk_suite.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
