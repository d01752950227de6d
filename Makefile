# What a person and CI run. Each target first sets up what it needs: see lab/setup.sh.
python := .venv/bin/python
rooms := flows tasks blocks rules triggers lab

.PHONY: help setup demo test test-sglang lint bench clean
.DEFAULT_GOAL := help

help:   ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup:  ## make .venv what requirements.lock says
	@sh lab/setup.sh

demo: setup  ## show it: a small production on this machine, deployed to, broken and taken back
	@$(python) -m lab.demo $(if $(KEEP),--keep)

test: setup  ## run all tests, the crash tests too
	@$(python) -m pytest -n 2 --dist loadgroup $(if $(CI),--reruns 1 -rR)

test-sglang: setup  ## run the tests against the real SGLang on the CPU; the first time it is installed, 1.7 GB
	@SGLANG_REAL=1 $(python) -m pytest -n 0 tests/sglang_real tests/flows/test_sglang_model.py

lint: setup  ## check style, types, room borders and dependencies
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy $(rooms)
	@cd triggers/forgejo/.forgejo && ../../../.venv/bin/mypy --cache-dir ../../../.mypy_cache --config-file ../../../pyproject.toml -p deploy
	@.venv/bin/lint-imports --no-logo
	@.venv/bin/deptry .

bench: setup  ## measure what deploying costs
	@$(python) -m lab.bench

clean:  ## remove all that is made here, .venv too
	@find $(rooms) tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -rf .venv .lab .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
