# Every target does its own set-up: it needs Python 3.11 or later, make, and the ordinary package registries.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 3
PYTEST_ARGS ?=

.PHONY: help demo test test-quick check crds format bench clean

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# A stamp for each set of packages, so that the demo does not wait for test tools, nor for byte code it does not need.
$(VENV)/.runtime: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable .
	@touch $@

$(VENV)/.tools: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[operator]' --group test --group check
	@touch $(VENV)/.runtime $@

demo: $(VENV)/.runtime ## See tokens being renewed, against an issuer of its own on the loopback
	@$(BIN)/keyferry demo

test: $(VENV)/.tools ## Run every test that this machine can run; what it cannot run says so
	$(BIN)/python -m tests.support.prepare
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-quick: $(VENV)/.tools ## Run the tests that need no other server and end soon
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not crash and not keycloak and not tiled and not cluster and not node and not browser" $(PYTEST_ARGS)

check: $(VENV)/.tools ## Format, lint, types, layers, generated documents
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m keyferry_operator.crds --check charts/keyferry/templates/crds
	$(BIN)/python -m keyferry.spec.reference | diff -u docs/reference.md - # docs/reference.md is made from the models

crds: $(VENV)/.tools ## Write the chart's CRDs and the field reference anew, from the models
	$(BIN)/python -m keyferry_operator.crds --write charts/keyferry/templates/crds
	$(BIN)/python -m keyferry.spec.reference > docs/reference.md

format: $(VENV)/.tools ## Bring the sources into form
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(VENV)/.tools ## Measure the engine and the operator with 10,000 identities each
	$(BIN)/python -m bench.engine
	$(BIN)/python -m bench.operator
	$(BIN)/python -m bench.sidecar

clean: ## Remove what the targets made here
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
