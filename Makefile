# Every target does its own set-up: `make demo` or `make test` is the only command to type on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Marks of what is installed: what the demo needs, what tests, checks and benchmarks need, what the documentation needs.
DEMO := $(VENV)/.demo
DEV := $(VENV)/.dev
DOCS := $(VENV)/.docs
# Modules are compiled when they are first imported: of those installed few are.
# The warning would say that an editable installation sees the folders of this checkout.
PIP_INSTALL := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --progress-bar off --no-compile
# And only then: where this is set, as in many images, each of the processes that tests start would compile all anew,
# which takes longer than to import them.
unexport PYTHONDONTWRITEBYTECODE

# Every pip call obeys the tested versions, those made for build isolation too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads that wait for each other a short while only: by default they spin, which makes a step ten times as long as
# soon as another program wants one of the cores.
export GOMP_SPINCOUNT ?= 10000
# Nothing below the installation needs a network.
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: install demo test check conformance compat bench peers results docs wheel clean

install: $(DEV)

$(DEMO): pyproject.toml constraints.txt
	@echo "installing hfseq and what the demo needs into $(VENV): a minute or two"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --upgrade pip
	@$(PIP_INSTALL) -e . babel matplotlib sacrebleu
	@touch $@

$(DEV): pyproject.toml constraints.txt
	@echo "installing hfseq and what its tests need into $(VENV): a minute or two"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --upgrade pip
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $(DEMO) $@

$(DOCS): $(DEMO)
	@$(PIP_INSTALL) -e '.[docs]'
	@touch $@

demo: $(DEMO)
	$(OFFLINE) $(BIN)/python recipes/translation.py --overwrite_output_dir
	$(BIN)/python tests/check_floor.py outputs/translation_demo/all_results.json test_exact_match 97

# A few tests run again as on a processor with AVX2 alone, for which torch's kernels choose other code.
test: $(DEV)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
	$(OFFLINE) OMP_NUM_THREADS=1 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest -n 2 --dist worksteal -m processor \
		$$(grep -l mark.processor tests/test_*.py)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

conformance: $(DEV)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python tests/conformance/run.py

# The quick contract on the newest versions that the metadata allow; then, as a report, on the newest that there are.
# NOX: more options of nox.
compat: $(DEV)
	$(BIN)/nox --session $(or $(SESSION),allowed existing) $(NOX)

# DATA: a folder with Multi30k, else the embedded pairs. JOEYNMT: the Python of an environment with JoeyNMT 2.3.
# DEVICE: cuda for a GPU. ROUNDS: times that each side of a comparison is run.
bench: $(DEV)
	$(OFFLINE) $(BIN)/python benchmarks/run.py $(if $(DATA),--data $(DATA)) $(if $(JOEYNMT),--joeynmt_python $(JOEYNMT)) \
		$(if $(DEVICE),--device $(DEVICE)) $(if $(ROUNDS),--rounds $(ROUNDS))

# Rebuilds the fixtures of tests/fixtures/peers with the toolkits that wrote them, in environments of their own under
# .peers, and compares. CHECKOUTS: a folder with sources that cannot be installed; see benchmarks/peers/make.py.
peers:
	@$(PYTHON) benchmarks/peers/make.py $(if $(CHECKOUTS),--checkouts $(CHECKOUTS)) $(if $(ONLY),--only $(ONLY))

# Renders the tables of README.md, recipes/README.md, docs/ and benchmarks/RESULTS.md from JSON files; measures nothing.
results: $(DEMO)
	$(BIN)/python benchmarks/render.py

# Builds the documentation into docs/_build/html and runs its notebooks; a warning is an error.
docs: $(DOCS)
	$(OFFLINE) $(BIN)/python -m sphinx -W --keep-going -n -q docs docs/_build/html

wheel: $(DEV)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist docs/_build docs/api-models.md docs/families/images *.egg-info .cache .mypy_cache .nox .peers .pytest_cache .ruff_cache
