# Both `make demo` and `make test` create .venv if it is missing.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help demo test test-all bench audit clean

help:
	@echo "make demo      trains on real images and draws what it learned"
	@echo "make test      lint, types and the fast tests"
	@echo "make test-all  the slow tests, and the coverage of all tests"
	@echo "make bench     time and memory beside what people use"
	@echo "make audit     errors beside those of what people use"

demo: .venv/.installed
	$(BIN)/python -m softjax demo

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow" --cov --cov-report= --cov-fail-under=0

# Its coverage data is added to that of `make test`; the threshold is for both together.
test-all: .venv/.installed
	$(PYTEST) -m slow --cov --cov-append --cov-report=term

bench: .venv/.installed
	$(BIN)/python -m softjax bench --json bench.json --output bench.png

audit: .venv/.installed
	$(BIN)/python -m softjax audit

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv
