PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: test install
install:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[test]'

test: install
	$(BIN)/pytest
