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
# What runs on a GPU too; without one the kernels' tests run in Triton's interpreter.
GPU_TESTS := tests/test_gpu.py tests/test_noise.py tests/test_norms.py tests/test_depthwise_conv.py tests/test_linear_attention.py \
	tests/test_attention_block.py tests/test_denoise_step.py tests/test_fused_networks.py
DECLARED := $(ROOT)/pyproject.toml $(ROOT)/constraints.txt

.PHONY: help sample test slow lint bench quality readme suites kernels traffic onnx gpu gpu-test gpu-operators gpu-profile gpu-bench gpu-distance gpu-quality clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(ROOT)/Makefile | sed -E 's/:.*## /\t/' | expand -t 16

sample: $(VENV)/.installed ## sample 64 garments from the shipped model into out/
	$(BIN)/fastdiff sample fashion-mnist -n 64 -o $(OUT)/fashion-mnist.png --gif $(OUT)/fashion-mnist.gif

test: $(VENV)/.test ## run the tests (under 10 minutes on 2 cores)
	cd $(ROOT) && $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --maxprocesses 8 --dist loadfile

slow: $(VENV)/.test ## run the longer tests
	cd $(ROOT) && $(BIN)/python -m pytest -m slow

lint: $(VENV)/.test ## ruff, and mypy on an installed wheel
	cd $(ROOT) && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	rm -rf $(VENV)/wheel
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps -w $(VENV)/wheel $(ROOT)
	rm -rf $(VENV)/mypy && $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(VENV)/mypy $(VENV)/wheel/*.whl
	rm -rf $(ROOT)/build  # setuptools would pack what lies there
	cd $(VENV)/mypy && $(BIN)/mypy -p fastdiff --config-file $(ROOT)/pyproject.toml

bench: $(VENV)/.test ## fastdiff bench, the standard plan (an hour on 2 cores); updates bench/results and the README
	cd $(ROOT) && $(BIN)/fastdiff bench --device cpu -o bench/results/cpu && $(BIN)/python -m fastdiff.bench.readme

quality: $(VENV)/.test ## time an image against Frechet distance; updates bench/results and the README (SPRITES=folder of their data)
	cd $(ROOT) && $(BIN)/python -m fastdiff.bench.quality --samples $(OUT)/quality $(if $(SPRITES),--model fashion-mnist sprites \
		--data $(SPRITES)/sprites_16x16.npy --labels $(SPRITES)/sprite_labels.npy) && $(BIN)/python -m fastdiff.bench.readme

readme: $(VENV)/.test ## put the results in bench/results into the README, and draw their plots anew
	cd $(ROOT) && $(BIN)/python -m fastdiff.bench.readme

suites: $(VENV)/.test ## pytest-benchmark over operators and single evaluations, into OUT/suites.json
	mkdir -p $(OUT)
	cd $(ROOT) && OMP_NUM_THREADS=1 $(BIN)/python -m pytest bench/suites --benchmark-only --benchmark-json=$(OUT)/suites.json

onnx: $(VENV)/.test ## measure the exported sampling loop against its network in ONNX Runtime; updates bench/results
	cd $(ROOT) && $(BIN)/python -m fastdiff.bench.onnxloop

kernels: $(VENV)/.test ## compile every kernel for sm_80, sm_90 and sm_100, no GPU needed; writes bench/results/kernels.md
	cd $(ROOT) && $(BIN)/python -m fastdiff.bench.codegen --output $(ROOT)/bench/results/kernels.md

traffic: $(VENV)/.installed ## bytes moved by each operation of an evaluation, from the shapes; writes bench/results/traffic.md
	cd $(ROOT) && $(BIN)/python -m fastdiff.bench.traffic --output $(ROOT)/bench/results/traffic.md

gpu: ## on a machine with a GPU and torch, into the Python that is there: every test and report of the GPU, into OUT
	cd $(ROOT) && $(PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .
	mkdir -p $(OUT)
	failed=; for part in gpu-test gpu-operators gpu-profile gpu-bench gpu-distance; do \
		$(MAKE) -f $(ROOT)/Makefile $$part || failed="$$failed $$part"; done; \
		test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

gpu-test: ## of gpu: the operators' numerics and the sampler's images on the device
	cd $(ROOT) && $(PYTHON) -m pytest -m "not slow" -n 8 $(GPU_TESTS)

gpu-operators: ## of gpu: each operator against its plain form, torch.compile and the bandwidth
	cd $(ROOT) && $(PYTHON) -m fastdiff.bench.operators --output $(OUT)/operators-cuda.json
	cd $(ROOT) && $(PYTHON) -m fastdiff.bench.operators --batch 64 --dtype float32 --no-compile \
		--output $(OUT)/operators-cuda-float32.json

gpu-profile: ## of gpu: network A at batches 64 and 1024, against torch.compile and the floor, its kernels by time
	cd $(ROOT) && $(PYTHON) -m fastdiff.bench.profiling --output $(OUT)/profile-cuda.json

gpu-bench: ## of gpu: fastdiff bench, batches 1, 64, 256 and 1024, every contender that is there
	cd $(ROOT) && $(PYTHON) -m fastdiff bench --device cuda $(BENCH) -o $(OUT)/bench-cuda

gpu-distance: ## of gpu: 16-bit images against float32 ones
	cd $(ROOT) && $(PYTHON) -m fastdiff.bench.distance --device cuda --batch 1024 --whole 64 --output $(OUT)/distance-cuda.json

gpu-quality: ## of gpu: time an image against Frechet distance, 10,000 images a point
	cd $(ROOT) && $(PYTHON) -m fastdiff.bench.quality --device cuda --samples $(OUT)/quality --output $(OUT)/quality-cuda.json

clean: ## remove the virtual environment and what the commands wrote
	rm -rf $(VENV) $(ROOT)/out

$(VENV)/.installed: $(DECLARED)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e $(ROOT)
	touch $@

$(VENV)/.test: $(VENV)/.installed
	$(INSTALL) -e "$(ROOT)[test]"
	touch $@
