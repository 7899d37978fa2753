HOST ?= 127.0.0.1
PORT ?= 8000
PYTHON ?= python3
BIN := .venv/bin
TORCH := 2.13.0
VLLM_TESTS := tests/decoding/vllm_engine
TOOLKIT_TESTS := tests/eval/toolkits

.PHONY: install install-vllm install-toolkits serve test test-vllm test-toolkits check format docs train

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

# Toolkits pin other packages, which contradict each other. ms-vlmeval requires many that the tests do not use.
install-toolkits: .venv-toolkits/installed

.venv-toolkits/installed: pyproject.toml $(TOOLKIT_TESTS)/requirements.txt
	rm -rf .venv-toolkits
	$(PYTHON) -m venv .venv-toolkits
	.venv-toolkits/bin/pip install --quiet torch==$(TORCH)
	.venv-toolkits/bin/pip install --quiet --editable '.[dev]'
	.venv-toolkits/bin/pip install --quiet --requirement $(TOOLKIT_TESTS)/requirements.txt
	.venv-toolkits/bin/pip install --quiet --no-deps ms-vlmeval==0.0.20 latex2sympy2-extended==1.11.0 pylatexenc==2.11 \
		antlr4-python3-runtime==4.13.2
	touch $@

test-toolkits: install-toolkits
	OMP_NUM_THREADS=1 .venv-toolkits/bin/pytest $(TOOLKIT_TESTS)

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
