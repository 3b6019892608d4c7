# Two commands: `make sample` draws digits, `make test` runs what CI runs. Both set up .venv the first time.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)

.PHONY: sample test setup bench clean
setup: .venv/built

.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	# A CUDA build of torch brings the Triton it was made for; the CPU build brings none.
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check triton==3.6.0
	touch $@

NATIVE := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml
.venv/built: .venv/installed $(NATIVE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@

sample: setup
	$(BIN)/gms-fast sample --n 64 --steps 10 --out samples.png --force

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pytest

bench: setup
	for op in gms_step sample_mixture fit_mixture philox affine_noise; do \
		$(BIN)/python bench/$$op.py --out bench/results/$${op}_cpu.json || exit 1; done
	$(BIN)/python bench/wasserstein.py > bench/results/wasserstein.md
	$(BIN)/python bench/predict.py --out bench/results/h200_predicted.json
	$(BIN)/python bench/report.py

clean:
	rm -rf .venv build *.egg-info gms_fast/_C*.so
