# make serve   install into .venv and serve the bundled demo model on port 8080
# make test    install into .venv and run every check
PYTHON ?= python3
BIN := .venv/bin

.PHONY: serve test lint types unit format bench clean

serve: .venv/.serve
	$(BIN)/byoc serve

test: lint types unit

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/codespell byoc_server tests benchmarks docs README.md CHANGELOG.md

types: .venv/.dev
	$(BIN)/mypy

unit: .venv/.dev
	$(BIN)/coverage erase
	$(BIN)/pytest --cov --cov-report=term

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The three benchmarks, one after the other: about twelve minutes. Needs wrk, and nothing else should run.
bench: .venv/.dev
	$(BIN)/python -m benchmarks.bench_overhead
	$(BIN)/python -m benchmarks.bench_batching
	$(BIN)/python -m benchmarks.bench_startup

clean:
	rm -rf .venv build dist .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/.serve: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ .venv/.serve
