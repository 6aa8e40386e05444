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
# Debian packages: the voices that the synthesis tests speak with.
VOICES := espeak-ng flite

.DEFAULT_GOAL := help
.PHONY: help demo test lint wheel clean voices
.NOTPARALLEL:

help: ## list these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1|/' | \
	    while IFS='|' read -r name text; do printf '  %-12s %s\n' "$$name" "$$text"; done

demo: .venv/installed ## transcribe the clips in examples/, or FILE=path, with the embedded model
	$(if $(FILE)$(CLIPS),,$(error no clips in examples/: name one with FILE=path))
	$(BIN)/canvas-asr transcribe $(WATCH) $(if $(FILE),"$(FILE)",$(CLIPS))

test: .venv/installed-dev voices ## run the tests (ARGS="-k audio" for some of them)
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
voices:
	@missing=; for voice in $(VOICES); do command -v $$voice >/dev/null || missing="$$missing $$voice"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing && exit 0; \
	fi; \
	echo "Not installed:$$missing. Tests that need them will be skipped (Debian: apt-get install$$missing)." >&2
