.PHONY: check test format settings

export VENV ?= .venv

check:
	@bash scripts/test.sh --check

test:
	@bash scripts/test.sh

format:
	@bash scripts/setup.sh
	@"$(VENV)/bin/ruff" check --fix .
	@"$(VENV)/bin/ruff" format .

# the files that list the model's settings: run it when a class of settings has changed
settings:
	@bash scripts/setup.sh
	@PYTHONPATH=scripts "$(VENV)/bin/python" -m luna_tools.inspection.settings_page
