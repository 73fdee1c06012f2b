# The one list of commands. `make` alone prints it; every target works from a fresh clone.
# Needs GNU make 4 and python3.11. Only relative paths are used, so the clone may lie anywhere.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON3 ?= python3.11
VENV ?= .venv
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install -qq --no-input --progress-bar off -c constraints/dev.txt
ENV_STAMP := $(VENV)/.installed
ENV_INPUTS := $(filter-out constraints/bench%.txt constraints/clients.txt,$(wildcard constraints/*.txt)) server/pyproject.toml client/pyproject.toml

# Words that codespell takes for others: a class of sympy, an instruction set of Arm.
NOT_MISSPELT := unequality,sme

# What the tests use beyond pip: the command, and the Debian package that brings it.
SYSTEM_TOOLS := ps:procps strace:strace promtool:prometheus systemd-analyze:systemd \
  rsyslogd:rsyslog gdb:gdb g++:g++ swtpm:swtpm tpm2_unseal:tpm2-tools \
  fail2ban-server:fail2ban nft:nftables ip:iproute2

# The same for what is no command: a file, and the package that brings it.
SYSTEM_FILES := /usr/lib/*/rsyslog/imrelp.so:rsyslog-relp

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: env
env: $(ENV_STAMP) ## create .venv and install the pinned packages (quick when nothing changed)

# torch comes first and by this exact request: any looser one may bring a build of several gigabytes.
# The stamp is written last, so a broken installation is never taken for a whole one.
$(ENV_STAMP): $(ENV_INPUTS)
	@command -v "$(PYTHON3)" >/dev/null || { \
	  echo "make: $(PYTHON3) is not on the PATH"; \
	  echo "hint: Debian 12 has it as python3.11 with python3.11-venv; or name another: make env PYTHON3=/path/to/python3.11"; \
	  exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "env: creating $(VENV)"; "$(PYTHON3)" -m venv $(VENV); }
	@echo "env: pip and setuptools"
	@$(PIP) pip setuptools
	@echo "env: torch"
	@$(PIP) torch==2.13.0
	@echo "env: tools, libraries, pericard-server and pericard-client (editable)"
	@$(PIP) --no-build-isolation -r constraints/tools.txt -e './server[onnx,env]' -e './client[plot,verify]'
	@$(PYTHON) -m pip check
	@touch $@

.PHONY: check
check: $(ENV_STAMP) ## format, lint, types, import contracts, spelling, YAML, the shell script
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -c 'from importlinter.cli import lint_imports_command as main; main()' --no-logo
	$(PYTHON) -m codespell_lib --skip './build,./dist,./tests/vectors,*.egg-info' --ignore-words-list $(NOT_MISSPELT) .
	$(PYTHON) -m yamllint --strict .
	bash -n .ci/run

# The inference clients of others, unmodified: only the tests' own processes see them.
CLIENTS := build/test-clients
$(CLIENTS)/.installed: constraints/clients.txt | $(ENV_STAMP)
	@echo "test: inference clients"
	@rm -rf $(CLIENTS)
	@$(PYTHON) -m pip install -qq --no-input --progress-bar off --no-deps --target $(CLIENTS) -r constraints/clients.txt
	@touch $@

.PHONY: test
test: $(ENV_STAMP) $(CLIENTS)/.installed ## every test, with coverage (ARGS='tests/unit -k name' for some of them, without)
ifdef ARGS
	$(PYTHON) -m pytest $(ARGS)
else
	$(PYTHON) -m coverage erase
	$(PYTHON) -m coverage run -m pytest -n auto --maxprocesses 4 --dist loadfile
	$(PYTHON) -m coverage combine -q
	$(PYTHON) -m coverage report
endif

.PHONY: test-cuda
test-cuda: $(ENV_STAMP) ## the tests that need a CUDA device (fails where there is none)
	$(PYTHON) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "test-cuda: torch sees no CUDA device")'
	$(PYTHON) -m pytest -m gpu tests/device

.PHONY: demo
demo: $(ENV_STAMP) ## seal the ECG model, serve it, ask it, verify the evidence (ONCE=1: then stop)
	$(PYTHON) examples/demo.py $(if $(ONCE),--once)

# A benchmark is a folder under tests/bench/ whose __main__.py says in its first line what it measures. Peers that one
# compares with never enter .venv: only their own processes see them. BENCH=serve installs its own, each apart.
PEERS := build/bench-peers
$(PEERS)/.installed: constraints/bench.txt | $(ENV_STAMP)
	@echo "bench: peers"
	@/sbin/ldconfig -p | grep -q libsodium || { echo "bench: tensorizer needs libsodium (Debian: libsodium23)"; exit 1; }
	@rm -rf $(PEERS)
	@$(PYTHON) -m pip install -qq --no-input --progress-bar off --no-deps --target $(PEERS) -r constraints/bench.txt
	@touch $@

.PHONY: bench
ifdef BENCH
bench: $(ENV_STAMP) $(if $(filter load,$(BENCH)),$(PEERS)/.installed)
	@test -f tests/bench/$(BENCH)/__main__.py || { echo "bench: there is no $(BENCH); 'make bench' lists them"; exit 1; }
	PYTHONPATH=tests/bench:tests/bench/serve $(PYTHON) tests/bench/$(BENCH) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)
