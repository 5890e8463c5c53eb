# make agent [ASK="..."]   sets everything up, then answers on this repository; without ASK opens the terminal agent
# make test                sets everything up, then checks format, lint and types and runs the tests
#
# Both need Python 3.11 or newer (name one with PYTHON=/path/to/python3.12) and are safe to run again.

.PHONY: agent test

# The question travels in the environment, unexpanded: make and the shell must not touch its quotes, $ or ?.
override ASK := $(value ASK)
export ASK

agent: .venv/agent.stamp
	@if [ -n "$$ASK" ]; then exec .venv/bin/holdfast run --workspace . -- "$$ASK"; else exec .venv/bin/holdfast chat; fi

# One thread a worker: the tests have two workers, and small tensors gain nothing from more.
test: .venv/test.stamp
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist worksteal

.venv/agent.stamp: pyproject.toml
	@.ci/venv . $@

.venv/test.stamp: pyproject.toml
	@.ci/venv ".[dev]" $@
