# Paths are relative throughout, so all of this works from a folder with a space in its name.
PYTHON ?= python3
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help setup demo pretrain-demo test check format docs bench verify clean

help:
	@echo "make demo    the main job end to end, on real tweets and the embedded base model"
	@echo "make pretrain-demo    a base model of one's own from the standard library's text, and what it is worth"
	@echo "make test    style, types, import floors and all tests"
	@echo "make setup   environment (.venv) and base model; the others do this by themselves"
	@echo "make check   style, types and import floors only;  make format  mends the style"
	@echo "make docs    docs/families.md, made from the code"
	@echo "make bench   the benchmarks against named peers"
	@echo "make verify  every promise of this project, checked; resumable;  ONLY=name picks some"
	@echo "make clean   removes .venv and .cache"

setup: .venv/ready
	@$(PY) -m pando pull smollm2-135m

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Pando needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Setting up .venv (some minutes the first time; torch is large)"
	@$(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0
	@$(PIP) hatchling editables
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

# the peers that benchmarks and some checks compare with
.venv/peers: .venv/ready
	@echo "Adding the peers to compare with"
	@$(PIP) --no-build-isolation --editable '.[dev,bench]'
	@touch $@

demo: setup
	@$(PY) examples/tweets/demo.py

pretrain-demo: setup
	@$(PY) examples/pretrain-stdlib/demo.py

check: .venv/ready
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports --no-logo --cache-dir .cache/import-linter

format: .venv/ready
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

docs: .venv/ready
	@$(PY) docs/families.py --write

test: setup check
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

bench: setup .venv/peers
	@failed=0; for script in bench/[!_]*.py; do echo "== $$script"; $(PY) "$$script" || failed=1; done; exit $$failed

verify: setup .venv/peers
	@$(PY) verify/run.py $(ONLY)

clean:
	rm -rf .venv .cache dist
