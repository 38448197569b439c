PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -W ignore::DeprecationWarning
RUNTIME := $(VENV)/.installed
DEVELOPMENT := $(VENV)/.installed-dev
QUICKSTART := runs/quickstart
REASONING := runs/reasoning
SERVING := runs/serving_model
SERVING_FLAGS := --sequence_length=384 --batch_size=6 --train_steps=900
PEERS := .venv-peers
DOCS := .venv-docs
# For pip when it installs the peers, for example the index of PyTorch's small CPU builds:
# make bench PEERS_PIP="--extra-index-url https://download.pytorch.org/whl/cpu"
PEERS_PIP ?=
BENCH := --workdir=runs/bench --peers_python=$(PEERS)/bin/python --results=benchmarks/results
# BENCH_FLAGS="--quick --results=runs/bench/results --document=runs/bench/benchmarks.md": a smoke run.
BENCH_FLAGS ?=

.PHONY: quickstart reasoning compare bench serving_program serving_bench docs test test-all lint format bazel clean

# A stamp is written last: an installation that was cut off is made again.
$(RUNTIME): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tfdeq needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

$(DEVELOPMENT): requirements-dev.txt $(RUNTIME)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

# Trains, draws, exports and verifies; run again, it goes on where it stopped.
quickstart: $(RUNTIME)
	$(RUN) -m trainers.language_model --dataset=python_stdlib --workdir=$(QUICKSTART) --baseline
	$(RUN) -m export.saved_model --workdir=$(QUICKSTART) --output=$(QUICKSTART)/export --version=1 --skip_existing
	$(RUN) -m export.verify --workdir=$(QUICKSTART) --model=$(QUICKSTART)/export/1
	$(RUN) -m trainers.report $(QUICKSTART)

# Prefix sums, learned on 32 bits, solved on 512 and 2,048; exported and verified: about five minutes.
reasoning: $(RUNTIME)
	$(RUN) -m trainers.reasoning --task=prefix_sums --workdir=$(REASONING) --test_sizes=512,2048 --test_puzzles=200 --test_budget=128
	$(RUN) -m export.saved_model --workdir=$(REASONING) --output=$(REASONING)/export --version=1 --max_steps_limit=4000 --skip_existing
	$(RUN) -m export.verify --workdir=$(REASONING) --model=$(REASONING)/export/1
	$(RUN) -m trainers.report $(REASONING)

# The equilibrium against explicit depth, three seeds each, after a search of rates: about four hours on two cores.
compare: $(RUNTIME)
	$(RUN) -m benchmarks.training.compare --dataset=python_stdlib --workdir=runs/compare --document=docs/compare.md

# The peers' frameworks, in an environment of their own.
$(PEERS)/.installed: benchmarks/engine/peers/requirements.txt
	$(PEERS)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet $(PEERS_PIP) -r benchmarks/engine/peers/requirements.txt
	touch $@

# Speed and memory against TorchDEQ, JAXopt and Optimistix; wants a quiet machine.
bench: $(RUNTIME) $(PEERS)/.installed
	$(RUN) -m benchmarks.engine.memory $(BENCH) $(BENCH_FLAGS)
	$(RUN) -m benchmarks.engine.speed $(BENCH) --document=docs/benchmarks.md $(BENCH_FLAGS)

# A C++ program that answers and times a version as a server does, without Python.
serving_program: $(RUNTIME)
	$(RUN) -m export.serving_program --program=build/serving_program

# What serving costs, in the C++ runtime: trains a model for it first; wants a quiet machine.
serving_bench: $(RUNTIME)
	$(RUN) -m trainers.language_model --dataset=python_stdlib --workdir=$(SERVING) $(SERVING_FLAGS)
	$(RUN) -m benchmarks.serving.costs --workdir=$(SERVING) --results=benchmarks/results/serving.json --document=docs/serving_benchmarks.md

# The documentation site, in site/; its tools need no TensorFlow, so they have an environment of their own.
$(DOCS)/.installed: requirements-docs.txt
	$(DOCS)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -r requirements-docs.txt
	touch $@

# Fails for a broken link or anchor, a page outside the navigation, or a docstring that cannot be read.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict
	@echo "The site is in site/; open site/index.html."

test: $(DEVELOPMENT)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" --durations=60

test-all: $(DEVELOPMENT)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEVELOPMENT)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Builds and tests every target of the BUILD files, where Bazel is installed.
bazel: $(DEVELOPMENT)
	PATH="$(CURDIR)/$(BIN):$$PATH" bazel test //...

clean:
	rm -rf $(VENV) $(PEERS) $(DOCS) site build *.egg-info
