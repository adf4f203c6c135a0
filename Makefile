# Every target sets up what it needs: nothing is expected but Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= demo-run
# Set-up leaves byte-compiling to the first import, which has to keep it: torch and transformers alone take 20 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow check bench clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: $(READY)
	$(BIN)/deploykit demo --out $(OUT)

# Two processes of one thread each: models this small wait longer for a second thread than it helps them.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not gpu and not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock --editable '.[peers]'
	$(BIN)/python -m benchmarks.peers --help

clean:
	rm -rf $(VENV) demo-run dist
