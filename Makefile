# `make demo` and `make test` need Python 3.11 or newer, make and pip, and nothing else.
#   PYTHON=python3.13  another interpreter, in a virtual environment of its own
#   LOCK=none          the newest release of everything, instead of the versions in requirements/
PYTHON ?= $(shell command -v python3.11 || command -v python3)
LOCK   ?= requirements
VENV   ?= .venv$(if $(filter command line environment,$(origin PYTHON)),-$(notdir $(PYTHON)))$(if \
    $(filter none,$(LOCK)),-newest)
RUN    ?= runs/sentiment
BIN    := $(VENV)/bin
SAY    := @printf '\n\033[1m== %s\033[0m\n'

.DEFAULT_GOAL := help
.PHONY: help demo demos demos-full assets test test-slow test-quick test-install test-all lint format docs site lock bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: $(VENV)/.runtime  ## fine-tune MiniLM on 8,530 movie reviews: train, evaluate, export, report
	$(SAY) 'The checkpoint and the reviews'
	@$(BIN)/jaxft assets
	$(SAY) 'Train (configs/sentiment.yaml)'
	@resume=$$(test -f $(RUN)/run.json && echo --resume); \
	$(BIN)/jaxft train configs/sentiment.yaml $$resume
	$(SAY) 'Evaluate on the held-out rows'
	@$(BIN)/jaxft eval $(RUN) --split test
	@$(BIN)/python -m benchmarks.baseline $(RUN)
	$(SAY) 'Export to Hugging Face'
	@$(BIN)/jaxft export $(RUN) --out $(RUN)/export
	$(SAY) 'Report'
	@$(BIN)/jaxft report $(RUN) --out $(RUN)/report.html
	$(SAY) 'Predict'
	$(BIN)/jaxft predict $(RUN) "a gorgeous , witty , seductive movie ." "an hour too long ."
	@printf '\n%-8s%s\n' run $(RUN) result $(RUN)/result.json export $(RUN)/export \
	    report $(RUN)/report.html

demos: $(VENV)/.demos  ## run every config on few rows and tabulate the results: at most 5 minutes each on 2 cores
	@$(BIN)/python -m benchmarks.demos

demos-full: $(VENV)/.demos  ## the same on all rows (hours)
	@$(BIN)/python -m benchmarks.demos --full

assets: $(VENV)/.runtime  ## download the demo's checkpoint and reviews, and link them as assets/
	$(BIN)/jaxft assets

test: $(VENV)/.dev  ## every test of less than some seconds: about 20 minutes on 2 cores
	$(BIN)/pytest -n auto --dist worksteal

test-slow: $(VENV)/.dev  ## the others that CI runs: whole runs, killed and resumed, in two processes
	$(BIN)/pytest -n auto --dist worksteal --slow -m slow

# Without PyTorch, so that a new Python and its newest packages are quick to install and test.
QUICK := tests/test_architecture.py tests/test_words.py tests/install tests/config tests/cli/test_cli.py \
    tests/layerwise/test_table.py tests/layerwise/test_schedules.py tests/data/test_plans.py \
    tests/engine/test_step.py tests/engine/test_step_model.py tests/loop tests/storage/test_json_files.py \
    tests/device/test_compiler_options.py tests/export/test_card.py \
    --deselect tests/export/test_card.py::test_the_cards_code_gives_the_predictions_of_the_run

test-quick: $(VENV)/.test  ## imports, architecture, config, command line, a step, a tiny run and its export
	$(BIN)/pytest -n auto --dist worksteal $(QUICK)

test-install: $(VENV)/.test  ## build wheel and source archive, install them alone, train and export
	$(BIN)/pytest --full tests/install

test-all: $(VENV)/.dev  ## both, and all configs and meshes, fault injection, fuzzing; the report in headless Chromium
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && apt-get update -q && \
	    apt-get install -q -y --no-install-recommends chromium; } || \
	    { echo 'test-all needs chromium on the PATH (Debian: apt-get install chromium)'; exit 1; }
	$(BIN)/pytest -n auto --dist worksteal --full

