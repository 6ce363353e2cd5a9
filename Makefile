# Needs a Python >= 3.11 and its package index, nothing else.
PYTHON ?= python3
BRIEF  ?= examples/incident-notes.md
BUS    ?=
SIMULATE ?=
# --no-deps: the files pin everything. Left to resolve, some pips take an extra (google-auth[requests]) from a newer release than the
# pinned one and then refuse it for want of a hash. `make check` proves that nothing is missing.
PIP    := .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps

.PHONY: run serve setup setup-dev test check check-infra bench requirements docs clean

run: setup  ## Run a brief through the team, print progress and the report.
	@./agent-team run report --input "$(BRIEF)"

# The development tools bring a Redis.
serve: $(if $(BUS),setup-dev,setup)  ## The whole platform on 127.0.0.1:8080. BUS=redis or BUS=pubsub: a process for each function. SIMULATE=1: a simulated Gemini.
	@./agent-team serve $(if $(BUS),--bus $(BUS)) $(if $(SIMULATE),--simulate)

# Each process has servers of its own; a file's tests stay together.
test: setup-dev  ## The whole test suite, with coverage.
	.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --cov

check: setup-dev  ## Lint, format, types, floors, requirements.
	.venv/bin/python -m pip check
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

check-infra: setup-dev .venv-checkov/.setup  ## Terraform and the security scan, offline.
	.venv/bin/python -m pytest -q tests/infra

.venv-checkov/.setup: infra/requirements-checkov.txt
	@$(PYTHON) -m venv --clear .venv-checkov
	@.venv-checkov/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	@touch $@

bench: setup-dev  ## The benchmark: a table, and JSON in bench/results/. BUS=redis: workers on Redis alone.
	@.venv/bin/python -m bench $(if $(filter redis,$(BUS)),steps_redis)

setup: .venv/.setup
setup-dev: .venv/.setup-dev

.venv/.setup: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; install a newer one and say make PYTHON=/path/to/python3" >&2; exit 2; }
	@echo "Setting up .venv (once, about half a minute) ..."
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) -r requirements.txt
	@touch $@

.venv/.setup-dev: requirements-dev.txt .venv/.setup
	@echo "Installing the development tools ..."
	@$(PIP) -r requirements-dev.txt
	@touch $@

COMPILE := .venv/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --custom-compile-command "make requirements"

requirements: setup-dev  ## Compile the pinned requirements from pyproject.toml.
	$(COMPILE) --universal --python-version 3.11 --extra local -o requirements.txt pyproject.toml
	$(COMPILE) --universal --python-version 3.11 --extra local --extra dev --constraint requirements.txt -o requirements-dev.txt pyproject.toml
	$(COMPILE) --python-version 3.13 --python-platform linux --constraint requirements.txt -o requirements-cloud.txt pyproject.toml
	echo checkov | $(COMPILE) --python-version 3.11 -o infra/requirements-checkov.txt -

docs: setup  ## Write docs/api.md from the API's own description, and docs/settings.md from the settings.
	@.venv/bin/python -m functions.gateway.reference > docs/api.md
	@PYTHONPATH=. .venv/bin/python scripts/settings_page.py > docs/settings.md

clean:  ## Remove what setup and tests made; the platform's data stays.
	rm -rf .venv .venv-checkov .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
