# `make` lists the targets. Everything installs into .venv; nothing else on the machine is touched.

# The first interpreter that works and that the tested wheels exist for; `make PYTHON=… install` chooses another.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-quick lint types check bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## put guerdon and its tools into .venv (about 9 GB, a few minutes the first time)

# Written last, so an interrupted install is taken up again by the next call and a finished one costs nothing.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "guerdon needs Python 3.11, 3.12 or 3.13 and found none; install one, or name it: make PYTHON=/path/to/python3.11 install" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("guerdon needs Python 3.11 or newer, and $(PYTHON) is %d.%d; name another: make PYTHON=/path/to/python3.11 install" % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --retries 10 -c constraints.txt -e '.[dev]'
	@mkdir -p .types && ln -sfn .. .types/guerdon  # pyright finds `import guerdon` here: the root is the package
	@touch $(STAMP)

demo: install  ## the main job in at most 8 minutes: logs, reward model, scores, a better policy, a report in demo/
	$(BIN)/guerdon demo --out demo

# One thread per process: two test processes share two cores, and small networks only lose by more threads.
# Tests of one xdist_group stay in one process, so what they share is built once.
test: install  ## all tests, in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -rs $(COVERAGE)

# Property tests draw 5 examples instead of 50; tests marked slow, and those that start a process, are left out. Shapes
# are not checked at run time (addopts without jaxtyping), and compiled tests are kept for the next run.
test-quick: install  ## the tests between two edits, in less than a minute
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup -m "not slow" \
		--hypothesis-profile quick -o addopts="--import-mode=importlib --strict-markers"

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python -p tests/pyrightconfig.json

# Coverage is measured here alone: it makes the tests half as slow again.
check: COVERAGE := --cov --cov-report=
check: lint types test  ## formatting, lint, types, tests and their coverage: all that CI runs
	@echo "coverage: $$($(BIN)/coverage report) % of the lines of the library"

bench: install  ## every measurement in benchmarks/, one after another
	@set -e; for script in $(filter-out benchmarks/common.py,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

clean:  ## remove what make and the tools wrote, .venv included
	rm -rf .venv .types build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
