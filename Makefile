# `make demo` and `make test` are all the set-up there is: both make .venv and install into it first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test check chaos bench cluster clean

demo: $(INSTALLED)
	$(BIN)/graft demo

# Three processes, a file at a time; all that needs the test cluster in one of them, first, as it mostly waits.
test: check
	$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Kills a run at random instants N times and compares every loss and the final state to the bit.
N ?= 100
chaos: $(INSTALLED)
	$(BIN)/python -m tests.chaos $(N)

# A real Slurm of four nodes on this machine, to try graft on, until Ctrl-C. Needs root, slurm-wlm and munge.
cluster: $(INSTALLED)
	$(BIN)/python -m tests.cluster

# Measures graft beside others and writes benchmarks/RESULTS.md; wants an idle machine and, once, the package index for the others.
# BENCH=--quick shows that all of it works, BENCH=--full takes as many pairs as a claim under 3% needs, BENCH=loop takes one.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(BENCH)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv: torch and what it needs are several gigabytes, once"
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
