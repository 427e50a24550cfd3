.PHONY: check test format

export VENV ?= .venv

check:
	@bash scripts/test.sh --check

test:
	@bash scripts/test.sh

format:
	@bash scripts/setup.sh
	@"$(VENV)/bin/ruff" check --fix .
	@"$(VENV)/bin/ruff" format .
