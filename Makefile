# Everything a fresh machine needs is Python >= 3.11 with pip and venv, and make.
PYTHON ?= python3
BIN := .venv/bin
PACKAGES := supervisor worker shared checkpoint
CODE := program $(PACKAGES) tests benchmarks

# Many tests wait for a process that loads or for a clock: one more at a time than there are cores. Each core takes the next ones
# when it is free, and the long ones come first (tests/conftest.py).
TOGETHER = $(BIN)/pytest --durations=15 --numprocesses=$(shell expr $$(nproc) + 1) --dist=loadgroup
# They are few, and to collect all the others for them takes as long as some of them.
ALONE = $(BIN)/pytest --durations=5 $(shell grep -rl 'mark\.alone' tests)

# Containers like to set it. A worker that finds nothing compiled takes 10 s in place of 4 to start, each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup links demo test fast nightly lint types boundaries unit suite wheel clean

setup: .venv/installed links

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "memsup needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[demo,dev]'
	@touch $@

# mypy and import-linter do not see through setuptools' mapping of the folders; a folder of links shows them the same names.
links:
	@mkdir -p build/links/memsup
	@for name in $(PACKAGES) program/*.py; do ln -sfn ../../../$$name build/links/memsup/$${name#program/}; done
	@find -L build/links/memsup -maxdepth 1 -type l -delete

demo: setup
	$(BIN)/memsup start --tier auto --wait

test: setup
	$(MAKE) --jobs=2 --output-sync=target lint types boundaries wheel
	$(MAKE) suite

fast: lint types boundaries unit

lint: setup
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: setup
	$(BIN)/mypy -p memsup
	$(BIN)/mypy tests

boundaries: setup
	PYTHONPATH=build/links $(BIN)/lint-imports --no-cache

suite: setup
	$(TOGETHER) -m 'not alone and not nightly'
	$(ALONE) -m 'alone and not nightly'

unit: setup
	$(TOGETHER) -m 'not slow and not alone and not nightly'
	$(ALONE) -m 'alone and not slow and not nightly'

# What takes hours, an emulated machine, or only says again with more repetitions what `test` has said; and property tests on new
# examples, where `test` has the same ones each time.
nightly: setup
	$(BIN)/pytest --durations=15 --hypothesis-profile=nightly -m nightly
	$(TOGETHER) --hypothesis-profile=nightly -m 'not slow and not alone and not nightly'

# The wheel's own files, far from this folder. What it needs is what `setup` has installed from the same pyproject.toml.
wheel: setup
	rm -rf build/wheel build/bdist* build/lib && $(BIN)/python -m build --wheel --outdir build/wheel . > build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps --target build/wheel/site build/wheel/memsup-*.whl
	cd / && PYTHONPATH=$(CURDIR)/build/wheel/site $(CURDIR)/$(BIN)/python -P -c "import sys, memsup.supervisor.cli as cli; \
	    import memsup; memsup.guard; \
	    sys.exit(not cli.__file__.startswith('$(CURDIR)/build/wheel/site/') or cli.main(['--help']))"
	@rm -rf build/wheel/site

clean:
	rm -rf .venv build dist *.egg-info
