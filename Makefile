# Everything a fresh machine needs is Python >= 3.11 with pip and venv, and make.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := supervisor worker shared checkpoint
CODE := $(PACKAGES) tests benchmarks

.PHONY: setup demo test fast lint types boundaries unit slow wheel clean

setup: .venv/installed build/links/memsup

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "memsup needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@touch $@

# mypy does not see through setuptools' mapping of the four folders; a folder of links shows it the same names.
build/links/memsup:
	@mkdir -p $@
	@for package in $(PACKAGES); do ln -sfn ../../../$$package $@/$$package; done

demo: setup
	$(BIN)/memsup start --tier auto --wait

test: lint types boundaries unit slow wheel

fast: lint types boundaries unit

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: setup
	$(BIN)/mypy $(PACKAGES:%=-p memsup.%)

boundaries: setup
	$(BIN)/lint-imports --no-cache

unit: setup
	$(BIN)/pytest -m 'not slow'

slow: setup
	$(BIN)/pytest -m slow

# The wheel in a venv of its own, far from this folder.
wheel: setup
	rm -rf build/wheel build/bdist* build/lib && $(BIN)/python -m build --wheel --outdir build/wheel . > build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	$(PYTHON) -m venv --clear build/wheel-venv
	build/wheel-venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt build/wheel/memsup-*.whl
	cd / && $(CURDIR)/build/wheel-venv/bin/memsup --help
	@rm -rf build/wheel-venv

clean:
	rm -rf .venv build dist *.egg-info
