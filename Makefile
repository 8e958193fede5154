# Every target makes the virtual environment it needs; `make clean` removes them all.
PYTHON ?= python3
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check
ifeq ($(OS),Windows_NT)
BIN = Scripts
else
BIN = bin
endif

DEMO = .venv-demo/$(BIN)
DEV = .venv/$(BIN)
REFERENCE = .venv-reference/$(BIN)
PEERS = .venv-peers/$(BIN)
OPENVINO = .venv-openvino/$(BIN)
RAY = .venv-ray/$(BIN)
OPTIMUM = .venv-optimum/$(BIN)
OPTIMUM_ONNX = .venv-optimum-onnx/$(BIN)
PROMPT = Once upon a time, a little fox
TORCH ?= torch>=2.13

.PHONY: demo test test-reference test-peers test-openvino test-ray lint format clean

demo: .venv-demo/ready  ## export the shipped sample and generate with each strategy
	$(DEMO)/recycle-onnx export samples/stories demo-bundle --force
	$(DEMO)/python samples/compare.py demo-bundle "$(PROMPT)"

test: .venv/ready  ## the suite without torch
	$(DEV)/python -m pytest -m "not reference and not peers"

test-reference: .venv-reference/ready  ## against torch and transformers
	$(REFERENCE)/python -m pytest -m reference

test-peers: .venv-reference/ready .venv-peers/ready .venv-optimum/ready .venv-optimum-onnx/ready  ## against and within others, in environments of their own
	RECYCLE_ONNX_PEERS=$(CURDIR)/$(PEERS)/python RECYCLE_ONNX_OPTIMUM=$(CURDIR)/$(OPTIMUM)/python \
	RECYCLE_ONNX_OPTIMUM_ONNX=$(CURDIR)/$(OPTIMUM_ONNX)/python $(REFERENCE)/python -m pytest -m peers

test-openvino: .venv-openvino/ready  ## the conformance suite on OpenVINO: both halves, and each with the other on the CPU
	$(OPENVINO)/python -m pytest tests/conformance --provider openvino

test-ray: .venv-ray/ready  ## the sample program for a cluster, on a local Ray of two workers
	$(RAY)/python -m pytest tests/samples -k ray

lint: .venv-reference/ready  ## style, types (torch's too) and the walls between the halves
	$(REFERENCE)/ruff check .
	$(REFERENCE)/ruff format --check .
	$(REFERENCE)/mypy
	$(REFERENCE)/lint-imports

format: .venv/ready
	$(DEV)/ruff check --fix .
	$(DEV)/ruff format .

.venv-demo/ready: pyproject.toml
	$(PYTHON) -m venv .venv-demo
	$(DEMO)/python $(PIP_INSTALL) -e ".[export]"
	touch $@

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(DEV)/python $(PIP_INSTALL) -e ".[dev]"
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
	rm -rf .venv .venv-demo .venv-reference .venv-peers .venv-openvino .venv-ray .venv-optimum .venv-optimum-onnx demo-bundle
