HOST ?= 127.0.0.1
PORT ?= 8000
PYTHON ?= python3
BIN := .venv/bin
TORCH := 2.13.0

.PHONY: install serve test check format docs train

install: .venv/installed

# torch by itself and pinned: a range would let pip take a build for another device than the one at hand.
.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==$(TORCH)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

serve: install
	$(BIN)/onlyseen-server --host $(HOST) --port $(PORT)

test: install
	$(BIN)/pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/python -m decoding README.md

train: install
	$(BIN)/python -m embedded.train
