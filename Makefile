# Two commands do everything on a fresh machine: `make demo` and `make test`. Both create .venv themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.PHONY: demo test test-all timm-tests lint bench clean

demo: $(VENV)/.installed
	$(BIN)/timm-stn demo --output demo.png

test: $(VENV)/.tested lint
	$(PYTEST) -n 2 -m "not slow"

test-all: $(VENV)/.tested lint
	$(PYTEST) -n 2

timm-tests: $(VENV)/.tested
	$(BIN)/python -m pip install -q expecttest
	OMP_NUM_THREADS=1 $(BIN)/python scripts/timm_tests.py

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/benchmark.py --check

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed: make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.png
