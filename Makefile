# Everything works in .venv of this checkout. A second call of any target is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install install-mm demo test lint clean

help:
	@echo "make install     virtual environment with the library, the CPU teacher and the development tools"
	@echo "make install-mm  adds mmdetection and mmsegmentation (compiles mmcv: about 9 minutes on 2 cores)"
	@echo "make demo        pretrains and probes a tiny CoDe-MAE on synthetic pairs; writes runs/demo/report.html"
	@echo "make test        installs everything, then ruff, mypy and pytest"
	@echo "make lint        ruff and mypy alone"

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert (3, 10) <= sys.version_info < (3, 13), f"Python 3.10 to 3.12 is needed, this is {sys.version.split()[0]}; try make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.installed-mm: requirements-mm.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-build-isolation -r requirements-mm.txt
	@touch $@

install: $(VENV)/.installed

install-mm: $(VENV)/.installed-mm

demo: install
	$(BIN)/python pretrain/demo.py --out runs/demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install-mm
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
