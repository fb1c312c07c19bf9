# One command each: make demo, make test, make lint, make bench.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint format bench clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	rm -f omniglot.ranking.h5
	$(BIN)/blurrerank run examples/omniglot.h5 --topn 50 --sigma 0.1

test: install lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	mkdir -p build
	$(BIN)/blurrerank synth build/market1501.h5 --preset market1501 --force
	$(BIN)/blurrerank bench build/market1501.h5 --methods lbr,k-reciprocal --reference

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
