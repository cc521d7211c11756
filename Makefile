# Both `make demo` and `make test` create .venv if it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test bench audit clean

help:
	@echo "make demo   trains on real images and draws what it learned"
	@echo "make test   runs every check"
	@echo "make bench  time and memory beside what people use"
	@echo "make audit  errors beside those of what people use"

demo: .venv/.installed
	$(BIN)/python -m softjax demo

test: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term

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
