# Everything runs in .venv, which is made and filled when pyproject.toml or constraints.txt is newer.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Every page anew, for what an earlier build has warned of is not said again; a warning is an error.
SPHINX := $(BIN)/sphinx-build -W --keep-going -E -q docs docs/_build/html

.PHONY: setup demo test fuzz bench fidelity train-shipped docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing numa-rl into .venv (a minute or two the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	@$(BIN)/numa-rl demo

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(SPHINX)
	$(BIN)/pytest --numprocesses 2 --dist loadfile

# The same tests on other random examples each time, for hours if you like.
fuzz: $(READY)
	$(BIN)/pytest --hypothesis-profile=explore

bench: $(READY)
	@$(BIN)/numa-rl bench

# How far the simulator is from SimGrid, which Debian packages for its own Python.
HAS_SIMGRID := $(BIN)/python -c 'import sys; from experiments.fidelity.referee import find_simgrid; sys.exit(find_simgrid() is None)'
APT := apt-get install --yes --quiet python3-simgrid

fidelity: $(READY)
	@$(HAS_SIMGRID) || { command -v apt-get >/dev/null && echo "Installing SimGrid: $(APT)" \
		&& if [ "$$(id -u)" = 0 ]; then $(APT); else sudo $(APT); fi; } \
		|| { echo "SimGrid is needed: as root, run apt-get install python3-simgrid"; exit 1; }
	@$(BIN)/numa-rl study fidelity --laws --json results/fidelity/fidelity.json --csv results/fidelity/fidelity.csv \
		--plot results/fidelity/fidelity.png --tables results/fidelity/tables.txt

# The policy that comes with the package, from nothing: training, the suite with it, its model card.
SHIPPED := runs/shipped
train-shipped: $(READY)
	$(BIN)/numa-rl train --scenario suite --out $(SHIPPED) --overwrite --validate-every 8 --validation-episodes 288 \
		--teacher.labels 640000 --teacher.depth 192 --teacher.discount 0.95 --teacher.own-discount 1 \
		--teacher.num-candidates 5 --teacher.stride 8 --teacher.memory 8 --teacher.near 0.03
	$(BIN)/numa-rl suite --policy $(SHIPPED)/policy.safetensors --shield --lookahead --no-oracle --out results/shipped
	$(BIN)/numa-rl ship --run-folder $(SHIPPED) --suite results/shipped

docs: $(READY)
	@$(SPHINX)
	@echo "docs/_build/html/index.html"

clean:
	rm -rf .venv results runs docs/_build
