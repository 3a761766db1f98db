# All targets work in a fresh clone: the environment is made in .venv on first use.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet install -c constraints.txt
LOWEST := .venv-lowest
LOWEST_TESTS := $(addprefix tests/,envs/test_gym_env.py envs/test_vector_env.py envs/test_checker.py integrations/test_sb3.py)
TRACE  ?=
CLIENT ?=
FORCE  ?=
ARGS   ?=
JOBS   ?= 2

.PHONY: help benchmark test test-slow lowest lint notebooks docs clients clean
.DELETE_ON_ERROR:

help:
	@echo "make benchmark    measure the policies; TRACE=file.csv replays a request trace,"
	@echo "                  ARGS=... goes to 'llmgym benchmark'"
	@echo "make test         the tests, in JOBS=$(JOBS) processes; ARGS=... goes to pytest"
	@echo "make test-slow    the tests that take long, in JOBS processes"
	@echo "make lowest       the tests of the environments, with the lowest versions that are allowed"
	@echo "make lint         ruff, mypy and import-linter"
	@echo "make notebooks    execute the notebooks; ARGS=--inplace keeps what they print"
	@echo "make docs         the documentation, as pages in site/"
	@echo "make clients      the recipe of every RL tool, each in an environment of its own; CLIENT=torchrl"
	@echo "                  for one, FORCE=1 also those that passed before"
	@echo "make clean        remove .venv, builds and caches; results stay"
	@echo "PYTHON=python3.12 chooses the interpreter (3.11 or newer) that .venv is made with."

benchmark: $(VENV)/core.stamp
	$(BIN)/llmgym benchmark $(if $(TRACE),--trace "$(TRACE)") $(ARGS)

# The pinned XLA compiles a third faster this way, which is most of what tests do; wide batches of
# environments run at half the speed.
test test-slow lowest: export XLA_FLAGS ?= --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n $(JOBS) -m slow $(ARGS)

lowest: $(LOWEST)/stamp
	$(LOWEST)/bin/python -m pytest -n $(JOBS) --dist loadfile $(LOWEST_TESTS) $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

notebooks: $(VENV)/dev.stamp
	for notebook in notebooks/*.ipynb; do \
	    if [ -e "$$notebook" ]; then $(BIN)/jupyter-execute $(ARGS) "$$notebook" || exit 1; fi; \
	done

# The two variables silence what two packages advertise in the output.
docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --clean $(ARGS)

clients: | $(BIN)/pip
	$(BIN)/python tools/clients_tool.py $(CLIENT) $(if $(FORCE),--force)

# What `make benchmark` needs, and what the other targets need on top of it.
$(VENV)/core.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing llmgym into $(VENV): once, about a minute."
	$(PIP) -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing llmgym and its test tools into $(VENV): once, some minutes."
	$(PIP) -e ".[sb3,notebooks,test,dev,docs]"
	@touch $(VENV)/core.stamp $@

# In an environment of its own, whose packages are as old as pyproject.toml allows.
$(LOWEST)/stamp: pyproject.toml tools/lowest.py clients/constraints.txt | $(BIN)/pip
	@echo "Installing the lowest versions into $(LOWEST): once, some minutes."
	$(BIN)/python -m venv --clear $(LOWEST)
	$(BIN)/python tools/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip --disable-pip-version-check --quiet install \
	    -c $(LOWEST)/constraints.txt -c clients/constraints.txt -e ".[sb3,test]"
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("llmgym needs Python 3.11 or newer: make PYTHON=python3.11 ..." \
	    if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)

clean:
	rm -rf $(VENV) .venv-clients $(LOWEST) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find llmgym baselines agents tests -name __pycache__ -type d -prune -exec rm -rf {} +
