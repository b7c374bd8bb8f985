PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

QUICK :=

.PHONY: bench bench-passing bench-reload demo test install lint
install:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[test]'

demo: install
	$(BIN)/python -I examples/demo.py

test: install
	$(BIN)/pytest

lint:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[test,lint]'
	.ci/lint $(BIN)

bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[bench]'
	$(BIN)/python benchmarks/report.py $(if $(QUICK),--quick)

bench-passing: install
	$(BIN)/python benchmarks/bench_passing.py $(if $(QUICK),--quick)

RELOADS := 3

bench-reload: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[bench-reload]'
	$(BIN)/python benchmarks/bench_reload.py --reloads $(RELOADS)
	$(BIN)/python benchmarks/bench_overhead.py
