# Two commands do everything on a fresh machine: `make demo` and `make test`. Both create .venv themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
BUDGET ?= 540
DEVICE ?= cuda
OUT ?= .gpu/$(if $(SMOKE),rehearsal-)out
DATA ?= $(TIMM_STN_DATA)
OLDEST_VENV ?= .venv-oldest
DIST_VENV ?= .venv-dist
OLDEST_PYTHON ?= $(shell python3.10 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.PHONY: demo test test-all test-oldest timm-tests lint bench gpu-pack gpu dist clean

demo: $(VENV)/.installed
	$(BIN)/timm-stn demo --output demo.png

test: $(VENV)/.tested lint
	$(PYTEST) -n $(JOBS) -m "not slow"

test-all: $(VENV)/.tested lint
	$(PYTEST) -n $(JOBS)

test-oldest: $(OLDEST_VENV)/.tested
	$(OLDEST_VENV)/bin/python -c 'import sys, timm, torch; print("Python", sys.version.split()[0], "timm", timm.__version__, "torch", torch.__version__)'
	OMP_NUM_THREADS=1 $(OLDEST_VENV)/bin/python -m pytest -q -n $(JOBS) -m "not slow"

timm-tests: $(VENV)/.tested
	$(BIN)/python -m pip install -q expecttest
	OMP_NUM_THREADS=1 $(BIN)/python scripts/check/timm_tests.py

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/check/benchmark.py --check

# for a machine with a GPU, which may be bare and offline: what it needs, of which PARTS="..." makes some
gpu-pack: $(VENV)/.installed
	$(BIN)/python scripts/reproduce/gpu.py pack $(if $(DATA),--data "$(DATA)") $(if $(WEIGHTS),--weights "$(WEIGHTS)") \
		$(if $(WEIGHTS2),--weights2 "$(WEIGHTS2)") $(if $(TIMM_SCRIPTS),--scripts "$(TIMM_SCRIPTS)") $(if $(PARTS),--parts $(PARTS))

# and there all that waits for it; SECTIONS=queue, ONLY='card-*'; DEVICE=cpu SMOKE=1 rehearses it
gpu:
	$(PYTHON) scripts/reproduce/gpu.py run --budget $(BUDGET) --output "$(OUT)" --device $(DEVICE) $(if $(SMOKE),--smoke) \
		$(if $(SECTIONS),--sections $(SECTIONS)) $(if $(ONLY),--only '$(ONLY)')

# wheel and sdist, checked; then the wheel, installed in an environment of its own, runs the demo
dist: $(VENV)/.installed
	rm -rf dist
	$(BIN)/python -m pip install -q build twine
	$(BIN)/python -m build -q
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python scripts/release/check_dist.py dist
	rm -rf $(DIST_VENV) && $(PYTHON) -m venv $(DIST_VENV)
	$(DIST_VENV)/bin/python -m pip install -q dist/*.whl
	cd $(DIST_VENV) && bin/timm-stn demo --output demo.png

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed: make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install -q -e ".[test]"
	touch $@

# Python 3.10 where there is one, with the oldest versions that pyproject.toml accepts
$(OLDEST_VENV)/.tested: pyproject.toml tests/oldest.txt
	test -x $(OLDEST_VENV)/bin/python || $(OLDEST_PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install -q -c tests/oldest.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST_VENV) $(DIST_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.png
