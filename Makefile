# Everything starts here: `make demo` and `make test` set up what they need.
#
# In an active environment (conda, venv) packages go there and a working torch is
# kept; otherwise `.venv` is made.

PYTHON ?= python3
ACTIVE := $(or $(VIRTUAL_ENV),$(if $(filter base,$(CONDA_DEFAULT_ENV)),,$(CONDA_PREFIX)))
HOME_OF_ENV := $(or $(ACTIVE),.venv)
BIN := $(HOME_OF_ENV)/bin
STAMP := $(HOME_OF_ENV)/.sketchbook-ready

export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: setup demo lab test test-slow bench figures clean

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@echo "setup: installing into $(HOME_OF_ENV) (a few minutes and about 6 GB the first time)"
	@test -n "$(ACTIVE)" || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "setup: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(HOME_OF_ENV)
	@if $(BIN)/python -c 'import torch, torchvision' 2>/dev/null; then \
		echo "setup: keeping the torch that is here:" \
			"$$($(BIN)/python -c 'import torch; print(torch.__version__)')"; \
		grep -Ev '^torch(vision)?==' requirements.txt > $(HOME_OF_ENV)/wanted.txt; \
	else \
		cp requirements.txt $(HOME_OF_ENV)/wanted.txt; \
	fi
	@$(BIN)/python -m pip install --quiet -r $(HOME_OF_ENV)/wanted.txt
	@$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $(STAMP)
	@echo "setup: ready"

demo: setup
	$(BIN)/sketch demo
	$(BIN)/sketch workbook params/workbooks/demo.yaml

lab: setup
	$(BIN)/jupyter lab --notebook-dir notebooks

test: export HF_HUB_OFFLINE := 1
test: export OMP_NUM_THREADS := 1
test: setup
	$(BIN)/ruff format --check sketchlib tests benchmarks
	$(BIN)/ruff check sketchlib tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: export HF_HUB_OFFLINE := 1
test-slow: setup
	$(BIN)/python -m pytest -m slow

bench: data/demo
	-$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/duplicates.py --pictures 2000 --peers $(or $(PEERS),runs/bench/peers)
	$(BIN)/python benchmarks/augment.py data/demo/train --side 128
	$(BIN)/python benchmarks/training.py
	$(BIN)/sketch run 01_eda -p run_name audit --runs runs/bench
	$(BIN)/python benchmarks/time_to_accuracy.py --runs runs/bench
	$(BIN)/python benchmarks/feature_bank.py data/demo runs/bench
	$(BIN)/python benchmarks/ensemble.py
	$(BIN)/python benchmarks/gradcam.py
	$(BIN)/python benchmarks/table.py

data/demo: | setup
	$(BIN)/sketch demo

figures: setup
	$(BIN)/python docs/make_figures.py

clean:
	rm -rf runs/cache build *.egg-info .pytest_cache .ruff_cache .mypy_cache
