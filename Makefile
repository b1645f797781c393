# make lab    open chapter 1 in JupyterLab          make test        run every test
# make train  train the `tiny` model anew           make exercises   generate exercises/ from solutions/
# make benchmarks  measure the algorithms           make clean       remove the environments and caches
#
# Variables: PYTHON (3.11 or newer), TORCH_INDEX (address of the package index with the build of PyTorch that you want;
# README.md, "No GPU?"), NOTEBOOK, PYTEST_ARGS, BENCHMARK (a file of benchmarks/), BENCHMARK_ARGS. Everything is
# installed in .venv, nothing outside.

PYTHON ?= python3
TORCH_INDEX ?=
NOTEBOOK ?= notebooks/01_quantization.ipynb
PYTEST_ARGS ?=
BENCHMARK ?= quantization
BENCHMARK_ARGS ?=

VENV := .venv
COLAB := .venv-colab
BIN := $(CURDIR)/$(VENV)/bin
# Compiling all of torch takes longer than compiling what is used, when it is used.
PIP := -m pip --disable-pip-version-check install --quiet --no-compile
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: help lab test exercises train benchmarks clean chromium
.DELETE_ON_ERROR:

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

lab: $(VENV)/lab.stamp
	$(BIN)/jupyter lab $(NOTEBOOK)

# One thread a process: two pytest workers share the cores better than two thread pools do.
test: $(VENV)/test.stamp $(COLAB)/test.stamp chromium
	OMP_NUM_THREADS=1 LABSUPPORT_COLAB_PYTHON="$(CURDIR)/$(COLAB)/bin/python" \
		$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

exercises: $(VENV)/test.stamp
	$(BIN)/labsupport release

train: $(VENV)/lab.stamp
	$(BIN)/labsupport train

benchmarks: $(VENV)/test.stamp
	$(BIN)/python benchmarks/$(BENCHMARK).py $(BENCHMARK_ARGS)

clean:
	rm -rf $(VENV) $(COLAB) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; tell which with: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/lab.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python $(PIP) $(INDEX) -c constraints.txt -e ".[lab,fast]"
	@touch $@

$(VENV)/test.stamp: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python $(PIP) $(INDEX) -c constraints.txt -e ".[lab,fast,test,grade,serve]"
	@touch $@ $(VENV)/lab.stamp

# Colab's older packages in front of those of .venv: no second copy of torch.
$(COLAB)/test.stamp: constraints-colab.txt $(VENV)/test.stamp
	rm -rf $(COLAB)
	$(BIN)/python -m venv $(COLAB)
	@$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(COLAB)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(COLAB)/bin/python $(PIP) --no-deps -r constraints-colab.txt
	@touch $@

# The browser of the tests, unless there is one.
chromium: $(VENV)/test.stamp
	@$(BIN)/python -c 'import sys; from labsupport.doctor import find_chromium; sys.exit(find_chromium() is None)' || \
	if command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium fonts-liberation; \
	elif command -v apt-get > /dev/null && sudo -n true 2> /dev/null; then \
		sudo apt-get update -qq && sudo apt-get install -qq -y --no-install-recommends chromium fonts-liberation; \
	else \
		echo "Chromium or Chrome is not on this machine: install it, or leave its tests out with"; \
		echo "    make test PYTEST_ARGS='-m \"not browser\"'"; \
		case "$(PYTEST_ARGS)" in *"not browser"*) ;; *) exit 1 ;; esac; \
	fi
