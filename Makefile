PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test test-slow test-faults clean

train: $(VENV)/.train  ## PPO on HalfCheetah-v5, one million steps; curve, table and video in runs/first/report.html
	@rm -rf runs/first
	$(BIN)/ctrlrl train algo=ppo env=halfcheetah seed=0 run.dir=runs/first
	@echo "open runs/first/report.html"

test: $(VENV)/.test  ## the whole default suite, ruff and mypy included, on up to four cores
	$(BIN)/python -m pytest -n auto --maxprocesses 4

test-slow: $(VENV)/.test  ## the minutes-long checks: learning on robots, peers
	$(BIN)/python -m pytest -m slow

test-faults: $(VENV)/.test  ## a hundred kills of training and of saving
	$(BIN)/python -m pytest -m faults tests/faults

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14), "ctrlrl needs Python 3.11 to 3.13; set PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)

# torch first: asked for alone and pinned, pip takes the build that the constraints name and nothing newer
$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) --editable '.[mujoco,report]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch
	$(PIP) --editable '.[all,dev]'
	@touch $@ $(VENV)/.train
