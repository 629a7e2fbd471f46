PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

CPP := $(shell find csrc -name '*.cpp' -o -name '*.h')

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow format docs clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.native  ## Make the virtual environment .venv with everything that the other targets need.

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch cmake nanobind ninja scikit-build-core
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

# The extension, built again where its source has changed.
$(VENV)/.native: $(VENV)/.ready CMakeLists.txt $(shell find csrc -type f)
	$(PIP) --no-build-isolation --no-deps --editable .
	touch $@

demo: setup  ## Train a small RWKV-7 on Python's standard library in five minutes, then let it write.
	$(BIN)/rookery demo

test: setup  ## The gate: format, lint, types, floors, tests.
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -m "not slow"

test-slow: setup  ## The tests that take long.
	$(BIN)/python -m pytest -m slow

format: setup  ## Format the code and mend what the linter can mend.
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/ruff check --fix .

docs: setup  ## Write what is made from the code: docs/cli.md, and the types of the extension for pyright.
	$(BIN)/python -m scripts.help_pages
	$(BIN)/python -m nanobind.stubgen -q -m rookery.native._engine -o src/rookery/native/_engine.pyi

clean:  ## Remove the virtual environment and what builds and tools leave behind.
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
