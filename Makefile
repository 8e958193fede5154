# Every target makes the virtual environment it needs; `make clean` removes them all, and what the demo made.
PYTHON ?= python3
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
ifeq ($(OS),Windows_NT)
BIN = Scripts
else
BIN = bin
endif

DEMO_VENV = .venv-demo
DEMO = $(DEMO_VENV)/$(BIN)
DEV = .venv/$(BIN)
REFERENCE = .venv-reference/$(BIN)
PEERS = .venv-peers/$(BIN)
OPENVINO = .venv-openvino/$(BIN)
RAY = .venv-ray/$(BIN)
DOCS = .venv-docs/$(BIN)
LOWEST = .venv-lowest/$(BIN)
CLIENTS = .venv-clients/$(BIN)
FROZEN = .venv-frozen/$(BIN)
NODE_CLIENTS = tests/serve/clients/node_modules
OPTIMUM = .venv-optimum/$(BIN)
OPTIMUM_ONNX = .venv-optimum-onnx/$(BIN)

# What the demo fetches and makes; a bundle is made again when its module, the package or its base has changed.
DEMO_FILES = .demo
SMOLLM2 = samples/smollm2-135m
BASE = $(DEMO_FILES)/SmolLM2-135M-Instruct.Q4_1.gguf
PACKAGE = $(wildcard recycle_onnx/*.py recycle_onnx/*/*.py recycle_onnx/*/*/*.py recycle_onnx/*/*/*/*.py)
QUESTIONS = "Explain to a child why the sky is blue." "Why do cats purr?"
PROMPT = "Once upon a time, a little fox"
TORCH ?= torch>=2.13

# One worker a processor; each takes its part of the files in order, and helps the other at the end. WORKERS=0 is none.
WORKERS ?= logical
IN_PARALLEL = -n $(WORKERS) --dist worksteal

.PHONY: demo demo-smollm2 demo-stories test test-reference test-peers test-openvino test-ray test-lowest test-clients test-frozen lint format docs dist clean

demo: $(DEMO_VENV)/ready  ## SmolLM2-135M alone and with its module; without an index to fetch it from, the stories sample
	@if $(DEMO)/python samples/fetch_base.py $(BASE); \
	then $(MAKE) --no-print-directory demo-smollm2; \
	else echo "instead, the small sample that is part of the repository:"; \
	$(MAKE) --no-print-directory demo-stories; fi

demo-smollm2: $(DEMO_FILES)/smollm2/recycle.json
	$(DEMO)/python samples/compare.py $(DEMO_FILES)/smollm2 $(QUESTIONS) --chat --strategies full,auto

demo-stories: $(DEMO_FILES)/stories/recycle.json
	$(DEMO)/python samples/compare.py $(DEMO_FILES)/stories $(PROMPT)

$(BASE): | $(DEMO_VENV)/ready
	$(DEMO)/python samples/fetch_base.py $@

$(DEMO_FILES)/smollm2/recycle.json: $(BASE) $(wildcard $(SMOLLM2)/*.json $(SMOLLM2)/*.safetensors) $(PACKAGE)
	$(DEMO)/recycle-onnx attach $(BASE) $(DEMO_FILES)/checkpoint --module $(SMOLLM2) --force
	$(DEMO)/recycle-onnx export $(DEMO_FILES)/checkpoint $(@D) --precision int8 --no-compare --force
	rm -rf $(DEMO_FILES)/checkpoint

$(DEMO_FILES)/stories/recycle.json: $(wildcard samples/stories/*.* samples/stories/recycler/*) $(PACKAGE) | $(DEMO_VENV)/ready
	$(DEMO)/recycle-onnx export samples/stories $(@D) --force

# Threads of numpy's products wait by spinning, on the processor that the worker beside them needs.
test test-lowest: export OPENBLAS_NUM_THREADS = 1
# Hundreds of child processes, and both workers, would compile the package and all tests again where no bytecode is kept.
test test-lowest: export PYTHONDONTWRITEBYTECODE =
test: .venv/ready  ## the suite without torch, and its ten slowest tests
	$(DEV)/python -m pytest $(IN_PARALLEL) -m "not reference and not peers" --durations=10

test-reference: .venv-reference/ready  ## against torch and transformers
	$(REFERENCE)/python -m pytest -m reference

test-peers: .venv-reference/ready .venv-peers/ready .venv-optimum/ready .venv-optimum-onnx/ready  ## against and within others, in environments of their own
	RECYCLE_ONNX_PEERS=$(CURDIR)/$(PEERS)/python RECYCLE_ONNX_OPTIMUM=$(CURDIR)/$(OPTIMUM)/python \
	RECYCLE_ONNX_OPTIMUM_ONNX=$(CURDIR)/$(OPTIMUM_ONNX)/python $(REFERENCE)/python -m pytest -m peers

test-openvino: .venv-openvino/ready  ## the conformance suite on OpenVINO: both halves, and each with the other on the CPU
	$(OPENVINO)/python -m pytest tests/conformance --provider openvino

test-ray: .venv-ray/ready  ## the sample program for a cluster, on a local Ray of two workers
	$(RAY)/python -m pytest tests/samples -k ray

test-lowest: .venv-lowest/ready  ## what runs bundles, on the oldest versions that pyproject.toml allows
	$(LOWEST)/python -m pytest $(IN_PARALLEL) tests/runtime tests/cli tests/doctor tests/evaluation tests/serve tests/conformance

test-clients: .venv-clients/ready  ## the server with clients that others have written for other servers
	-$(MAKE) --no-print-directory .venv-langchain/ready
	-$(MAKE) --no-print-directory .venv-llm/ready
	-$(MAKE) --no-print-directory $(NODE_CLIENTS)/ready
	$(CLIENTS)/python -m pytest tests/serve/test_clients.py tests/serve/test_clients_elsewhere.py

test-frozen: .venv-frozen/ready  ## programs that PyInstaller freezes, with the package's own hooks
	$(FROZEN)/python -m pytest tests/samples/test_frozen.py

lint: .venv-reference/ready  ## style, types (torch's too) and the walls between the halves
	$(REFERENCE)/ruff check .
	$(REFERENCE)/ruff format --check .
	$(REFERENCE)/mypy
	$(REFERENCE)/lint-imports

format: .venv/ready
	$(DEV)/ruff check --fix .
	$(DEV)/ruff format .

docs: .venv-docs/ready  ## the site, in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS)/mkdocs build --strict

dist: .venv/ready  ## what is published: sdist and wheel, in build/dist
	rm -rf build/dist
	$(DEV)/python -m hatchling build -d build/dist

$(DEMO_VENV)/ready: pyproject.toml Makefile
	$(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO)/python $(PIP_INSTALL) -e ".[export,gguf,chat]"
	touch $@

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(DEV)/python $(PIP_INSTALL) -e ".[dev]"
	touch $@

.venv-docs/ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	$(DOCS)/python $(PIP_INSTALL) -e ".[docs]"
	touch $@

.venv-ray/ready: pyproject.toml
	$(PYTHON) -m venv .venv-ray
	$(RAY)/python $(PIP_INSTALL) -e ".[dev,ray]"
	touch $@

.venv-reference/ready: pyproject.toml
	$(PYTHON) -m venv .venv-reference
	$(REFERENCE)/python $(PIP_INSTALL) "$(TORCH)"
	$(REFERENCE)/python $(PIP_INSTALL) -e ".[reference]"
	touch $@

.venv-peers/ready: tests/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	$(PEERS)/python $(PIP_INSTALL) -r tests/peers/requirements.txt
	touch $@

.venv-lowest/ready: pyproject.toml tests/lowest.txt
	$(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python $(PIP_INSTALL) -e ".[test]" -c tests/lowest.txt
	touch $@

.venv-clients/ready: pyproject.toml
	$(PYTHON) -m venv .venv-clients
	$(CLIENTS)/python $(PIP_INSTALL) -e ".[clients]"
	touch $@

# Clients in environments of their own, which hold nothing of ours.
.venv-langchain/ready .venv-llm/ready: .venv-%/ready: tests/serve/clients/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/$(BIN)/python $(PIP_INSTALL) -r $<
	touch $@

$(NODE_CLIENTS)/ready: tests/serve/clients/package.json
	npm install --prefix $(<D) --no-package-lock --no-audit --no-fund --silent
	touch $@

.venv-frozen/ready: pyproject.toml
	$(PYTHON) -m venv .venv-frozen
	$(FROZEN)/python $(PIP_INSTALL) -e ".[frozen]"
	touch $@

.venv-openvino/ready: tests/conformance/requirements-openvino.txt
	$(PYTHON) -m venv .venv-openvino
	$(OPENVINO)/python $(PIP_INSTALL) -r $<
	touch $@

.venv-optimum/ready: pyproject.toml
	$(PYTHON) -m venv .venv-optimum
	$(OPTIMUM)/python $(PIP_INSTALL) "$(TORCH)"
	$(OPTIMUM)/python $(PIP_INSTALL) -e ".[optimum]"
	touch $@

.venv-optimum-onnx/ready: tests/peers/requirements-optimum-onnx.txt
	$(PYTHON) -m venv .venv-optimum-onnx
	$(OPTIMUM_ONNX)/python $(PIP_INSTALL) "$(TORCH)"
	$(OPTIMUM_ONNX)/python $(PIP_INSTALL) -r $<
	touch $@

clean:
	rm -rf .venv $(DEMO_VENV) .venv-reference .venv-peers .venv-openvino .venv-ray .venv-optimum .venv-optimum-onnx \
		.venv-docs .venv-lowest .venv-clients .venv-frozen build
	rm -rf .venv-langchain .venv-llm $(NODE_CLIENTS)
	rm -rf $(DEMO_FILES)
