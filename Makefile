# `make demo` and `make test` each set themselves up in .venv the first time; `make help` lists the rest.

PYTHON ?= python3
# More arguments for pip, say the index that has PyTorch's CPU builds (README).
PIP_ARGS ?=
# More arguments for pytest: make test ARGS="-k audio".
ARGS :=
# make demo FILE=talk.mp3 transcribes that file instead of the clips in examples/.
FILE :=

BIN := .venv/bin
# In a terminal the canvas is shown as it forms.
WATCH = $(shell test -t 2 && echo --show-canvas --canvas-pause 0.08)
INSTALL := $(BIN)/python -m pip install --timeout 180 -c constraints.txt $(PIP_ARGS)
CLIPS := $(sort $(wildcard examples/*.flac examples/*.mp3 examples/*.ogg examples/*.wav))
# Debian packages, each with a program of its name: the synthesis tests speak with the first two, those of the
# server's page look at it in the third, which is 160 MB to fetch.
PROGRAMS := espeak-ng flite chromium

.DEFAULT_GOAL := help
.PHONY: help demo test lint wheel clean programs
.NOTPARALLEL:

help: ## list these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1|/' | \
	    while IFS='|' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

demo: .venv/installed ## transcribe the clips in examples/, or FILE=path, with the embedded model
	$(if $(FILE)$(CLIPS),,$(error no clips in examples/: name one with FILE=path))
	$(BIN)/canvas-asr transcribe $(WATCH) $(if $(FILE),"$(FILE)",$(CLIPS))

test: .venv/installed-dev programs ## run the tests (ARGS="-k audio" for some of them)
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/installed-dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src

wheel: .venv/installed ## build dist/canvas_asr-*.whl, with the embedded model inside
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean: ## remove .venv, builds and caches
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "canvas-asr needs Python 3.10 or newer: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
	    { echo "could not create .venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

.venv/installed: .venv/created pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

# All that .venv/installed holds, and more: so both stamps are fresh.
.venv/installed-dev: .venv/created pyproject.toml constraints.txt
	$(INSTALL) -e ".[dev]"
	@touch .venv/installed $@

# Installs what is missing where that is possible; elsewhere the tests that need it are skipped.
programs:
	@missing=; for name in $(PROGRAMS); do command -v $$name >/dev/null || missing="$$missing $$name"; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq; \
	    for name in $$missing; do \
	        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$name || \
	            echo "apt-get cannot install $$name" >&2; \
	    done; \
	fi; \
	for name in $$missing; do command -v $$name >/dev/null || \
	    echo "Not installed: $$name. Tests that need it will be skipped (Debian: apt-get install $$name)." >&2; \
	done
