# make demo: generated images out of a real Triton, in demo/
# make check: lint and types
# make test: every test that needs no GPU and not many minutes
# make acceptance: what a stranger does: each page's commands, the demo, a wheel, Ray, published
#   systems served whole; eight minutes
# make test-slow: the tests that do: kills, hangs, faults, fuzzers; three hours
# make coverage: the same tests; lines and branches of the rooms that none of them runs
# make benchmark: the table in docs/performance.md
# Each sets up .venv/ by itself; the second time they install nothing.

PYTHON ?= python3
BIN := .venv/bin
JOBS := tests/synthesis
SERVING := tests/serving
CLIENTS := tests/contract tests/clients tests/profiling tests/systems
STAMP := .venv/.installed
EXTRAS := train,export,serve,cpu,openvino,int8,synthesis,ray,profile,dev

.PHONY: demo test acceptance accept-project accept-others test-slow test-jobs test-serving test-clients test-others check lint types format coverage benchmark clean

demo: $(STAMP)
	$(BIN)/python demo.py

# Four runs beside each other, each with servers of its own: tests wait for servers for half of their
# time, so that fewer would leave a core idle.
test: $(STAMP)
	exports=$$(mktemp -d) && trap 'rm -rf "$$exports"' EXIT && trap 'exit 130' INT TERM && LATENTRY_TEST_EXPORTS=$$exports \
	  $(MAKE) --no-print-directory --jobs=4 test-jobs test-serving test-clients test-others

acceptance: $(STAMP)
	$(MAKE) --no-print-directory --jobs=2 accept-project accept-others

accept-project: $(STAMP)
	$(BIN)/pytest -m "acceptance and not slow" tests/project

accept-others: $(STAMP)
	$(BIN)/pytest -m "acceptance and not slow" tests --ignore tests/project

test-slow: $(STAMP)
	$(BIN)/pytest -m slow

check: lint types

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

test-jobs: $(STAMP)
	$(BIN)/pytest $(JOBS)

test-serving: $(STAMP)
	$(BIN)/pytest $(SERVING)

test-clients: $(STAMP)
	$(BIN)/pytest $(CLIENTS)

test-others: $(STAMP)
	$(BIN)/pytest tests $(JOBS:%=--ignore %) $(SERVING:%=--ignore %) $(CLIENTS:%=--ignore %)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Tests that fail do not keep the report back.
coverage: $(STAMP)
	$(BIN)/coverage erase
	$(BIN)/coverage run $(BIN)/pytest -m 'not slow'; result=$$?; \
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
