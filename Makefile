PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

QUICK :=

# What the installed package is made from; its Python files are used where they are.
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.[ch]' -o -name '*.cpp')
INSTALLED := $(VENV)/installed$(if $(PYFORKFD_DEBUG),-debug)$(if $(PYFORKFD_SANITIZE),-$(PYFORKFD_SANITIZE))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: bench bench-passing bench-reload bench-tools demo test install lint
install: $(INSTALLED)
$(INSTALLED): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	touch $(VENV)/built  # before the build: what is edited meanwhile is newer
	$(PIP) --editable '.[test]'
	rm -f $(VENV)/installed* && mv $(VENV)/built $@

demo: install
	$(BIN)/python -I examples/demo.py

test: install
	$(BIN)/pytest

lint: install
	$(PIP) --editable '.[lint]'
	.ci/lint $(BIN)

bench: install
	$(PIP) --editable '.[bench]'
	$(BIN)/python benchmarks/report.py $(if $(QUICK),--quick)

bench-passing: install
	$(BIN)/python benchmarks/bench_passing.py $(if $(QUICK),--quick)

bench-tools: install
	$(PIP) --editable '.[bench,bench-tools]'
	$(BIN)/python benchmarks/bench_tools.py $(if $(QUICK),--quick)

RELOADS := 3

bench-reload: install
	$(PIP) --editable '.[bench-reload]'
	$(BIN)/python benchmarks/bench_reload.py --reloads $(RELOADS)
	$(BIN)/python benchmarks/bench_overhead.py
