# Every target works on a fresh machine with Python 3.11 (or newer) and make; the first one builds .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo demo-real test test-slow lint bench dashboard screenshots clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/ftlab demo

demo-real: $(READY)
	$(BIN)/ftlab demo --real

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# In the order of the folders: the long tests of a browser and of trainings are few a file, and would all be left for the end.
test: lint
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-slow: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m slow

bench: $(READY)
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/dashboard.py
	$(BIN)/python benchmarks/analytics.py
	$(BIN)/python benchmarks/diagnosis.py
	$(BIN)/python benchmarks/chat/run.py --model scripted

dashboard: $(READY)
	$(BIN)/ftlab dashboard

screenshots: $(READY)
	$(BIN)/python docs/screenshots.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache demo outputs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
