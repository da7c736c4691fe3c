# Each target works on a fresh Linux machine that has Python >= 3.11 and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test campaign bench docs gpu clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] \
	  + "; name another one: make PYTHON=python3.12 $(or $(MAKECMDGOALS),setup)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,plots,dev,docs]"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[reference]" \
	  || echo "NOTE: pydensecrf2 did not build here; its live comparisons are skipped, the goldens still run."
	@touch $@

demo: setup
	$(BIN)/deeplab demo --out demo

# Hundreds of short processes: each would compile all sources anew.
test: export PYTHONDONTWRITEBYTECODE =
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal tests/

campaign: setup
	PYTHONPATH=tests/support:. $(BIN)/python -m campaign --out bench/records/campaign.json

bench: setup
	$(BIN)/python bench/compare.py

# Open site/index.html; nothing is loaded from elsewhere.
docs: setup
	$(BIN)/python -m mkdocs build --strict

# Two parts of at most five minutes; the same again goes on where time was up.
gpu: setup
	$(BIN)/python bench/gpu.py suite --out out/gpu; suite=$$?; \
	$(BIN)/python bench/gpu.py compare --out out/gpu && exit $$suite

clean:
	rm -rf $(VENV) build dist *.egg-info demo out site
