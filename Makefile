# make train   set up .venv, pretrain `tiny` on the embedded sample data, teach it to answer, and
#              chat with it (minutes on two cores)
# make demo    the recipe `tiny`: pretraining, SFT, LoRA, DPO and GRPO, and a report of all of it; a
#              second call makes what is missing
# make test    set up .venv, then the checks that CI runs
# make faults  the tests of docs/faults.md, slow ones too: what happens under each fault
# make guide   the guide of docs/guide as a site in build/guide
# make gpu     GPU tests, compute-sanitizer and benchmarks into bench/results/<device>/ or OUT=FOLDER;
#              PARTS=tests,kernels,... takes some of them, PARTS=correctness (or speed, breadth, ...)
#              what fits one call of ten minutes; ARCHIVE=FILE.tar.gz holds all results of the call;
#              PYTHON=python3 WHEELS=.whl for a machine without a network

PYTHON ?= python3
WHEELS ?=
PARTS ?= correctness,speed,breadth,others,ranks
ARCHIVE ?=
OUT ?=
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal --benchmark-disable
PIP := $(BIN)/python -m pip install -c constraints.txt
CORE := $(VENV)/.core
READY := $(VENV)/.ready
RUN := runs/make-train
DEMO := runs/make-demo

export TOKENIZERS_PARALLELISM ?= true

.PHONY: train demo test test-all faults lint guide gpu clean

$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV) with PyTorch, DeepSpeed and what they need: once, some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --quiet --upgrade pip
	$(PIP) torch setuptools
	$(PIP) -e .
	@touch $@

$(READY): $(CORE)
	@echo "Adding to $(VENV) what the tests need: once, some minutes"
	$(PIP) -e '.[dev]'
	@touch $@

train: $(CORE)
	@rm -rf $(RUN)
	$(BIN)/python launch/train.py --ds_config zero2.json --output_dir $(RUN)/text \
	  --eval_every 150 --sample_every 225 --set log_every=50
	$(BIN)/python launch/train.py --ds_config zero2.json --stage sft \
	  --from_checkpoint $(RUN)/text --output_dir $(RUN)/chat --eval_every 200 --set log_every=50 \
	  --set optimizer=Muon --learning_rate 4e-3
	$(BIN)/python launch/chat.py --checkpoint $(RUN)/chat --set temperature=0 \
	  --ask "What is the river of Lumor called?" "Where does Anya live?" "塔恩的房子是什么颜色？" "7 加 5 是多少？"
	@echo "Go on with:  $(BIN)/python launch/chat.py --checkpoint $(RUN)/chat"

demo: $(CORE)
	$(BIN)/python launch/pipeline.py tiny --output_dir $(DEMO)

test: $(READY) lint
	$(PYTEST) -m 'not slow and not gpu'

test-all: $(READY) lint
	$(PYTEST) -m 'not gpu'

faults: $(READY)
	$(PYTEST) -m 'faults and not gpu'

guide: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Read it:  build/guide/index.html"

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
	$(GPU_PYTHON) -m bench.gpu --parts $(PARTS) $(if $(ARCHIVE),--archive $(ARCHIVE)) \
	  $(if $(OUT),--output $(OUT)) $(GPU_FLAGS)

clean:
	rm -rf $(VENV) site runs build *.egg-info