SCHEMA := $(BIN)/check-jsonschema -q --builtin-schema vendor.github
lint: $(VENV)/.dev  ## check formatting, lint, types, that docs/ is up to date, and the site's links
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck -x tpu/*.sh tpu/slurm.sbatch .ci/run
	$(BIN)/hadolint Dockerfile
	$(SCHEMA)-workflows .github/workflows/*.yml
	$(SCHEMA)-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(SCHEMA)-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.citation-file-format CITATION.cff
	@$(BIN)/jaxft config --schema | diff docs/schema.json - || \
	    { echo 'docs/schema.json is out of date: make docs'; exit 1; }
	@$(BIN)/python -m docs.models_table --check docs/models.md || \
	    { echo 'docs/models.md is out of date: make docs'; exit 1; }
	@$(BIN)/python -m docs.reference_pages --check
	@$(MKDOCS) --quiet --strict --site-dir $(VENV)/site

format: $(VENV)/.dev  ## format, and apply ruff's automatic fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev  ## regenerate docs/schema.json, docs/reference/ and the table in docs/models.md
	$(BIN)/jaxft config --schema > docs/schema.json.new
	mv docs/schema.json.new docs/schema.json
	$(BIN)/python -m docs.models_table docs/models.md
	$(BIN)/python -m docs.reference_pages

# MkDocs' warning of its own next major version, which pyproject.toml excludes, is not about the pages.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

site: $(VENV)/.dev  ## build the documentation as a website: site/index.html
	@$(MKDOCS) --quiet --strict

lock: $(VENV)/.dev  ## pin the newest releases that pyproject.toml allows, with their hashes, in requirements/
	$(COMPILE) pyproject.toml requirements/lock.in --extra dev -o requirements/dev.txt
	$(COMPILE) pyproject.toml --extra demos -c requirements/dev.txt -o requirements/demos.txt
	$(COMPILE) pyproject.toml --extra test -c requirements/dev.txt -o requirements/test.txt
	$(COMPILE) pyproject.toml -c requirements/dev.txt -o requirements/run.txt
	echo setuptools | $(COMPILE) - -c requirements/dev.txt -o requirements/build.txt

bench: $(VENV)/.dev  ## measure the README's figures; takes hours on a quiet machine
	$(BIN)/jaxft assets
	$(BIN)/python -m benchmarks.seeds
	$(BIN)/python -m benchmarks.agreement
	$(BIN)/python -m benchmarks.loop
	$(BIN)/python -m benchmarks.trainer
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.load
	$(BIN)/python -m benchmarks.images
	$(BIN)/python -m benchmarks.loss_memory
	$(BIN)/python -m benchmarks.trunk_cache
	$(BIN)/python -m benchmarks.async_save

clean:  ## remove the virtual environments and the tools' caches, but not runs/
	rm -rf $(VENV) .venv .venv-* .pytest_cache .ruff_cache .mypy_cache build *.egg-info

# One file serves every Python from 3.11 on: a version that is for some of them has a marker.
COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate \
    --generate-hashes --excludes requirements/unlocked.in --custom-compile-command 'make lock'
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# $(call install,FILE,EXTRAS): jaxft with its extras, in the versions of requirements/FILE.txt. They
# and what they are built with are checked against their hashes; the last line brings only PyTorch.
ifeq ($(LOCK),none)
install = @$(PIP) --upgrade --upgrade-strategy eager --editable '.$(2)'
else
define install
@$(PIP) --require-hashes --no-deps --requirement $(LOCK)/build.txt
@$(PIP) --require-hashes --no-deps --no-build-isolation --requirement $(LOCK)/$(1).txt
@$(PIP) --no-build-isolation --editable '.$(2)'
endef
endif

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'jaxft needs Python 3.11 or newer: make PYTHON=python3.12'; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	    { rm -rf $(VENV); echo 'No venv module (Debian: apt-get install python3-venv).'; exit 1; }

$(VENV)/.runtime: pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/python
	$(SAY) 'Install jaxft into $(VENV)'
	$(call install,run)
	@touch $@

$(VENV)/.demos: pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/python
	$(SAY) 'Install jaxft and the readers of its demo checkpoints'
	$(call install,demos,[demos])
	@touch $@ $(VENV)/.runtime

$(VENV)/.test: pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/python
	$(SAY) 'Install jaxft and pytest into $(VENV)'
	$(call install,test,[test])
	@touch $@ $(VENV)/.runtime

$(VENV)/.dev: pyproject.toml $(wildcard requirements/*.txt) | $(BIN)/python
	$(SAY) 'Install jaxft and its tools into $(VENV)'
	$(call install,dev,[dev])
	@touch $@ $(VENV)/.runtime $(VENV)/.demos $(VENV)/.test
