# SPDX-License-Identifier: GPL-3.0-or-later
# Every target sets up what it needs by itself on a fresh Debian 12 or Ubuntu (.ci/setup).

SHELL := /bin/sh
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest -q
SUDO := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)

# All rings together must end within this time.
TEST_BOUND := 40m

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test rings test-unit test-root test-vm lint bench lock clean

help:
	@echo 'make demo       break a real Debian disk image, mend it, prove it (root)'
	@echo 'make test       all rings of tests, within $(TEST_BOUND)'
	@echo 'make test-unit  pure tests and linters; make test-root: real tools; make test-vm: whole machines'
	@echo 'make lint       the linters alone; make bench: the benchmarks; make clean'

.venv/ready: requirements.lock pyproject.toml .ci/setup
	.ci/setup

demo: .venv/ready
	$(SUDO) .venv/bin/rescue-agent demo

test: .venv/ready
	timeout --foreground -k 60s $(TEST_BOUND) $(MAKE) --no-print-directory rings

rings: test-unit test-root test-vm

test-unit: .venv/ready
	$(PYTEST) tests/unit

test-root: .venv/ready
	$(SUDO) $(PYTEST) -n 2 --dist loadfile tests/root

# pytest ends with 5 when a ring has no test yet.
test-vm: .venv/ready
	$(SUDO) $(PYTEST) tests/vm || [ $$? -eq 5 ]

lint: .venv/ready
	$(PYTEST) tests/unit/test_linters.py

bench: .venv/ready
	$(SUDO) $(PYTEST) -s tests/benchmarks/bench_*.py

# Takes what pip resolves today for the bounds in pyproject.toml.
lock:
	rm -rf .venv-lock
	python3 -m venv .venv-lock
	.venv-lock/bin/pip install -q '.[test]' hatchling editables
	.venv-lock/bin/pip uninstall -q -y rescue-agent
	{ echo '# Everything that is needed to run and to test, pinned. Made anew with: make lock'; \
		.venv-lock/bin/pip freeze; } > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-lock .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find rescue_agent tests -name __pycache__ -type d -prune -exec rm -rf {} +
