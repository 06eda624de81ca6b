# Each target sets up what it needs; `make` alone lists them.

VENV := .venv
BIN := $(VENV)/bin
PYTHON :=
PROFILE :=
VERSIONS := -c constraints.txt

# It would empty every figure of an executed notebook, without an error.
unexport MPLBACKEND

# nbval runs two notebooks at a time: a thread each, on the device of stored outputs. A
# finding that does not hold stops it, whatever parameters the notebook's metadata names.
NBVAL_ENV := FMKIT_DEVICE=cpu FMKIT_FINDINGS=stop OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout 300 -n 2 --dist loadscope

# Two tests at a time, a thread each. Chapters leave memory to their process, so each
# device has processes of its own.
ON_DEVICES := tests/devices/test_chapters.py
EACH_DEVICE := $(shell sed -n 's/^def \(test_[a-z0-9_]*\).*/\1/p' $(ON_DEVICES))
DEVICES_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# JupyterLab opens on the README, rendered; its links open the chapters. Without the flag
# it refuses to run as root, which one is in a container.
LAB := --LabApp.default_url=/lab/tree/README.md \
       --LabApp.app_settings_dir='$(CURDIR)/tools/lab' \
       $(if $(filter 0,$(shell id -u)),--allow-root)

# setuptools would warn, in ten lines, that fmkit is installed from where it lies.
PIP := PYTHONWARNINGS='ignore:Editable installation' \
       $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: help env fetch lab execute book html pdf clean
.PHONY: test lint unit devices nbval smoke test-python newest mutants bench

help:
	@echo "make book      execute every chapter and build the pages (PROFILE=smoke: tiny)"
	@echo "make html      build the pages from the outputs stored in the notebooks"
	@echo "make pdf       print the pages as _build/book.pdf (needs Chromium)"
	@echo "make lab       open JupyterLab on the chapters"
	@echo "make execute   execute the chapters whose outputs are stale, in place"
	@echo "make fetch     fetch data and weights"
	@echo "make env       set up $(VENV) for reading and running"
	@echo "make clean     remove all that was made here, $(VENV) too"
	@echo
	@echo "make test      all that continuous integration checks, in five stages:"
	@echo "               make lint, make unit, make devices, make nbval, make smoke"
	@echo "make test-python PYTHON=3.12   unit and smoke, with that Python"
	@echo "make newest    the book with the newest versions that are allowed"
	@echo "make mutants   plant every known bug and see that a test catches it"
	@echo "make bench     every benchmark, side by side with its peer"

$(VENV)/.python:
	@sh tools/venv.sh $(VENV) $(PYTHON)
	@$(PIP) install $(VERSIONS) --upgrade pip
	@touch $@

# A stamp for each set of extras; pip adds a set to those that are there.
READ := $(VENV)/.read
TEST := $(VENV)/.test
BENCH := $(VENV)/.bench
$(READ): extras := book,lab
$(TEST): extras := book,lab,test
$(BENCH): extras := runs,bench
$(READ) $(TEST) $(BENCH): pyproject.toml constraints.txt | $(VENV)/.python
	@echo "Installing fmkit[$(extras)] into $(VENV): some minutes"
	@$(PIP) install $(VERSIONS) -e '.[$(extras)]'
	@touch $@

env: $(READ)

fetch: env
	@$(BIN)/fmkit fetch

lab: env
	@$(BIN)/python -m fmkit.runs.machine $(BIN)/jupyter lab $(LAB)

execute: fetch
	@$(BIN)/fmkit execute

book: fetch
	@$(BIN)/fmkit book $(if $(PROFILE),-f profiles/$(PROFILE).yaml)

html: env
	@$(BIN)/fmkit html

pdf: env
	@$(BIN)/fmkit pdf

test: lint unit devices nbval smoke

lint: $(TEST)
	@echo "Lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

unit: $(TEST) fetch html
	@echo "Unit tests and guards of the chapters"
	@$(BIN)/pytest tests --ignore=tests/devices -n 2 --dist loadscope

devices: $(TEST) fetch
	@echo "Chapters and science on a pretended GPU, on a pretended Mac, in bfloat16"
	@$(DEVICES_ENV) $(BIN)/pytest tests/devices -n 2 --ignore=$(ON_DEVICES)
	@for one in $(EACH_DEVICE); do \
	  $(DEVICES_ENV) $(BIN)/pytest $(ON_DEVICES)::$$one -n 2 || exit 1; \
	done

nbval: $(TEST) fetch
	@echo "Every chapter again, compared with its stored outputs"
	@$(NBVAL_ENV) $(BIN)/pytest $(NBVAL) chapters

smoke:
	@echo "The book at its smallest"
	@$(MAKE) --no-print-directory book PROFILE=smoke

test-python:
	@test -n "$(PYTHON)" || { echo "Say which: make test-python PYTHON=3.12" >&2; exit 1; }
	@$(MAKE) --no-print-directory VENV=.venv-$(PYTHON) unit smoke

newest:
	@$(MAKE) --no-print-directory VENV=.venv-newest VERSIONS=--upgrade book

mutants: $(TEST) fetch
	@$(BIN)/python -m tools.mutants

bench: $(BENCH) fetch
	@for file in bench/[!_]*.py; do \
	  $(BIN)/python -m bench.$$(basename $$file .py) || exit 1; \
	done

clean:
	rm -rf $(VENV) .venv-* _build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
