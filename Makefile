# Works from any folder: make -C path/to/fastdiff sample, or make -f path/to/fastdiff/Makefile sample.
# What is installed is remembered by stamps in the virtual environment, so a second run needs no network.
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
ifneq ($(words $(MAKEFILE_LIST) $(ROOT)),2)
$(error this Makefile needs a folder without spaces in its path)
endif
PYTHON ?= python3
VENV ?= $(ROOT)/.venv
BIN := $(VENV)/bin
OUT ?= $(ROOT)/out
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c $(ROOT)/constraints.txt
DECLARED := $(ROOT)/pyproject.toml $(ROOT)/constraints.txt

.PHONY: help sample test slow lint bench gpu clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(ROOT)/Makefile | sed -E 's/:.*## /\t/' | expand -t 10

sample: $(VENV)/.installed ## sample 64 garments from the shipped model into out/
	$(BIN)/fastdiff sample fashion-mnist -n 64 -o $(OUT)/fashion-mnist.png --gif $(OUT)/fashion-mnist.gif

test: $(VENV)/.test ## run the tests (under 10 minutes on 2 cores)
	cd $(ROOT) && $(BIN)/python -m pytest -m "not slow and not gpu"

slow: $(VENV)/.test ## run the longer tests
	cd $(ROOT) && $(BIN)/python -m pytest -m slow

lint: $(VENV)/.test ## ruff, and mypy on an installed wheel
	cd $(ROOT) && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	rm -rf $(VENV)/wheel
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps -w $(VENV)/wheel $(ROOT)
	rm -rf $(VENV)/mypy && $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(VENV)/mypy $(VENV)/wheel/*.whl
	rm -rf $(ROOT)/build  # setuptools would pack what lies there
	cd $(VENV)/mypy && $(BIN)/mypy -p fastdiff --config-file $(ROOT)/pyproject.toml

bench: $(VENV)/.test ## measure sampling against the published loops; updates bench/results and the README
	cd $(ROOT) && $(BIN)/python -m fastdiff.bench.sampling

gpu: ## on a machine with a GPU and torch, into the Python that is there: the tests on the device, and a report
	cd $(ROOT) && $(PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .
	cd $(ROOT) && $(PYTHON) -m pytest -m gpu tests/test_gpu.py
	cd $(ROOT) && $(PYTHON) -m fastdiff.bench.sampling --device cuda --threads 1 --output $(OUT)/sampling-cuda.json

clean: ## remove the virtual environment and what the commands wrote
	rm -rf $(VENV) $(ROOT)/out

$(VENV)/.installed: $(DECLARED)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e $(ROOT)
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(INSTALL) -e "$(ROOT)[test]"
	touch $@
