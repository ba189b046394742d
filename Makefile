# make run | test | lint | bench | e2e: each sets up what it needs. Python >= 3.10.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
K ?=
# Tests at a time: they wait more than they calculate.
JOBS ?= 3

.PHONY: run test test-gpu test-matrix lint bench e2e system clean

$(VENV)/library.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[all]'
	touch $@

$(VENV)/tests.stamp: $(VENV)/library.stamp tests/requirements.txt tests/requirements-service.txt
	$(PIP) -r tests/requirements-service.txt
	touch $@

# The reference service on this machine; without a GPU it says that the GPU series are simulated.
run: $(VENV)/library.stamp
	PYTHON=$(abspath $(BIN)/python) examples/bert_intent/run.sh

# Debian's packages that some tests use (chromium, hey, a C compiler); elsewhere the tests say what is missing.
system:
	sh tests/system-packages.sh

test: system $(VENV)/tests.stamp
	$(BIN)/python -m pytest -m "not gpu" -n $(JOBS) --dist loadscope
	$(BIN)/python tests/matrix.py --skip $$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])') \
	    -- -n $(JOBS) --dist loadscope

lint: $(VENV)/tests.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: system $(VENV)/tests.stamp
	$(BIN)/python -m benchmarks

# K=walk runs one test by name. Needs KUBECONFIG, or the cluster beside this repository; says how to get one.
# Two tests at a time (tests/e2e/conftest.py says which).
e2e: system $(VENV)/tests.stamp
	GPUSCALE_E2E=1 $(BIN)/python -m pytest tests/e2e -m e2e -n 2 -vv -rs --durations=20 $(if $(K),-k '$(K)')

# Needs an idle NVIDIA GPU; without one it says so. GPUSCALE_WRITE_MEASURED=1 writes the table to docs/measured.md.
test-gpu: $(VENV)/tests.stamp
	$(BIN)/python -m pytest tests/gpu_hardware -m gpu -s -rs

clean:
	rm -rf $(VENV) .venv-3.* build dist
