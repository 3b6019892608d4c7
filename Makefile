# Two commands: `make sample` draws digits, `make test` runs what CI runs. Both set up .venv the first time, from the files in
# locks/, whose hashes pip checks. LOCK=no takes the versions of constraints.txt instead: for a build of torch from elsewhere.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

.PHONY: sample test lint setup bench docs clean
setup: .venv/built

.venv/installed: requirements.txt constraints.txt locks/install.py $(wildcard locks/*.txt)
	$(PYTHON) -m venv .venv
	$(BIN)/python locks/install.py $(if $(filter no,$(LOCK)),--unchecked)
	touch $@

NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml gms_fast/version.py
.venv/built: .venv/installed $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

sample: setup
	$(BIN)/gms-fast sample --n 64 --steps 10 --out samples.png --force

CPP = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

test: lint setup
	$(BIN)/pytest -n 2 --dist worksteal

bench: setup
	for op in gms_step sample_mixture fit_mixture philox affine_noise; do \
		$(BIN)/python -m bench.speed.$$op --out bench/results/$${op}_cpu.json || exit 1; done
	$(BIN)/python -m bench.experiments.wasserstein > bench/results/wasserstein.md
	$(BIN)/python -m bench.gpu.predict --out bench/results/h200_predicted.json
	$(BIN)/python -m bench.docs.readme

docs: setup  # into site/; a warning or a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean

clean:
	rm -rf .venv build site *.egg-info gms_fast/_C*.so
