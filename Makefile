# Every target explains itself: `make` or `make help`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
COMPOSE ?= docker compose
PROMTOOL ?= promtool
TORCH  ?= torch==2.13.0
.DEFAULT_GOAL := help
.PHONY: help install demo demo-nightly burst test up down check lint format types imports bench bench-batches chaos test-compose test-torch test-alerts clean

help:  ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	@$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt --group dev -e '.[worker-cpu,data,local,demo,simulate]'
	@touch $@

install: $(VENV)/.installed  ## Make .venv and install Batchline with everything that tests and demo need

demo: install  ## The whole system on this machine: real models, real rows, results checked; stops by itself
	@$(BIN)/python examples/demo.py

demo-nightly: install  ## A schedule scores a Postgres table into a table of scores; checked; stops by itself
	@$(BIN)/python examples/churn.py

burst: install  ## 20,000 jobs out of idleness: workers come and go; checked, drawn into docs/; stops by itself
	@$(BIN)/python examples/burst.py docs/autoscaler-burst.png

test: install  ## Every test but chaos, in three processes (they wait a good deal); starts and stops its own Postgres and Valkey
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 25

test-torch: install  ## PyTorch models; installs PyTorch into .venv as pip is set up (PIP_EXTRA_INDEX_URL for the small CPU build)
	@$(BIN)/python -m pip install -q --disable-pip-version-check '$(TORCH)'
	@$(BIN)/python -m pytest tests/pytorch --durations 5

up: install  ## Start the system and leave it running (API :8000, Flower :5555)
	@$(BIN)/batchline up

down: install  ## Stop what `make up` started
	@$(BIN)/batchline down

lint: install  ## ruff, every rule; exceptions stand with their reason in pyproject.toml
	@$(BIN)/ruff check .

format: install  ## Is the code formatted? (`ruff format .` mends it)
	@$(BIN)/ruff format --check .

types: install  ## pyright, strict
	@$(BIN)/pyright --pythonpath $(BIN)/python

imports: install  ## import-linter: who may import whom
	@$(BIN)/lint-imports

check: lint format types imports test  ## All that CI runs

bench: install  ## Side-by-side benchmarks: interleaved rounds, medians, ratios
	@$(BIN)/python -m benchmarks

bench-batches: install  ## The same for batches: files, tables, Ray Data in an environment of its own
	@$(BIN)/python -m benchmarks batches

chaos: install  ## Fault injection, the long form
	@$(BIN)/python -m pytest tests/chaos -s

test-compose: install  ## docker-compose.yml for real: up, submit, result, down -v (COMPOSE=...)
	@COMPOSE='$(COMPOSE)' tests/compose/run

test-alerts:  ## Prometheus' rules by promtool: what fires on which night, and that a quiet one wakes nobody (PROMTOOL=...)
	@command -v $(PROMTOOL) >/dev/null || { echo "test-alerts: there is no $(PROMTOOL); install Debian's package prometheus (or name it: PROMTOOL=...)"; exit 2; }
	@$(PROMTOOL) check config deploy/prometheus/prometheus.yml
	@$(PROMTOOL) test rules deploy/prometheus/tests/*.yml

clean:  ## Remove .venv and caches (never .batchline, which holds data)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
