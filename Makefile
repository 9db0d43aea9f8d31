# One word per task; `make` lists them. Variables: PORT, HOST, MODEL, PYTHON, TORCH_INDEX, ARGS.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PORT ?= 8000
HOST ?= 127.0.0.1
MODEL ?= embedded
ARGS ?=
IMAGE ?= fit-serve

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(firstword $(shell for p in python3 python3.12 python3.11 python3.13 python3.14; do \
  if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$p; fi; done))

# Without an NVIDIA GPU the constraints keep CUDA packages out; CONSTRAINTS= (empty) lets them in.
HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
CONSTRAINTS ?= $(if $(filter 0,$(HAS_GPU)),constraints-cpu.txt)
# TORCH_INDEX: address of one more package index to look for torch builds in.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_INSTALL := $(PIP) install --no-compile --progress-bar off $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) \
  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# Of pip's many lines, keep what takes long and whatever is not routine (errors above all).
PROGRESS := sed -uE -e '/^ *(Collecting|Requirement already|Using cached|Looking in|Processing|Obtaining) /d' \
  -e '/^ *(Building|Created|Stored|Checking if|Preparing|Getting|Installing (build|backend)|Running) .*/d' \
  -e '/^ *(Link requires|File was already|Attempting|Found existing|Uninstalling) /d' \
  -e '/^ *Successfully (un)?(installed|built)|^ *Downloading .*(\.metadata|[kK]B\)|bytes\))/d' \
  -e '/is ignored: it is neither a file nor a directory/d' \
  -e 's/^ *(Downloading .*)/[setup]   \1/' \
  -e 's/^Installing collected packages:.*/[setup]   unpacking and linking ... (the longest part)/'

.PHONY: help
help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## virtual environment in .venv, everything installed in it
	@echo "[setup] ready: $(BIN)/fit-serve --help"

