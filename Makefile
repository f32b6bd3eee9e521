# make train   set up .venv, then pretrain `tiny` on the embedded sample data (minutes on two cores)
# make test    set up .venv, then the checks that CI runs
# make gpu     GPU tests and benchmarks into bench/results/<device>/; PARTS=tests,kernels,...
#              takes some of them, PYTHON=python3 WHEELS=.whl a machine without a network

PYTHON ?= python3
WHEELS ?=
PARTS ?= tests,kernels,train,profile,inference
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN := runs/make-train

export TOKENIZERS_PARALLELISM ?= true

.PHONY: train test test-all lint gpu clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

train: $(READY)
	rm -rf $(RUN)
	$(BIN)/python launch/train.py --ds_config zero2.json --output_dir $(RUN) \
	  --epochs 2 --eval_every 250 --sample_every 500 --set log_every=50

test: $(READY) lint
	$(BIN)/python -m pytest -m 'not slow and not gpu'

test-all: $(READY) lint
	$(BIN)/python -m pytest -m 'not gpu'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

ifdef WHEELS
GPU_PYTHON := PYTHONPATH=site:kernels:. $(PYTHON)
site: $(wildcard $(WHEELS)/*.whl)
	$(PYTHON) -m pip install -q --no-index --no-deps --no-compile --upgrade --target site $^
	touch $@
GPU_READY := site
else
GPU_PYTHON := $(BIN)/python
GPU_READY := $(READY)
endif

gpu: $(GPU_READY)
	$(GPU_PYTHON) -m bench.gpu --parts $(PARTS) $(if $(OUT),--output $(OUT)) $(GPU_FLAGS)

clean:
	rm -rf $(VENV) site runs build *.egg-info
