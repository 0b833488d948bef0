# Needs python3 (>= 3.11, with venv) and make; everything else is installed into .venv/.
.DEFAULT_GOAL := help
PYTHON ?= python3
PARAMS ?= params/quick.yaml
BIN := .venv/bin
export PYTHONNOUSERSITE := 1

.PHONY: help env study test reproduce faults cluster-test bench load lab clean lock

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

env: .venv/.ready ## .venv/ from requirements.lock, nothing else

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or later is needed, $(PYTHON) is {v[0]}.{v[1]}; name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

study: env ## runs, notebooks, reports of PARAMS=params/quick.yaml
	@$(BIN)/ltkd run $(PARAMS)

test: env ## lint, format, types, all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

reproduce: PARAMS := params/cifar100_lt_quick.yaml
reproduce: env ## one row of PARAMS' table from nothing, and whether it falls where stated: ROW=ltkd
	@$(BIN)/ltkd reproduce $(PARAMS) $(or $(ROW),$(error name the row: make reproduce ROW=ltkd)) $(ARGS)

cluster-test: env ## a real SLURM of two nodes here, jobs killed, records compared (never in test)
	@$(BIN)/python tests/cluster.py

faults: env ## kill -9 at 200 random moments, results compared (ARGS="--kills 20 --seed 1")
	@$(BIN)/python tests/faults.py $(ARGS)

bench: env ## speed as ratios measured side by side (ARGS="--device cuda")
	@$(BIN)/python tests/bench.py $(ARGS)

load: env ## what the store costs a run, for 10 to 2,000 runs (ARGS="--real 100")
	@$(BIN)/python tests/load.py $(ARGS)

lab: env ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

clean: ## remove the environment, caches and what was made from params/quick.yaml
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache outputs/quick
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

lock: env ## requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --extra dev --extra workflow --python-version 3.11 pyproject.toml -o requirements.lock
