# `make demo` and `make test` need Python 3.10-3.13 and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install demo test lint format types wheel examples clean

help:
	@echo "make demo      train PPOX on CartPole, evaluate it, say where everything lies"
	@echo "make test      the whole test suite"
	@echo "make lint types wheel examples    what CI runs besides"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 13), sys.version' \
	  || { echo "Python 3.10 - 3.13 is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing the tested versions (constraints.txt) into $(VENV) ..."
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: install
	@$(BIN)/python examples/demo.py

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install
	$(BIN)/mypy

# The wheel, in an environment of its own, outside the checkout, with no extra.
wheel: install
	rm -rf dist && $(BIN)/python -m build --quiet --wheel
	$(BIN)/python .ci/check_wheel.py dist

examples: install
	$(BIN)/python .ci/run_examples.py

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
