PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := .venv-base
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

CPP := $(shell find csrc tests/gpu -name '*.cpp' -o -name '*.h')

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu test-sets test-base sanitize test-slow format docs clean

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

# Built from source, in about five minutes.
$(VENV)/.peers: $(VENV)/.ready
	$(PIP) llama-cpp-python
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
	$(MAKE) test-gpu

test-gpu: setup  ## The tests of what runs on a GPU; where there is none, on a stand-in that the CPU computes.
	$(BIN)/python -m pytest -m "not slow" tests/gpu

# Tests of what the extension computes; those that run under every set by themselves have its name in theirs.
NATIVE_TESTS := tests/native tests/generate/test_native_sampling.py tests/ops/test_native.py
FORCES_NONE := not portable and not avx and not neon

test-sets: setup  ## The tests of the native engine under every other instruction set of this machine.
	@sets=$$($(BIN)/python -c 'from rookery.native import _engine; print(*_engine.available_instruction_sets()[:-1])'); \
	for set in $$sets; do \
	  echo "instruction set: $$set"; \
	  ROOKERY_INSTRUCTION_SET=$$set $(BIN)/python -m pytest -m "not slow" -k "$(FORCES_NONE)" $(NATIVE_TESTS) || exit 1; \
	done

test-base: $(BASE)/.ready  ## The commands, from a wheel, in an environment without torch.
	ROOKERY_BASE=$(CURDIR)/$(BASE) $(BIN)/python -m pytest tests/base

# What `pip install rookery` gives: the wheel, and nothing but what it asks for.
$(BASE)/.ready: $(VENV)/.native pyproject.toml constraints.txt $(shell find src -name '*.py')
	rm -rf $(BASE) dist
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .
	$(BIN)/python -c 'import scikit_build_core.build; scikit_build_core.build.build_sdist("dist")'
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	touch $@

# The extension is loaded into a Python that was built without sanitizers: their libraries come first. Python keeps
# much memory until it ends, so leaks are not looked for.
PRELOAD = $$(for name in asan ubsan stdc++; do gcc -print-file-name=lib$$name.so; done | tr '\n' ' ')

sanitize: setup  ## The tests of the native engine under AddressSanitizer and UndefinedBehaviorSanitizer.
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Release -DROOKERY_SANITIZE=ON \
	  -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	$(BIN)/cmake --build build/sanitize
	ROOKERY_ENGINE=$$(echo $(CURDIR)/build/sanitize/_engine.*so) LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0 \
	  UBSAN_OPTIONS=print_stacktrace=1 $(BIN)/python -m pytest -m "not slow" -p no:faulthandler $(NATIVE_TESTS)

test-slow: setup $(VENV)/.peers  ## The tests that take long, with llama-cpp-python to compare with.
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest -m slow tests/gpu

format: setup  ## Format the code and mend what the linter can mend.
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/ruff check --fix .

docs: setup  ## Write what is made from the code: docs/cli.md, and the types of the extension for pyright.
	$(BIN)/python -m scripts.help_pages
	$(BIN)/python -m nanobind.stubgen -q -m rookery.native._engine -o src/rookery/native/_engine.pyi

clean:  ## Remove the virtual environment and what builds and tools leave behind.
	rm -rf $(VENV) $(BASE) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
