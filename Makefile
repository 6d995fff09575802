# make quickstart    environment, install, index the embedded corpus, measure it beside BM25
# make test          environment, install, all tests
# make check         what CI runs: lint, types, tests
# make bench-decode  the search beside Hugging Face's, and what else it costs; needs TORCH_PYTHON
# make bench-train   the training step beside Hugging Face's; needs TORCH_PYTHON
# make bench-gpu     both on a GPU, where JAX and torch find one; needs TORCH_PYTHON
# make bench-input   the input pipeline beside what pods consume
# make pods          the tables of docs/pods.md: compiles for TPUs without one; hours
# make test-aot      the tests that compile for TPUs without one
.PHONY: quickstart test test-slow test-aot lint types check torch bench-decode bench-train bench-gpu bench-input pods aot install clean

VENV ?= .venv
# the newest Python that the pinned versions were tested with comes first
PYTHON ?= $(shell for p in python3.12 python3.13 python3; do $$p --version >/dev/null 2>&1 && echo $$p && break; done)
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?= -n 2 --dist loadfile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13) and "gr_jax needs Python 3.12 or 3.13: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

quickstart: $(STAMP)
	$(BIN)/gr-jax quickstart
	$(BIN)/gr-jax search "how do I join two paths"

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources --source-path=SCRIPTDIR launch/*.sh launch/*/*.sh launch/*.sbatch

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python --warnings

check: lint types test

# a Python that has torch and transformers; benchmarks/requirements.txt has the versions measured
TORCH_PYTHON ?= $(GR_JAX_TORCH_PYTHON)
BENCH_OUTPUT ?= build/$@.jsonl

torch: $(STAMP)
	@test -n "$(TORCH_PYTHON)" || { echo "give it a Python: make bench-train TORCH_PYTHON=..."; exit 2; }
	mkdir -p build

bench-decode: torch
	$(BIN)/python -m benchmarks.decode --torch_python $(TORCH_PYTHON) --output $(BENCH_OUTPUT)
	$(BIN)/python -m benchmarks.decode --torch_python $(TORCH_PYTHON) --precision bfloat16 --output $(BENCH_OUTPUT)
	$(BIN)/python -m benchmarks.decode_rows --output $(BENCH_OUTPUT)

bench-train: torch
	$(BIN)/python -m benchmarks.train --torch_python $(TORCH_PYTHON) --output $(BENCH_OUTPUT)
	$(BIN)/python -m benchmarks.train --torch_python $(TORCH_PYTHON) --precision bfloat16 --output $(BENCH_OUTPUT)

# on a machine with a GPU: both sides on it, bfloat16
bench-gpu: export XLA_PYTHON_CLIENT_PREALLOCATE = false
bench-gpu: torch
	$(BIN)/python -m benchmarks.decode --torch_python $(TORCH_PYTHON) --output $(BENCH_OUTPUT) \
		--model t5_1_1_base --docids 110000 --cells 1x10 16x10 256x10 --repeats 51 \
		--precision bfloat16 --hf_dtype bfloat16
	$(BIN)/python -m benchmarks.train --torch_python $(TORCH_PYTHON) --output $(BENCH_OUTPUT) \
		--rows text docid packed large --precision bfloat16 --repeats 21

bench-input: $(STAMP)
	mkdir -p build
	$(BIN)/python -m benchmarks.input --output $(BENCH_OUTPUT)

# the TPU's compiler, 650 MB
aot: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[aot]'

pods: aot
	$(BIN)/python -m benchmarks.pods

test-aot: aot
	$(BIN)/python -m pytest -m aot

clean:
	rm -rf $(VENV) model build dist
