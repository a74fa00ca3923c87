# Everything from a fresh clone: each target makes .venv first.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.ready
TOOLS  := $(VENV)/.ready-dev
ARGS   ?=
DOCS   ?= build/docs

.PHONY: quickstart test test-all check bench docs man licenses clean

quickstart: $(READY)  ## from raw text to a model that answers (under 10 minutes on 2 cores)
	$(PY) -m leyden quickstart $(ARGS)

# Threads that wait by spinning make every parallel region many times slower where other programs hold the cores.
test test-all: export OMP_WAIT_POLICY = PASSIVE
# Each core has a process of its own.
test: export OMP_NUM_THREADS = 1

test: $(TOOLS)  ## the fast tests
	$(PY) -m pytest -m "not slow and not gpu" -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: $(TOOLS)  ## with the long fault, load and soak tests, and with random examples
	$(PY) -m pytest -m "not gpu" --hypothesis-profile=search $(ARGS)

check: $(TOOLS)  ## lint, types, imports
	$(PY) -m ruff check src tests docs
	$(PY) -m pyright
	$(VENV)/bin/lint-imports

bench: $(TOOLS)  ## speed beside transformers, on the CPU
	$(PY) -m leyden bench cpu $(ARGS)

docs: $(TOOLS)  ## the reference of the Python interface, in build/docs
	$(PY) docs/reference.py $(DOCS)

man: $(READY)  ## the manual page, build/leyden.1
	@mkdir -p build
	$(PY) -m leyden.cli.man_page build/leyden.1

licenses: $(READY)  ## docs/licenses.md, of what requirements.lock pins
	$(PY) docs/licenses.py

clean:
	rm -rf $(VENV) build dist

$(TOOLS): $(READY) requirements-dev.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.lock
	@touch $(TOOLS)

# What the quickstart runs with, and no tools of tests. A torch that is already in .venv and new enough is kept (a CUDA
# build, say), and with it the triton it came with, if it came with one.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Leyden needs Python 3.11 or newer; %s is %s. Set PYTHON=..." % (sys.executable, sys.version.split()[0]) if sys.version_info < (3, 11) else 0)'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@if $(PY) -c 'import sys, torch; sys.exit(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11))' 2>/dev/null; \
	then grep -vE "^(torch$$($(PY) -c 'import triton' 2>/dev/null && echo '|triton'))==" requirements.lock > $(VENV)/requirements.txt; \
	else cp requirements.lock $(VENV)/requirements.txt; fi
	$(PY) -m pip install --quiet --disable-pip-version-check --requirement $(VENV)/requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(READY)
