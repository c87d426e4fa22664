# Everything a developer runs. Each target first brings .venv up to what it needs (scripts/set_up.sh): nothing has to be
# installed by hand, a second run is quiet, and an interrupted set-up is repaired by running the same command again.
#
#   PYTHON=python3.12     the interpreter that .venv is made with (default: python3; 3.11 or newer)
#   TORCH_INDEX=URL       where torch is taken from: the index that pytorch.org names for your machine (CPU, CUDA, ROCm)
#   DEMO_ARGS=--quick     given to `radistill demo`
#   PYTEST_ARGS="-k x"    given to pytest by `test` and `slow`

.PHONY: help demo test slow test-servers lint types bench docs env clean
.NOTPARALLEL:
.DEFAULT_GOAL := help

BIN := .venv/bin
WORKERS ?= 4

# One thread per process: two busy processes with two threads each are several times slower than with one.
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(BIN)/python -m pytest

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@sed -n 's/^#   \([A-Z_]*=.*\)/  \1/p' Makefile

demo: ## the whole pipeline on this machine, from nothing; installs the runtime only
	@scripts/set_up.sh runtime
	$(BIN)/radistill demo $(DEMO_ARGS)

test: ## the fast test suite
	@scripts/set_up.sh test
	$(PYTEST) -m "not slow and not servers" -n auto --maxprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

slow: ## the tests that take more than a few seconds
	@scripts/set_up.sh env
	$(PYTEST) -m slow $(PYTEST_ARGS)

test-servers: ## real engines, in environments of their own: vLLM, `transformers serve`, Ray (some 5 GB)
	@scripts/set_up.sh test
	@scripts/set_up_servers.sh
	$(PYTEST) -m servers tests/servers $(PYTEST_ARGS)

lint: ## ruff (lint and format check) and the size limits
	@scripts/set_up.sh tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/check_sizes.py

types: ## mypy --strict
	@scripts/set_up.sh tools
	$(BIN)/mypy --strict

bench: ## every script in benchmarks/, one after the other
	@ls benchmarks/[a-z]*.py >/dev/null 2>&1 || { echo "benchmarks/ holds no script: nothing was measured" >&2; exit 1; }
	@scripts/set_up.sh env
	@set -e; for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

docs: ## the documentation site, into site/
	@scripts/set_up.sh env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

env: ## .venv with everything for development: tests, linters, types, docs, build, trl, lm-eval
	@scripts/set_up.sh env

clean: ## removes .venv, the site and caches; never a run
	rm -rf .venv site dist build .pytest_cache .mypy_cache .ruff_cache
