# `make demo` and `make test` start from a bare machine with Python, make and a C++ compiler; they ask nothing.
PYTHON ?= python3
VENV ?= .venv
# installed first: a range that is resolved without it may bring gigabytes of another build
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
WHEELS := build/wheels
SOURCES := $(shell find regplug plugins -type f -not -path '*/__pycache__/*') pyproject.toml README.md LICENSE

.PHONY: test demo bench scale matrix torture lint clean compiler tracer fuzzer
.DELETE_ON_ERROR:

test: $(VENV)/tested-tools $(VENV)/installed tracer lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile tests plugins

demo: $(VENV)/installed
	$(BIN)/python plugins/regplug-digits/demo/demo.py

# times in C++, beside raw operations and plain libtorch; `make bench LARGE=--large` also opens a gigabyte
bench: $(VENV)/installed
	$(BIN)/python tests/bench.py $(LARGE)

# what a thousand plugins cost `regplug list`, beside stevedore's and pluggy's own loaders
scale: $(VENV)/tested-tools $(VENV)/installed
	$(BIN)/python tests/scale.py

# every check on every readout, with every compiler; `make matrix TORCH=torch==2.10.0 VENV=.venv-2.10` for another torch
matrix: $(VENV)/tested-tools $(VENV)/installed
	$(BIN)/python tests/matrix.py

# what a loader and a writer must stand, by the thousand and million; `make torture PARTS="damaged soak"` for some of it,
# `make torture PAGE=docs/SECURITY.md` to publish the figures
torture: $(VENV)/tested-tools $(VENV)/installed tracer fuzzer
	mkdir -p build && cd tests && OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m torture $(PARTS) --json $(abspath build)/torture.json \
	  $(if $(PAGE),--page $(abspath $(PAGE)))

lint: $(VENV)/tested-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The wheels, as a user gets them; reinstalled whenever a source changed, for the version stays the same meanwhile.
$(VENV)/installed: $(SOURCES) $(VENV)/tools
	rm -rf $(WHEELS)
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation -w $(WHEELS) . $(wildcard plugins/*)
	$(BIN)/pip install --quiet $(WHEELS)/*.whl
	$(BIN)/pip install --quiet --no-deps --force-reinstall $(WHEELS)/*.whl
	touch $@

$(VENV)/tools: | compiler
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check 'hatchling>=1.25' cmake ninja nlohmann-json numpy
	touch $@

# Oracles of the tests: what they ask for besides, and another torch, is not needed for what is compared.
$(VENV)/tested-tools: $(VENV)/tools tests/support/torchvision_shim.py
	$(BIN)/pip install --quiet --disable-pip-version-check 'pytest>=8' pytest-xdist hypothesis ruff==0.17.6 mypy==2.4.1 \
	  model-signing==1.1.1 pyopenssl==26.4.0 cosmic-ray==8.7.0
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps nvsubquadratic==0.2.0 timm==1.0.31 \
	  torchvision==0.28.0 transformers==5.23.0 diffusers==0.42.1 stevedore==5.10.0 \
	  lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0 hydra-core==1.3.8 antlr4-python3-runtime==4.9.3
	site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  cp tests/support/torchvision_shim.py $$site && echo 'import torchvision_shim' > $$site/torchvision_shim.pth
	$(BIN)/pip install --quiet --disable-pip-version-check einops omegaconf pillow pyyaml huggingface_hub regex \
	  tokenizers tqdm requests httpx importlib_metadata filelock
	touch $@

# Debian's packages, where they are missing: strace fails and kills single system calls, clang brings libFuzzer
debian = command -v $(1) >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends $(2); } || { \
  echo "error: expected $(1), got none; install it, as 'apt-get install $(2)' does." >&2; exit 1; }

tracer:
	@$(call debian,strace,strace)

fuzzer:
	@$(call debian,clang++,clang libclang-rt-14-dev)

compiler:
	@command -v c++ >/dev/null || { \
	  echo "error: expected a C++ compiler (c++), got none; install one, as 'apt-get install g++' does." >&2; exit 1; }

clean:
	rm -rf build dist $(VENV)
