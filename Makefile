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
GPU_TESTS := $(addprefix tests/engine/test_,gpu.py noise.py fused_networks.py) tests/engine/cuda tests/kernels
GPU_SLICES := gpu-test gpu-convolutions gpu-profile gpu-operators gpu-bench-64 gpu-bench-1024 gpu-bench-1 gpu-distance \
	gpu-profile-library gpu-tune gpu-bench-b gpu-cold gpu-float32 gpu-quality
GPU_SECONDS ?= 470
GPU_LIMIT = timeout --signal=INT --kill-after=10 $(GPU_SECONDS)
GPU_BENCH = $(GPU_LIMIT) $(PYTHON) -m fastdiff bench --device cuda
GPU_MAIN = $(GPU_BENCH) --dtype bfloat16 --only evaluation --only "sampling ddim 25"
DECLARED := $(ROOT)/pyproject.toml $(ROOT)/constraints.txt
SOURCES := $(shell find $(addprefix $(ROOT)/,fastdiff kernels export) -type f -not -name '*.pyc')
# About a minute on 2 cores.
QUICK := tests/samplers tests/checkpoints tests/data tests/test_layers.py tests/test_images.py tests/engine/test_noise.py \
	tests/engine/test_graphs.py tests/engine/test_numerics.py tests/kernels/test_dispatch.py tests/networks

.PHONY: help sample test quick slow forged sanitize lint bench quality readme notebooks suites models kernels traffic onnx networks trainings gpu gpu-install $(GPU_SLICES) clean

help: ## this list
	@grep -hE '^[a-z0-9 -]+:.*## ' $(ROOT)/Makefile | sed -E 's/:.*## /\t/' | expand -t 16

sample: $(VENV)/.installed ## sample 64 garments from the shipped model into out/
	$(BIN)/fastdiff sample fashion-mnist -n 64 -o $(OUT)/fashion-mnist.png --gif $(OUT)/fashion-mnist.gif

test: $(VENV)/.test ## run the tests (9 minutes on 2 cores)
	cd $(ROOT) && $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.test ## a minute's worth of tests
	cd $(ROOT) && $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(QUICK)

slow: $(VENV)/.test ## run the longer tests
	cd $(ROOT) && $(BIN)/python -m pytest -m slow

FORGED ?= 100000
forged: $(VENV)/.test ## 100,000 forged files for every reader (half an hour); updates bench/results/forged
	cd $(ROOT) && FORGED=$(FORGED) FORGED_REPORT=bench/results/forged $(BIN)/python -m pytest -n 0 --timeout 3600 tests/forged

# The C library that is loaded into Python finds the sanitizers' only if they are there first; gcc's own has no leaks to tell.
sanitize: $(VENV)/.test ## run the tests of the C kernels and of plans under gcc's address and undefined-behaviour sanitizers
	cd $(ROOT) && CC="gcc -fsanitize=address,undefined -fno-sanitize-recover=all -g1" FASTDIFF_CACHE=$(OUT)/sanitized \
		ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		$(BIN)/python -m pytest -m "not slow and not gpu" -n 2 tests/kernels/cpu tests/engine/cpu \
		--deselect tests/kernels/cpu/test_compiled.py --deselect tests/engine/cpu/test_memory.py  # which the sanitizers change

