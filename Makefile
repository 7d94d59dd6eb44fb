# Every verb works on a fresh machine with Python 3.11 or newer; the first one installs.
PYTHON ?= python3
VENV ?= .venv
# Another package index for torch, e.g. make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := $(VENV)/bin
WAV ?= question.wav
MODEL ?= build/omni-random

.PHONY: help install format lint types test test-gpu check answer bench clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/\t/' | expand -t 14

install: $(VENV)/.installed  ## create the environment and install everything, pinned

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  --constraint constraints.txt --editable '.[dev]'
	@touch $@

format: install  ## format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: install  ## formatting and lint, changing nothing
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: install  ## strict types
	$(BIN)/mypy

test: install  ## all tests that this machine can run
	$(BIN)/python -m pytest

test-gpu: install  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

check: lint types test  ## what a change must pass

answer: install $(MODEL)  ## answer a spoken question: make answer WAV=question.wav MODEL=folder-or-hub-name
	$(BIN)/python -m model $(WAV) --model $(MODEL)

build/omni-random: | install  # random weights: noise, but every step as in a real checkpoint
	$(BIN)/python -m recipes.random_checkpoint $@

bench: install  ## time and memory of every part against transformers
	$(BIN)/python -m benchmarks.steps

clean:  ## remove what make created
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache *.egg-info
