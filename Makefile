# Each target sets up what it needs; `make` alone lists them.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
PROFILE :=

# It would empty every figure of an executed notebook, without an error.
unexport MPLBACKEND

# nbval runs two notebooks at a time: a thread each, on the device of stored outputs.
NBVAL_ENV := FMKIT_DEVICE=cpu OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout 300 -n 2 --dist loadscope

.PHONY: help env fetch lab execute book html pdf test bench clean

help:
	@echo "make book      execute every chapter and build the pages (PROFILE=smoke: tiny)"
	@echo "make html      build the pages from the outputs that the notebooks carry"
	@echo "make pdf       print them as _build/book.pdf (needs Chromium)"
	@echo "make lab       open JupyterLab on the chapters"
	@echo "make execute   execute the chapters whose outputs are stale, in place"
	@echo "make test      all that continuous integration checks"
	@echo "make bench     every benchmark, side by side with its peer"
	@echo "make fetch     fetch data and weights"
	@echo "make env       set up $(VENV)"
	@echo "make clean     remove all that was made here, $(VENV) too"

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@for python in python3 python3.13 python3.12 python3.11 python; do \
	  if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	    2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Python 3.11, 3.12 or 3.13 is needed, and none is on the PATH." >&2; exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$found: some minutes" && $$found -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c constraints.txt --upgrade pip
	@$(BIN)/python -m pip install -c constraints.txt -e '.[book,lab,test,bench]'
	@touch $@

fetch: env
	@$(BIN)/fmkit fetch

lab: env
	@$(BIN)/jupyter lab chapters

execute: fetch
	@$(BIN)/fmkit execute

book: fetch
	@$(BIN)/fmkit book $(if $(PROFILE),-f profiles/$(PROFILE).yaml)

html: env
	@$(BIN)/fmkit html

pdf: env
	@$(BIN)/fmkit pdf

test: fetch html
	@echo "Lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "Unit tests and guards of the chapters"
	@$(BIN)/pytest tests -n 2 --dist loadscope
	@echo "Every chapter again, compared with its stored outputs"
	@$(NBVAL_ENV) $(BIN)/pytest $(NBVAL) chapters
	@echo "The book at its smallest"
	@$(MAKE) --no-print-directory book PROFILE=smoke

bench: fetch
	@for file in bench/[!_]*.py; do \
	  $(BIN)/python -m bench.$$(basename $$file .py) || exit 1; \
	done

clean:
	rm -rf $(VENV) _build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
