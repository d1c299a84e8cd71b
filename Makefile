# The pinned environment. "make help" lists the targets.
# Needs Python 3.11 or newer, and make; everything else is installed into VENV from constraints.txt.
#
#   make install TORCH_INDEX=URL    takes torch from another package index (for instance PyTorch's CPU-only one,
#                                   which saves the CUDA download), and everything else as usual

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
WORKERS ?= 2
ORACLES ?= .venv-oracles
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
TORCH = $(shell grep '^torch==' constraints.txt)

export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install quickstart test lint types format docs oracles clean

help:
	@echo "make install      create $(VENV) with the pinned dependencies"
	@echo "make quickstart   a small study from start to end, on a CPU, without downloads: runs/quickstart/report.html"
	@echo "make test         lint, formatting, types and all tests (WORKERS=$(WORKERS))"
	@echo "make lint types   those checks alone"
	@echo "make format       rewrite the sources to the house style"
	@echo "make docs         the documentation as a site: build/site/index.html"
	@echo "make oracles      compare scores with pytorch-fid, torch-fidelity, torchmetrics and others, in $(ORACLES)"
	@echo "make clean        remove $(VENV) and caches; runs/ stays"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("isocost needs Python 3.11 or newer; this is %d.%d. Try: make install PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV): torch is large, this takes some minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --no-deps --index-url $(TORCH_INDEX) $(TORCH))
	@$(BIN)/python -m pip install --quiet -c constraints.txt hatchling editables
	@$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev,docs,imagenet,lora,serve]'
	@touch $@
	@echo "Installed. Next: make quickstart, or $(BIN)/isocost --help"

quickstart: $(STAMP)
	@$(BIN)/isocost quickstart

# One thread a worker: several workers with a thread a core each would only wait for one another.
test: lint types
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The libraries that our scores are compared with live in an environment of their own, on top of $(VENV).
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

oracles: $(STAMP)
	@$(BIN)/python scripts/oracles.py $(ORACLES)
	@OMP_NUM_THREADS=1 $(ORACLES)/bin/python -m pytest -q tests/oracles

clean:
	rm -rf $(VENV) $(ORACLES) dist build .pytest_cache .ruff_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
