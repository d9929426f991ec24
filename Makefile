# `make demo` and `make test` need Python 3.10 - 3.13 and make, nothing else.
PYTHON ?= python3
VENV := .venv
# What pip is to install: the tested versions. `make newest` asks for the newest that pyproject.toml allows.
VERSIONS := --constraint constraints.txt
BIN := $(VENV)/bin/python
# The stamp is named after the Python that was asked for: another PYTHON= makes another environment.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
INSTALLED := $(VENV)/installed-$(VERSION)
PIP := $(BIN) -m pip --disable-pip-version-check --no-input
# One PyTorch thread per test process: more of them only get in each other's way, and where a test takes two, they sleep
# while they wait. There is a process more than there are cores: some tests wait for the disk, a clock or other processes.
PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() + 1)' 2>/dev/null)
TESTS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN) -m pytest --numprocesses $(PROCESSES) --maxprocesses 4 \
	--dist worksteal

.PHONY: help demo test newest lint format types wheel examples docs install clean python

help:
	@echo "make demo      train PPOX on CartPole-v1, evaluate it, say where everything lies"
	@echo "make test      run the whole test suite"
	@echo "make newest    run it with the newest versions that pyproject.toml allows, in .venv-newest"
	@echo "make lint types wheel examples    what CI checks besides;  make format  repairs what it can"
	@echo "make docs      build the pages as a site, build/site/index.html (Python 3.11 or newer)"
	@echo "make clean     remove the environment and everything built"
	@echo "The first command installs into $(VENV). Another Python: make demo PYTHON=python3.12"

install: $(INSTALLED)

# The stamp is touched last and removed first: an interrupted installation never counts as a finished one.
$(INSTALLED): pyproject.toml constraints.txt | python
	@test -f $@ || { echo "Creating $(VENV) with Python $(VERSION)"; $(PYTHON) -m venv --clear $(VENV); }
	@rm -f $(VENV)/installed-*
	@echo "Installing into $(VENV) ($(VERSIONS)); this takes a few minutes once ..."
	@$(PIP) install --quiet --upgrade $(VERSIONS) pip hatchling editables
	@$(PIP) install --quiet $(VERSIONS) --no-build-isolation --editable ".[dev]"
	@touch $@

python:
	@$(PYTHON) -c '' 2>/dev/null || { \
	  echo "No '$(PYTHON)' here. Install Python 3.10 - 3.13, or name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "'$(PYTHON)' is Python $(VERSION); 3.10 - 3.13 is needed. Name one: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot create environments: its ensurepip or venv module is missing."; \
	  echo "On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }

demo: install
	@$(BIN) examples/demo.py

test: install
	$(TESTS)

# What is newest is asked anew each time: the environment is made afresh.
newest:
	@rm -f .venv-newest/installed-*
	$(MAKE) test VENV=.venv-newest VERSIONS="--upgrade --upgrade-strategy eager"

lint: install
	$(BIN) -m ruff check .
	$(BIN) -m ruff format --check .

format: install
	$(BIN) -m ruff check --fix .
	$(BIN) -m ruff format .

types: install
	$(BIN) -m mypy

# The wheel, with no extra, in an environment of its own outside the checkout.
wheel: install
	rm -rf dist
	$(BIN) -m build --wheel --no-isolation
	$(BIN) .ci/check_wheel.py dist

examples: install
	$(BIN) .ci/run_examples.py

# Warnings are errors: a link or a name that leads nowhere, a docstring that cannot be read. Nothing is downloaded.
docs: install
	@$(BIN) -c 'import sphinx' 2>/dev/null || { \
	  echo "make docs needs Python 3.11 or newer, and $(VENV) has $(VERSION): make docs PYTHON=python3.11"; exit 1; }
	$(BIN) -m sphinx --quiet --fail-on-warning --keep-going --fresh-env docs build/site
	@echo "build/site/index.html"

clean:
	rm -rf $(VENV) .venv-newest dist build .pytest_cache .mypy_cache .ruff_cache
