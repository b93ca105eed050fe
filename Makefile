# make demo and make test do all set-up; an active virtual environment is used instead of .venv.
PYTHON ?= python3
VENV := $(or $(VIRTUAL_ENV),.venv)
BIN := $(VENV)/bin
# Built once; a change in the requirements gives another stamp, and with it a new installation.
STAMP := $(VENV)/.aavae-$(shell cat setup.cfg pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
DOCS := $(subst .aavae-,.aavae-docs-,$(STAMP))

.PHONY: help setup demo test test-faults test-next slow docs bench paper format clean
help: ## show this text
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "aavae needs Python 3.11 or newer; say which with PYTHON="; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (torch is large: this takes some minutes, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'lightly==1.6.0' # an oracle; its losses need torch alone
	@rm -f $(VENV)/.aavae-* && touch $@

setup: $(STAMP) ## build the environment, and no more

demo: $(STAMP) ## pretrain on handwritten digits, evaluate, show: about a minute after set-up
	@$(BIN)/aavae-train experiment=digits hydra.run.dir=outputs/demo
	@echo "Look at outputs/demo/reconstructions.png: validation images, their augmented views, and what the model makes of them."

test: $(STAMP) ## run the tests, but for the slow ones
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy aavae
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

slow: $(STAMP) ## run the tests that start several runs, play the documents, or compare large networks
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m slow --durations=15

FAULTS ?= 12000
test-faults: $(STAMP) ## try bad input, kills, full disks and other faults, and print a table; FAULTS=100000 tries more bad input
	@AAVAE_FAULTS=$(FAULTS) $(BIN)/python -m pytest -n 2 --dist worksteal -m faults

# Beside the first environment, whose packages it sees behind its own.
NEXT := .venv-next
$(NEXT)/.aavae: $(STAMP)
	@$(BIN)/python -m venv $(NEXT)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> $$($(NEXT)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/behind.pth
	@$(NEXT)/bin/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts 'hydra-core>=1.4.0rc3,<1.5' \
		'hydra-submitit-launcher>=1.4.0rc3' 'hydra-joblib-launcher>=1.4.0rc3' 'hydra-optuna-sweeper>=1.4.0rc3' 'optuna>=4.9'
	@touch $@

test-next: $(NEXT)/.aavae ## run configs, launchers and sweeps on the next version of Hydra
	@$(NEXT)/bin/python -m pytest -n 2 --dist worksteal -m "not slow" tests/config tests/sweeps

$(DOCS): $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

# Without the variable, material prints a notice about MkDocs 2.0 at each start; constraints.txt holds MkDocs at 1.6.
docs: $(DOCS) ## build the documents as a site that works offline
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open $(CURDIR)/site/index.html in a browser."

bench: $(STAMP) ## measure speed here, in minutes; BENCH='augmentation --quick' measures less, BENCH=--help says what
	@$(BIN)/python -m benchmarks $(BENCH)

PAPER ?= scale=smoke
ARTEFACTS ?= table1 figure2 figure3 figure4 figure5 lengths questions
paper: $(STAMP) ## the paper's table and figures, in minutes; PAPER='scale=paper device=cuda' repeats them in full
	@for artefact in $(ARTEFACTS); do \
		$(BIN)/python -m experiments.$$artefact $(PAPER) || exit $$?; done

format: $(STAMP) ## format the code
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean: ## remove the environment built here, and caches
	@rm -rf .venv .venv-next build site *.egg-info .pytest_cache .ruff_cache .mypy_cache
