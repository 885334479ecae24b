# make demo, make test, make test-slow, make bench, make lint: each sets up what it needs in .venv first, once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

BUILD_INPUTS := pyproject.toml setup.py constraints.txt _build/qdeq_build.py \
	$(shell find csrc -type f)

.PHONY: demo test test-slow bench lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python -m qdeq.demo $(ARGS)

# Two processes, each with whole files and one thread: what tests threads sets their number itself.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --benchmark-disable

test: $(VENV)/.test
	$(PYTEST) -m "not slow" $(ARGS)

# What takes longer: whole torchvision models, the story on CIFAR-10, sanitizers, inductor, wheels from the sdist.
test-slow: $(VENV)/.test
	$(PYTEST) -m slow $(ARGS)

bench: $(VENV)/.bench
	mkdir -p .benchmarks
	$(BIN)/python -m pytest benchmarks --benchmark-json=.benchmarks/latest.json $(ARGS)
	$(BIN)/python benchmarks/report.py .benchmarks/latest.json

lint: $(VENV)/.lint
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

# torch first: the extension is built against the torch that is there.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch $(BUILD_INPUTS)
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) --editable '.[test]'
	touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) --editable '.[bench]'
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) --editable '.[lint]'
	touch $@

clean:
	rm -rf $(VENV) build qdeq.egg-info qdeq/*.so
