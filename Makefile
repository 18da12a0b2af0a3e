# Every target makes and reuses .venv by itself. pip reads its own environment variables, so a machine
# without a GPU can name the index of PyTorch's CPU wheels in PIP_EXTRA_INDEX_URL.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint format clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/installed ## train a small model with and without superposition, and compare (about ten minutes)
	$(BIN)/tst demo $(ARGS)

test: $(VENV)/installed ## run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q $(ARGS)

# Objective, schedule, stream, configuration, statistics and reports: files that train nothing.
FAST := losses test_bags.py test_schedule.py data/test_stream.py test_streams.py training/test_config.py \
  training/test_optim.py study/test_intervals.py study/test_significance.py study/test_speedup.py \
  study/test_report.py study/test_report_budgets.py study/test_report_figure.py \
  study/test_report_page.py study/test_report_sweep.py study/test_report_verdict.py

test-fast: $(VENV)/installed ## run the tests that train nothing (under a minute)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m 'not slow' $(ARGS) $(addprefix tests/,$(FAST))

lint: $(VENV)/installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed ## let ruff lay the code out
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and every cache (runs/ stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
