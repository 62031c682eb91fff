# make demo: generated images out of a real Triton, in demo/
# make test: lint, types and every test that needs no GPU
# make coverage: the same tests; lines and branches of the rooms that none of them runs
# make benchmark: the table in docs/performance.md
# Each sets up .venv/ by itself; the second time they install nothing.

PYTHON ?= python3
BIN := .venv/bin
CLIENTS := tests/contract tests/clients tests/systems tests/synthesis tests/profiling tests/cli tests/training
STAMP := .venv/.installed
EXTRAS := train,export,serve,cpu,synthesis,ray,profile,dev

.PHONY: demo test test-clients test-others check lint types format coverage benchmark clean

demo: $(STAMP)
	$(BIN)/python demo.py

# Two runs beside each other, each with servers and exports of its own, and then the types: a single
# one would leave a core idle for half of the time.
test: lint
	$(MAKE) --no-print-directory --jobs=2 test-clients test-others types

check: lint types

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

test-clients: $(STAMP)
	$(BIN)/pytest $(CLIENTS)

test-others: $(STAMP)
	$(BIN)/pytest tests $(CLIENTS:%=--ignore %)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Tests that fail do not keep the report back.
coverage: $(STAMP)
	$(BIN)/coverage erase
	$(BIN)/coverage run $(BIN)/pytest; result=$$?; \
	  $(BIN)/coverage combine --quiet && $(BIN)/coverage report && exit $$result

benchmark: $(STAMP)
	$(BIN)/python benchmarks/serving.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert (3, 11) <= sys.version_info[:2] < (3, 13), sys.version" \
	  || { echo "Python 3.11 or 3.12 is needed: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	$(BIN)/latentry doctor --install perf-analyzer \
	  || echo "no perf_analyzer: what needs it is skipped (docs/operations.md)"
	touch $@

clean:
	rm -rf .venv .peers demo build *.egg-info