$(STAMP): pyproject.toml constraints-cpu.txt
	@test -n "$(PYTHON)" || { echo "[setup] no Python 3.11 or newer here; name one: make setup PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || { echo "[setup] creating $(VENV) with $(PYTHON) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "[setup] $(if $(CONSTRAINTS),under $(CONSTRAINTS) (no NVIDIA GPU found),without constraints)"
	@echo "[setup] installing torch, the server and its tools ... (about a minute the first time)"
	@$(PIP_INSTALL) -e '.[dev]' 2>&1 | $(PROGRESS) || { echo "$$SETUP_FAILED" >&2; exit 1; }
	@touch $@

define SETUP_FAILED
[setup] failed; pip's reason is above.
[setup] If it names a CUDA package, none of your package indexes has a CPU build of torch. Give one:
[setup]   make setup TORCH_INDEX=(the index address for CPU on PyTorch's install page)
[setup] or accept the large CUDA build:
[setup]   make setup CONSTRAINTS=
endef
export SETUP_FAILED

.PHONY: serve
serve: $(STAMP) ## serve the embedded model (PORT=8000 HOST=127.0.0.1 MODEL=embedded ARGS=)
	@echo "[serve] starting on http://$(HOST):$(PORT) (Ctrl-C stops)"
	@exec $(BIN)/fit-serve serve --host $(HOST) --port $(PORT) --model $(MODEL) $(ARGS)

# PHOTOGRAPHS: a folder with a folder of photographs for each class. DEMO: where the demo's files go.
PHOTOGRAPHS ?=
DEMO ?= build/demo

.PHONY: train-demo
train-demo: $(STAMP) ## photographs to a served model, in minutes on a CPU (PHOTOGRAPHS=folder DEMO=build/demo ARGS=num_steps=600)
	@test -n "$(PHOTOGRAPHS)" || { echo "[train-demo] which photographs? make train-demo PHOTOGRAPHS=folder" >&2; exit 1; }
	@$(BIN)/python examples/hold_out.py $(PHOTOGRAPHS) $(DEMO)/photographs
	@$(BIN)/fit-serve prepare $(DEMO)/photographs/train $(DEMO)/latents
	@$(BIN)/fit-serve train configs/demo.yaml data=$(DEMO)/latents output=$(DEMO)/run $(ARGS)
	@$(BIN)/fit-serve export $(DEMO)/run $(DEMO)/bundle --name demo --autoencoder embedded --replace \
	  --classes $(DEMO)/latents/classes.txt --num-inference-steps 20 --guidance-scale 4 --guided-channels 4
	@$(BIN)/fit-serve evaluate --model $(DEMO)/bundle --feature-network embedded \
	  --photographs $(DEMO)/photographs/train --validation $(DEMO)/photographs/val \
	  --report $(DEMO)/report.json --contact-sheet $(DEMO)/sheet.png >/dev/null
	@echo "[train-demo] pictures in $(DEMO)/sheet.png; serve them: make serve MODEL=$(DEMO)/bundle"
	@$(BIN)/python examples/what_was_measured.py $(DEMO)/run/log.jsonl $(DEMO)/report.json

# DATA: a folder with photographs, teacher and feature network, see docs/training.md.
DATA ?= data

.PHONY: embedded-model
embedded-model: $(STAMP) ## make the embedded model again, from photographs (DATA=data); hours on a CPU
	@examples/embedded_model.sh $(DATA) $(BIN)/fit-serve

.PHONY: test
test: $(STAMP) ## fast tests, on the CPU
	@$(BIN)/python -m pytest -m "not gpu and not slow" $(ARGS)

.PHONY: test-slow
test-slow: $(STAMP) ## tests that take more than a few seconds
	@$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

.PHONY: test-interpreter
test-interpreter: $(STAMP) ## Triton kernels in Triton's interpreter, on the CPU
	@TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreter $(ARGS)

.PHONY: parity
parity: $(STAMP) ## every recorded run of the authors' code against ours, as a table
	@$(BIN)/python -m pytest -q -m "not gpu" tests/unit/models --parity $(ARGS)

.PHONY: test-gpu
test-gpu: $(STAMP) ## tests that need a CUDA device
	@$(BIN)/python -m pytest -m gpu $(ARGS)

# GPU_PYTHON: an interpreter that has torch and the rest already, where nothing can be installed.
GPU_PYTHON ?= $(BIN)/python
SOURCES := kernels:models:training:server

.PHONY: gpu-check
gpu-check: ## all that only a GPU can prove, in one table; says so and stops where there is none
	@if [ "$(HAS_GPU)" = 0 ]; then echo "gpu-check: skipped, no NVIDIA GPU found (nvidia-smi -L)"; \
	else if [ "$(GPU_PYTHON)" = "$(BIN)/python" ]; then $(MAKE) setup; fi; \
	PYTHONPATH=$(SOURCES) $(GPU_PYTHON) benchmarks/gpu_check.py $(ARGS); fi

.PHONY: gpu-check-toy
gpu-check-toy: $(STAMP) ## the code of gpu-check, on the CPU in Triton's interpreter
	@$(BIN)/python benchmarks/gpu_check.py --toy $(ARGS)

.PHONY: lint
lint: $(STAMP) ## ruff: rules and format, nothing changed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

.PHONY: fmt
fmt: $(STAMP) ## ruff: fix and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: types
types: $(STAMP) ## pyright
	@$(BIN)/pyright --warnings

.PHONY: contracts
contracts: $(STAMP) ## import-linter: who may import whom
	@$(BIN)/lint-imports

# AOT_TABLE: where the table goes; empty, as in `check`, leaves the committed one for `test` to judge.
AOT_TABLE ?= benchmarks/results/aot.json

.PHONY: aot
aot: $(STAMP) ## compile every kernel for sm_80, sm_90 and sm_100, no GPU needed; writes the table
	@$(BIN)/python -m fit_kernels.aot $(if $(AOT_TABLE),--json $(AOT_TABLE)) $(ARGS)

.PHONY: check
check: ## what CI runs, in CI's order: lint, types, contracts, aot, test-interpreter, test
	@$(MAKE) lint
	@$(MAKE) types
	@$(MAKE) contracts
	@$(MAKE) aot AOT_TABLE= ARGS=
	@$(MAKE) test-interpreter
	@$(MAKE) test

PROTO := fit_serve/grpc_api/v1/generation.proto

.PHONY: proto
proto: $(STAMP) ## generate the gRPC code from its contract; a test holds the two together
	@cd server && $(abspath $(BIN))/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. $(PROTO)

.PHONY: bench
bench: $(STAMP) ## the ladder of policies on this machine (ARGS= for fit-serve bench ladder)
	@$(BIN)/fit-serve bench ladder $(ARGS)

.PHONY: docker
docker: ## build the container image (IMAGE=fit-serve)
	@docker build --tag $(IMAGE) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) .

.PHONY: clean
clean: ## remove the virtual environment, caches and build results
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage
	@find . -path ./.git -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf
