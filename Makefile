# Both `make demo` and `make test` create .venv if it is missing.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help demo test test-all bench audit clean

help:
	@echo "make demo      trains on real images and draws what it learned"
	@echo "make test      lint, types and the fast tests"
	@echo "make test-all  all tests, the slow ones too, and their coverage"
	@echo "make bench     time and memory beside what people use"
	@echo "make audit     errors beside those of what people use"

demo: .venv/.installed
	$(BIN)/python -m softjax demo

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow"

# Coverage costs the fast tests a third of their time, so it is measured here, over all tests.
test-all: .venv/.installed
	$(PYTEST) --cov --cov-report=term

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
