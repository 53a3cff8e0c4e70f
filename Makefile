# Every target does its own set-up: `make demo` or `make test` is the only command to type on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Every pip call obeys the tested versions, those made for build isolation too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads that wait for each other a short while only: by default they spin, which makes a step ten times as long as
# soon as another program wants one of the cores.
export GOMP_SPINCOUNT ?= 10000
# Nothing below the installation needs a network.
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: install demo test check conformance bench wheel clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(OFFLINE) $(BIN)/python recipes/translation.py --overwrite_output_dir
	$(BIN)/python tests/check_floor.py outputs/translation_demo/all_results.json test_exact_match 97

test: $(STAMP)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

conformance: $(STAMP)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python tests/conformance/run.py

# DATA: a folder with Multi30k, else the embedded pairs. JOEYNMT: the Python of an environment with JoeyNMT 2.3.
# DEVICE: cuda for a GPU. ROUNDS: times that each side of a comparison is run.
bench: $(STAMP)
	$(OFFLINE) $(BIN)/python benchmarks/run.py $(if $(DATA),--data $(DATA)) $(if $(JOEYNMT),--joeynmt_python $(JOEYNMT)) \
		$(if $(DEVICE),--device $(DEVICE)) $(if $(ROUNDS),--rounds $(ROUNDS))

wheel: $(STAMP)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) build dist *.egg-info .cache .mypy_cache .pytest_cache .ruff_cache
