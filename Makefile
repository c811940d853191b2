# Every target that needs Python depends on the stamp below, so each of them makes .venv by itself, once.
# A .venv that somebody made by hand is kept: the packages it lacks are added.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
LOCK_VENV := .venv-lock

.PHONY: demo demo-seeds test lint bench bench-planted bench-grid chaos scale lock clean

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-deps -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@

demo: $(STAMP)
	$(BIN)/stgs demo --out demo

demo-seeds: $(STAMP)
	$(BIN)/stgs demo --out demo --seeds 0 1 2

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m tests.bench.bench_search
	$(BIN)/python -m tests.bench.bench_forecast
	$(BIN)/python -m tests.bench.bench_ray
	$(BIN)/python -m tests.bench.bench_prepare
	$(BIN)/python -m tests.bench.bench_baseline

# Which features and operations each estimator finds; about 4 minutes.
bench-planted: $(STAMP)
	$(BIN)/python -m tests.bench.bench_planted

# A grid on features of the paper's size: for a machine with a GPU.
bench-grid: $(STAMP)
	$(BIN)/python -m tests.bench.bench_grid

# A grid under 50 kills, and a search whose workers come and go, against undisturbed ones; about 30 minutes.
chaos: $(STAMP)
	$(BIN)/python -m tests.cluster.chaos --kills 50
	$(BIN)/python -m tests.cluster.chaos_elastic

# What Ray costs a grid of 1,000 points on 20 nodes of this machine; and the tables of docs/scale.md.
scale: $(STAMP)
	$(BIN)/python -m tests.bench.bench_scale
	$(BIN)/python -m tests.bench.scale_on_paper

# A fresh resolve of pyproject.toml in an environment of its own. facenet-pytorch comes last and without its pins,
# which no resolver can meet. Local versions (+cu128) are cut off: they name a build that not every index has.
lock:
	rm -rf $(LOCK_VENV)
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --upgrade pip setuptools wheel
	$(LOCK_VENV)/bin/python -m pip install --no-build-isolation -e '.[dev]'
	$(LOCK_VENV)/bin/python -m pip install --no-deps facenet-pytorch
	$(LOCK_VENV)/bin/python -m pip freeze --all --exclude-editable | sed 's/+.*//' | LC_ALL=C sort -f > requirements.lock
	rm -rf $(LOCK_VENV)

clean:
	rm -rf demo build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find stgs data_prep cluster jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +
