# Every target works on a new machine with Python, make and a C++ compiler: it creates a virtual environment, installs
# what it needs, and asks nothing. Run `make check` while you work and `make test`, as CI does, before you push.
PYTHON ?= python3
VENV ?= .venv
# installed first: if pip chose it while resolving a range, it could download gigabytes of another build
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
WHEELS := build/wheels
SOURCES := $(shell find regplug plugins -type f -not -path '*/__pycache__/*') pyproject.toml README.md LICENSE
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

.PHONY: check test torture lint demo bench scale matrix clean compiler tracer fuzzer cross rust cblas zig
.DELETE_ON_ERROR:

# the tests that need no C++ compiler and build no package: a few minutes
check: $(VENV)/tested-tools $(VENV)/installed
	$(PYTEST) -m "not compiler and not packaging and not slow and not torture" tests plugins

# all tests except those of `make torture`
test: $(VENV)/tested-tools $(VENV)/installed tracer cross rust lint
	$(PYTEST) -m "not torture" tests plugins

# damaged files, failing system calls, crashes and fuzzed inputs, by the thousand and million: about an hour
#   make torture PARTS="damaged soak"        some parts of it
#   make torture PAGE=docs/SECURITY.md       publish the figures
torture: $(VENV)/tested-tools $(VENV)/installed tracer fuzzer cross rust cblas zig
	$(if $(PARTS),,$(PYTEST) -m torture tests plugins)
	mkdir -p build && cd tests && OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m torture $(PARTS) --json $(abspath build)/torture.json \
	  $(if $(PAGE),--page $(abspath $(PAGE)))

# what .pre-commit-config.yaml runs, too
lint: $(VENV)/tested-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# export what was trained on scikit-learn's digits, and run the bundles in C++; then train joins, and do the same;
# then all digits' registers to conditioning vectors, by `regplug run` and on Ray
demo: $(VENV)/installed $(VENV)/run-tools
	$(BIN)/python plugins/regplug-digits/demo/demo.py
	$(BIN)/python plugins/regplug-digits/demo/join.py
	$(BIN)/python plugins/regplug-digits/demo/many.py

# times in C++, compared with raw operations and plain libtorch, and of `regplug run`; `make bench LARGE=--large` also opens
# a gigabyte
bench: $(VENV)/tested-tools $(VENV)/installed
	$(BIN)/python tests/bench.py $(LARGE)
	$(BIN)/python tests/bench_joins.py
	$(BIN)/python tests/bench_run.py --gigabytes 1

# the time of `regplug list` with a thousand plugins, compared with stevedore's and pluggy's own loaders
scale: $(VENV)/tested-tools $(VENV)/installed
	$(BIN)/python tests/scale.py

# every check on every readout with every compiler, then padding in every runtime; for another torch: make matrix TORCH=torch==2.10.0 VENV=.venv-2.10
matrix: $(VENV)/tested-tools $(VENV)/installed
	$(BIN)/python tests/matrix.py
	$(BIN)/python tests/padding.py

# ---- what the targets above need

# The wheels, as users get them. The version does not change with each edit, so pip must be told to reinstall.
# libregplug's objects are kept, so that only what changed is compiled again.
$(VENV)/installed: $(SOURCES) $(VENV)/tools
	rm -rf $(WHEELS)
	SKBUILD_BUILD_DIR=$(abspath $(VENV))/libregplug $(BIN)/pip wheel --quiet --no-deps --no-build-isolation \
	  -w $(WHEELS) . $(wildcard plugins/*)
	$(BIN)/pip install --quiet $(WHEELS)/*.whl
	$(BIN)/pip install --quiet --no-deps --force-reinstall $(WHEELS)/*.whl
	touch $@

$(VENV)/tools: | compiler
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/pip install --quiet --disable-pip-version-check 'hatchling>=1.25' 'scikit-build-core>=1.0' cmake ninja \
	  nlohmann-json numpy
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps 'cmeel-eigen>=3.4,<4'  # headers alone
	touch $@

# what `regplug run` needs, with its engine for clusters
$(VENV)/run-tools: $(VENV)/tools
	$(BIN)/pip install --quiet --disable-pip-version-check pyarrow fsspec 'ray[data]==2.60.0'
	touch $@

# Linters, and packages that tests compare with; without those packages' own dependencies, which tests do not use.
$(VENV)/tested-tools: $(VENV)/tools $(VENV)/run-tools tests/support/torchvision_shim.py
	$(BIN)/pip install --quiet --disable-pip-version-check 'pytest>=8' pytest-xdist hypothesis ruff==0.17.6 mypy==2.4.1 \
	  model-signing==1.1.1 pyopenssl==26.4.0 cosmic-ray==8.7.0
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps nvsubquadratic==0.2.0 timm==1.0.31 \
	  torchvision==0.28.0 transformers==5.23.0 diffusers==0.42.1 stevedore==5.10.0 \
	  lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0 hydra-core==1.3.8 antlr4-python3-runtime==4.9.3 \
	  sentence-transformers==6.2.0 torch-geometric==2.8.1 lerobot==0.4.4 x-transformers==2.31.10 perceiver-pytorch==0.11.0
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps xxhash psutil draccus mergedeep loguru einx frozendict \
	  torch-einops-utils  # what these import
	site=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
	  cp tests/support/torchvision_shim.py $$site && echo 'import torchvision_shim' > $$site/torchvision_shim.pth
	$(BIN)/pip install --quiet --disable-pip-version-check einops omegaconf pillow pyarrow pyyaml huggingface_hub regex \
	  tokenizers tqdm requests httpx importlib_metadata filelock
	touch $@

# Debian packages, if a command fails: strace, which fails system calls and kills processes at them; clang, for
# libFuzzer; a compiler and an emulator for aarch64; Rust, pkg-config and a CBLAS library.
debian = { $(1); } >/dev/null 2>&1 || { apt-get update -qq && apt-get install -qq -y --no-install-recommends $(2); } || { \
  echo "error: '$(1)' failed; install what it needs, as 'apt-get install $(2)' does." >&2; exit 1; }

tracer:
	@$(call debian,command -v strace,strace)

fuzzer:
	@$(call debian,command -v clang++,clang libclang-rt-14-dev)

cross:
	@$(call debian,command -v aarch64-linux-gnu-g++,g++-aarch64-linux-gnu)
	@$(call debian,command -v qemu-aarch64-static,qemu-user-static)

rust:
	@$(call debian,rustc --version || /usr/bin/rustc --version,rustc)
	@$(call debian,command -v pkg-config,pkgconf)

cblas:
	@$(call debian,ls /usr/include/*/cblas.h,libopenblas-serial-dev)

# another compiler for aarch64
zig:
	@$(BIN)/python -c 'import ziglang' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check ziglang

compiler:
	@command -v c++ >/dev/null || { \
	  echo "error: expected a C++ compiler (c++), got none; install one, as 'apt-get install g++' does." >&2; exit 1; }

clean:
	rm -rf build dist $(VENV)
