# `make quickstart` and `make test` need no other set-up. Both install the versions of constraints.txt into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles a module when it is first imported; compiling all of them takes a minute.
INSTALL := $(BIN)/pip --quiet --disable-pip-version-check install --no-compile --constraint constraints.txt --editable
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart test check lint docs newest clean

quickstart: $(VENV)/installed
	$(BIN)/python -m cifarbn.train experiment=quickstart
	$(BIN)/python -m cifarbn.report multirun_outputs/quickstart

# Runs the checks next to the tests, and prints their output after that of the tests.
test: $(VENV)/installed-for-tests
	@make --no-print-directory check > $(VENV)/check.log 2>&1 & \
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$!; checks=$$?; cat $(VENV)/check.log; test "$$tests $$checks" = "0 0"

check: $(VENV)/installed-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	git ls-files -z | xargs -0 $(BIN)/codespell

lint: $(VENV)/installed-for-tests
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

docs: $(VENV)/installed-for-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Test with the newest version of every dependency, in .venv-newest; if the tests pass, these become the constraints.
newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/pip install --editable ".[test,joblib,ray,slurm]"
	touch .venv-newest/installed .venv-newest/installed-for-tests
	$(MAKE) test VENV=.venv-newest
	.venv-newest/bin/python .ci/constraints.py > constraints.txt

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) .
	touch $@

$(VENV)/installed-for-tests: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) ".[test]"
	touch $(VENV)/installed $@

$(VENV)/installed-for-docs: $(VENV)/installed
	$(INSTALL) ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) .venv-newest build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
