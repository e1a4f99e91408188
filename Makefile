# make serve   install into .venv and serve the bundled demo model on port 8080
# make test    install into .venv and run every check; those of the images where docker or podman answers
# make image-cpu, make image-gpu    build byoc-server:cpu, byoc-server:gpu (docs/build-an-image.md)
PYTHON ?= python3
BIN := .venv/bin
ENGINE ?= $(shell docker info >/dev/null 2>&1 && echo docker || echo podman)
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' byoc_server/__init__.py)

.PHONY: serve test lint types unit fuzz fuzz-brief container image-cpu image-gpu format bench bench-images soak clean

serve: .venv/.serve
	$(BIN)/byoc serve

test: lint types unit fuzz-brief container

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/codespell byoc_server tests benchmarks docs README.md CHANGELOG.md

types: .venv/.dev
	$(BIN)/mypy

# Two at a time, those of one file in one process: many tests wait for a server most of their time.
unit: .venv/.dev
	$(BIN)/coverage erase
	$(BIN)/pytest --cov --cov-report=term --numprocesses 2 --dist loadfile -m 'not container and not soak'

# Every decoder, two seconds each, two at a time: about 40 seconds. Skips, loudly, where atheris has no wheel.
fuzz-brief: .venv/.dev
	$(BIN)/python -m benchmarks.fuzz --seconds 2 --jobs 2 --seed 1

# The same for as long as you like: FUZZ_SECONDS for each target. It goes on where it stopped.
FUZZ_SECONDS ?= 60
fuzz: .venv/.dev
	$(BIN)/python -m benchmarks.fuzz --seconds $(FUZZ_SECONDS) --corpus build/fuzz

# Builds the images, the GPU's from about 1.5 GB of downloads: about five minutes. Skips, loudly, without an engine.
container: .venv/.dev
	$(BIN)/pytest -m container

# BUILD_ARGS: more options, such as --build-arg CUDA=12. Without BUILDAH_FORMAT podman would leave the health check out.
image-cpu image-gpu: image-%:
	BUILDAH_FORMAT=docker $(ENGINE) build --file Dockerfile.$* --tag byoc-server:$* \
	    --build-arg VERSION=$(VERSION) $(BUILD_ARGS) .

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# All benchmarks but that of the images, one after the other: about half an hour. Needs wrk, and nothing else should run.
bench: .venv/.dev
	$(BIN)/python -m benchmarks.bench_overhead
	$(BIN)/python -m benchmarks.bench_split
	$(BIN)/python -m benchmarks.bench_batching
	$(BIN)/python -m benchmarks.bench_defaults
	$(BIN)/python -m benchmarks.bench_server_scenario
	$(BIN)/python -m benchmarks.bench_lengths
	$(BIN)/python -m benchmarks.bench_overload
	$(BIN)/python -m benchmarks.bench_startup
	$(BIN)/python -m benchmarks.bench_codecs
	$(BIN)/python -m benchmarks.bench_stalls

bench-images: .venv/.dev
	$(BIN)/python -m benchmarks.bench_images --output benchmarks/images.json

# What takes too long for every change: a million requests, and tests marked soak. About five minutes; needs wrk.
soak: .venv/.dev
	$(BIN)/python -m benchmarks.soak
	$(BIN)/pytest -m soak

clean:
	rm -rf .venv build dist .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/.serve: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu]'
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ .venv/.serve
