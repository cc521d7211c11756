# Both `make demo` and `make test` create .venv if it is missing.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
# The core tests: values and derivatives in all modes, in shard_map, under plain jit over a mesh, on explicit axes, and
# the compilation cache.
CORE := tests/test_linear.py tests/test_derivatives.py tests/test_partition.py tests/test_mesh.py tests/test_explicit.py \
	tests/test_cache.py
CORE_NAMES := label_out_of_range or (pairs_of_classes and none) or (ragged_blocks and float32) or \
	(temperature_has and decode) or (every_mode_and_transformation and vocabulary) or \
	over_classes_and_examples or taken_inside or batch_of_sequences or step_of_training or found_again
# The newest Python of this machine that JAX has packages for, and the version that it has.
NEWEST = $(shell bash tests/pythons.sh | tail -n 1)
NEWEST_TESTS ?= -m "not slow"

.PHONY: help demo test test-all test-oldest test-newest test-newest-core test-imports docs bench audit compilers clean

help:
	@echo "make demo      trains on real images and draws what it learned"
	@echo "make test      lint, types and the fast tests"
	@echo "make test-all  all tests, the slow ones too, and their coverage"
	@echo "make test-oldest  the core tests with the oldest JAX that is supported"
	@echo "make test-newest  the fast tests with the newest Python of this machine and the newest packages"
	@echo "make test-imports installs and imports the library with every Python of this machine"
	@echo "make docs      the pages, into the folder site, with warnings as errors"
	@echo "make bench     time and memory beside what people use"
	@echo "make audit     errors beside those of what people use"
	@echo "make compilers estimates of the compilers of TPUs and the H100, without the devices"

demo: .venv/.installed
	$(BIN)/python -m softjax demo

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow" $(COVERAGE)

# Coverage costs the fast tests a third of their time, so it is measured here, over all tests.
test-all: .venv/.installed
	$(MAKE) test COVERAGE="--cov --cov-report= --cov-fail-under=0"
	$(PYTEST) -m slow --cov --cov-append --cov-report=term
	$(MAKE) test-oldest
	$(MAKE) test-newest

docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict

# Warnings of the oldest versions are no errors.
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest -n 2 -q -W ignore $(CORE) -k "$(CORE_NAMES)"

# In an environment of its own, without pins: the newest JAX, Flax and Optax that pip gives.
test-newest:
	@echo "The newest Python here: $(NEWEST)"
	@case "$(NEWEST)" in 3.11*) echo "There is no Python newer than 3.11, which JAX 0.11 and newer need: not tested.";; esac
	test -d .venv-newest || $(lastword $(NEWEST)) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		-e '.[test]'
	.venv-newest/bin/python -c "import jax, flax, optax; print('JAX', jax.__version__, 'Flax', flax.__version__)"
	.venv-newest/bin/python -m pytest -n 2 --dist worksteal -q $(NEWEST_TESTS)

test-newest-core:
	$(MAKE) test-newest NEWEST_TESTS='$(CORE) -k "$(CORE_NAMES)"'

# As users install it: no tests, no extras, and another folder than the repository's.
test-imports:
	bash tests/imports.sh

bench: .venv/.installed
	$(BIN)/python -m benchmarks --json bench.json --output bench.png

audit: .venv/.installed
	$(BIN)/python -m softjax audit

# Environments of their own: the compilers are large, and JAX would look for their devices in every other command.
compilers: .venv-tpu/.installed .venv-gpu/.installed
	for kind in v5e v5p v6e; do .venv-tpu/bin/python -m benchmarks --compile-for $$kind || exit 1; done
	.venv-gpu/bin/python -m benchmarks --compile-for h100

.venv-tpu/.installed: EXTRA := tpu
.venv-gpu/.installed: EXTRA := cuda12
.venv-tpu/.installed .venv-gpu/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . 'jax[$(EXTRA)]' optax rich
	touch $@

.venv-docs/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

.venv-oldest/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e . \
		hypothesis optax pytest pytest-xdist
	touch $@

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-docs .venv-oldest .venv-newest .venv-tpu .venv-gpu site