else
bench: ## run a benchmark (BENCH=load ROUNDS=7); without BENCH, list them
	@for entry in tests/bench/*/__main__.py; do name=$${entry%/__main__.py}; \
	  printf 'make bench BENCH=%-8s %s\n' "$${name##*/}" "$$(sed -n '1s/^"""//p' $$entry)"; done
endif

.PHONY: format
format: $(ENV_STAMP) ## rewrite the code in the house style, with the safe fixes of the linter
	$(PYTHON) -m ruff check --fix-only .
	$(PYTHON) -m ruff format .

.PHONY: vectors
vectors: $(ENV_STAMP) ## make every file under tests/vectors/ anew
	@set -e; for generator in $(sort $(wildcard tests/vectors/generate/*.py)); do \
	  echo "vectors: $$generator"; $(PYTHON) "$$generator"; done

.PHONY: openapi
openapi: $(ENV_STAMP) ## make docs/spec/http-api.openapi.json anew from the application
	$(PYTHON) tests/contract/generate_openapi.py

.PHONY: clean
clean: ## remove what builds and tests left behind; .venv stays
	rm -rf build dist .demo .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf .coverage .coverage.* server/build client/build
	find server client tests examples conda-recipe -name __pycache__ -type d -prune -exec rm -rf {} +

# Services are never started: a policy that forbids it stands while apt-get runs, if the host has none of its own.
.PHONY: system
system: ## as root on Debian: install what the tests need beyond pip, where it is missing
	@set -e; missing=; \
	for tool in $(SYSTEM_TOOLS); do \
	  command -v "$${tool%%:*}" >/dev/null || missing="$$missing $${tool##*:}"; done; \
	for file in $(SYSTEM_FILES); do \
	  ls $${file%%:*} >/dev/null 2>&1 || missing="$$missing $${file##*:}"; done; \
	"$(PYTHON3)" -c 'import ensurepip' 2>/dev/null || missing="$$missing python3.11-venv"; \
	if [ -z "$$missing" ]; then echo "system: nothing is missing"; exit 0; fi; \
	echo "system: missing:$$missing"; \
	if [ "$$(id -u)" -ne 0 ]; then echo "hint: run 'make system' as root, or install them"; exit 1; fi; \
	policy=/usr/sbin/policy-rc.d; \
	if [ ! -e $$policy ]; then \
	  trap 'rm -f '$$policy EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod 755 $$policy; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get update -qq; \
	apt-get install -y -qq --no-install-recommends $$missing </dev/null >/dev/null
