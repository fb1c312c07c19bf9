# One command each: make install, make demo, make test, make lint, make docs, make recipes, make bench,
# make bench-online, make faults, make fuzz, make numbers.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install dev demo test lint format docs recipes bench bench-online tune-online faults fuzz numbers clean

# What users need.
install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	@echo "Installing blurrerank into $(VENV). The first time takes minutes: torch is large."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[report,plot]'
	@touch $@

# What the targets below need beside that: linters, test tools, the programs that files are compared with.
dev: $(VENV)/dev-installed

$(VENV)/dev-installed: $(VENV)/installed
	@echo "Adding the tools for development to $(VENV)."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	rm -f omniglot.lbr.ranking.h5
	$(BIN)/blurrerank run examples/omniglot.h5 --topn 50 --sigma 0.1

# Two processes, each file's tests in one of them; more threads than cores would wait for each other, and where tests
# ask for two threads, these sleep while they wait.
test: dev lint
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages that come from the code, and the site, in build/site.
docs: dev
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site

# The recipes, run with the packages that they are for, about 700 MB. Four of these require versions that exclude each
# other or that Python 3.11 does not have (NumPy before 2, PyTorch 1.13, faiss-gpu): hence --no-deps.
recipes: dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[recipes]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps fastreid open-metric-learning torchreid wildlife-tools
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -ra tests/test_recipes.py

bench: install
	mkdir -p build
	$(BIN)/blurrerank synth build/market1501.h5 --preset market1501 --force
	$(BIN)/blurrerank bench build/market1501.h5 --methods lbr,k-reciprocal --reference

# Single probes against an index: exactly at 20 thousand gallery items, approximately at a million, where looking
# at all items stands beside it; then a thousand items are added to the million, and a thousand taken away. The
# indexes are kept in build.
ONLINE := --probes 1000 --cams 16 --junk 0 --dim 256 --dtype float16

bench-online: SHELL := bash
bench-online: dev
	mkdir -p build
	test -e build/online-20k.h5 || $(BIN)/blurrerank synth build/online-20k.h5 $(ONLINE) --gallery 20000 --ids 2000 --distractors 1000
	test -e build/online-1m.h5 || $(BIN)/blurrerank synth build/online-1m.h5 $(ONLINE) --gallery 1000000 --ids 100000 --distractors 50000
	test -e build/online-20k.index.h5 || $(BIN)/blurrerank index build/online-20k.h5 -o build/online-20k.index.h5
	$(BIN)/blurrerank bench build/online-20k.h5 --index build/online-20k.index.h5
	test -e build/online-more.h5 || $(BIN)/blurrerank synth build/online-more.h5 $(ONLINE) --gallery 1000 --ids 100 --distractors 50 --seed 1
	for method in k-reciprocal-online center+camera-graph; do \
	    index=build/online-1m.$$method.index.h5; \
	    test -e $$index || time $(BIN)/blurrerank index build/online-1m.h5 -o $$index --method $$method --ann hnsw || exit; \
	    $(BIN)/blurrerank bench build/online-1m.h5 --index $$index --methods $$method --effort 256,512,1024 --repeats 1 || exit; \
	    cp $$index build/online-changed.index.h5 || exit; \
	    time $(BIN)/blurrerank index build/online-more.h5 -o build/online-changed.index.h5 --append || exit; \
	    time $(BIN)/blurrerank index -o build/online-changed.index.h5 --remove 0-999 || exit; \
	    rm build/online-changed.index.h5*; \
	done

# Where the defaults of k-reciprocal-online come from, on features of one's own: make tune-online FEATS=feats.h5
FEATS := examples/omniglot.h5

tune-online: dev
	$(BIN)/python benchmarks/tune_online.py $(FEATS)

# What CI does with few cases, with many: docs/reliability.md tells what came of it.
CASES := 5000
SEED := 0

faults: dev
	$(BIN)/python tests/faults.py kills --cases 240 --seed $(SEED)
	$(BIN)/python tests/faults.py full-disk --cases 240 --seed $(SEED)
	$(BIN)/python tests/faults.py meetings --cases 60 --seed $(SEED)

fuzz: dev
	$(BIN)/python tests/fuzzing.py --cases $(CASES) --seed $(SEED)

numbers: dev
	CASES=$(CASES) SEED=$(SEED) $(BIN)/python -m pytest tests/test_numbers.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