lint: $(VENV)/.test ## ruff, and mypy on an installed wheel
	cd $(ROOT) && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	rm -rf $(VENV)/wheel
	$(BIN)/python -m pip wheel --disable-pip-version-check --quiet --no-deps -w $(VENV)/wheel $(ROOT)
	rm -rf $(VENV)/mypy && $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(VENV)/mypy $(VENV)/wheel/*.whl
	rm -rf $(ROOT)/build  # setuptools would pack what lies there
	cd $(VENV)/mypy && $(BIN)/mypy -p fastdiff --config-file $(ROOT)/pyproject.toml

bench: $(VENV)/.test ## fastdiff bench, the standard plan (an hour on 2 cores); updates bench/results, README.md and docs/
	cd $(ROOT) && $(BIN)/fastdiff bench --device cpu -o bench/results/cpu && $(BIN)/fastdiff bench readme

quality: $(VENV)/.test ## time an image against Frechet distance; updates bench/results and docs/samplers.md (SPRITES=folder of their data)
	cd $(ROOT) && $(BIN)/fastdiff bench quality --samples $(OUT)/quality $(if $(SPRITES),--model fashion-mnist --model sprites \
		--data $(SPRITES)/sprites_16x16.npy --labels $(SPRITES)/sprite_labels.npy) && $(BIN)/fastdiff bench readme

readme: $(VENV)/.test ## put the results in bench/results into README.md and docs/, and draw their plots anew
	cd $(ROOT) && $(BIN)/fastdiff bench readme

notebooks: $(VENV)/.test ## execute the notebooks of docs/ (minutes each); puts their outputs into them
	cd $(ROOT) && $(BIN)/fastdiff bench notebooks

suites: $(VENV)/.test ## pytest-benchmark over operators and single evaluations, into OUT/suites.json
	mkdir -p $(OUT)
	cd $(ROOT) && OMP_NUM_THREADS=1 $(BIN)/python -m pytest bench/suites --benchmark-only --benchmark-json=$(OUT)/suites.json

onnx: $(VENV)/.test ## measure the exported sampling loop against its network in ONNX Runtime; updates bench/results
	cd $(ROOT) && OMP_NUM_THREADS=1 $(BIN)/fastdiff bench --device cpu --only "exported loop" -o bench/results/onnx-cpu

networks: $(VENV)/.test ## measure foreign networks, and the shipped ones, against their own eager loop; updates bench/results
	cd $(ROOT) && OMP_NUM_THREADS=1 $(BIN)/fastdiff bench --device cpu --only "against eager" --only "cold start A28" -o bench/results/networks-cpu

trainings: $(VENV)/.test ## measure training steps in float32 and bfloat16; updates bench/results and docs/speed.md
	cd $(ROOT) && OMP_NUM_THREADS=1 $(BIN)/fastdiff bench --device cpu --only training --dtype float32 --dtype bfloat16 --no-compile \
		-o bench/results/training-cpu && $(BIN)/fastdiff bench readme

models: $(VENV)/.test ## compare images with those of other libraries' own loops; updates bench/results and docs/models.md
	cd $(ROOT) && OMP_NUM_THREADS=1 $(BIN)/fastdiff bench models -o bench/results/models.json && $(BIN)/fastdiff bench readme

kernels: $(VENV)/.test ## compile every kernel for sm_80, sm_90 and sm_100, no GPU needed; writes bench/results/kernels.md
	cd $(ROOT) && $(BIN)/fastdiff bench kernels -o $(ROOT)/bench/results/kernels.md

traffic: $(VENV)/.installed ## bytes moved by each operation of an evaluation, from the shapes; writes bench/results/traffic.md
	cd $(ROOT) && $(BIN)/fastdiff bench traffic -o $(ROOT)/bench/results/traffic.md

gpu: gpu-install ## on a machine with a GPU and torch, into the Python that is there: all of the slices below, into OUT
	failed=; for slice in $(GPU_SLICES); do \
		$(MAKE) -f $(ROOT)/Makefile $$slice || failed="$$failed $$slice"; done; \
		test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

gpu-install: ## of gpu: fastdiff into the Python that is there, which a slice by itself needs first
	cd $(ROOT) && $(PYTHON) -m pip install --quiet --no-deps --no-build-isolation -e .
	mkdir -p $(OUT)

# In the order of what they are worth. Each ends after GPU_SECONDS, with what it has measured until then.
gpu-test: ## a slice of gpu: the operators' numerics and the sampler's images on the device
	cd $(ROOT) && $(GPU_LIMIT) $(PYTHON) -m pytest -m "not slow" -n 8 --junit-xml=$(OUT)/gpu-test.xml $(GPU_TESTS)

gpu-convolutions: ## a slice of gpu: fused_conv by shape against torch.compile, which decides engine/cuda/choice.py
	cd $(ROOT) && $(GPU_BENCH) --dtype bfloat16 --only "operator fused_conv" --only "operator conv_norm" \
		--batch 64 --batch 1024 -o $(OUT)/convolutions-cuda

gpu-operators: ## a slice of gpu: each operator against its reference, torch.compile and the bandwidth
	cd $(ROOT) && $(GPU_BENCH) --dtype bfloat16 --only operator --batch 1024 --batch 32768 -o $(OUT)/operators-cuda

gpu-profile: ## a slice of gpu: the fashion-mnist network at batches 1, 64 and 1024 against torch.compile and the limits of the chip, its kernels by time
	cd $(ROOT) && $(GPU_BENCH) --dtype bfloat16 --only "profile A28" --only "training A28" -o $(OUT)/profile-cuda

gpu-tune: ## a slice of gpu: in which tiles fused_conv is fastest, the fashion-mnist and the sprites' network at batch 64
	cd $(ROOT) && for model in fashion-mnist sprites; do \
		FASTDIFF_CACHE=$(OUT) $(GPU_LIMIT) $(PYTHON) -m fastdiff tune $$model --batch-size 64; done

gpu-profile-library: ## a slice of gpu: the same with the library's convolutions
	cd $(ROOT) && FASTDIFF_KERNELS=library $(GPU_BENCH) --dtype bfloat16 --only "profile A28" -o $(OUT)/profile-library-cuda

gpu-bench-64 gpu-bench-1024 gpu-bench-1: gpu-bench-%: ## three slices of gpu: every contender there is, the fashion-mnist network in bfloat16, at that batch
	cd $(ROOT) && $(GPU_MAIN) --network A28@28 --batch $* -o $(OUT)/bench-a-$*

gpu-distance: ## a slice of gpu: 16-bit images against float32 ones
	cd $(ROOT) && $(GPU_LIMIT) $(PYTHON) -m fastdiff bench distance --device cuda --batch 1024 --whole 64 -o $(OUT)/distance-cuda.json

gpu-bench-b: ## a slice of gpu: every contender there is, the sprites' network in bfloat16, at batch 64
	cd $(ROOT) && $(GPU_MAIN) --network B@16 --batch 64 -o $(OUT)/bench-b-64

gpu-cold: ## a slice of gpu: the cold start, with empty caches too, and the denoise step
	cd $(ROOT) && $(GPU_BENCH) --only "cold start" --only "denoise step 64" -o $(OUT)/bench-cold

gpu-float32: ## a slice of gpu: each operator in float32 against its reference
	cd $(ROOT) && $(GPU_BENCH) --dtype float32 --only operator --batch 64 --batch 32768 --no-compile \
		-o $(OUT)/operators-cuda-float32

gpu-quality: ## a slice of gpu: time an image against Frechet distance, 10,000 images a point; goes on where it was stopped
	cd $(ROOT) && $(GPU_LIMIT) $(PYTHON) -m fastdiff bench quality --device cuda --samples $(OUT)/quality -o $(OUT)/quality-cuda.json

clean: ## remove the virtual environment and what the commands wrote
	rm -rf $(VENV) $(ROOT)/out

# A real install, so that `import fastdiff` finds the package from any folder: beside a clone that is named fastdiff, the
# finder of an editable one comes too late. Where the tests' editable install is, it stays.
$(VENV)/.installed: $(DECLARED) $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -e $(VENV)/.test || $(INSTALL) $(ROOT)
	rm -rf $(ROOT)/build  # setuptools would pack what lies there the next time
	touch $@

$(VENV)/.test: $(DECLARED)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e "$(ROOT)[test]"
	touch $@ $(VENV)/.installed
