# make train [ARGS="--seed 1"]   set up if needed, then train Mario for a few minutes
# make test  [ARGS="tests/..."]  set up if needed, then run the tests
# make chaos [ARGS="--seed 7"]   kill processes of a small run for ten minutes
# make two-hosts                 `ray up` on two hosts of namespaces, a run, a loss (root; minutes)
# make bench [ARGS="--only ..."] run our benchmarks' short forms, with ARGS=--peers the comparisons
#                                with other systems too, and refresh docs/benchmarks.md
# make setup | lint | lock       PYTHON=... names the Python 3.11 to use
# EXTRAS=text before any of these adds what text games need, EXTRAS=trackers W&B and MLflow, which
# `make test` adds by itself

PYTHON := $(or $(PYTHON),$(shell command -v python3.11 || command -v python3))
BIN := .venv/bin
# Where `make lock` finds the +cpu build of torch: a page or folder of wheels.
TORCH_WHEELS ?= https://download.pytorch.org/whl/cpu/torch/
UV ?= uv
COMPILE = $(UV) pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--annotation-style line --custom-compile-command "make lock"

.PHONY: setup train test chaos two-hosts bench lint lock

setup:
	@test -n "$(PYTHON)" || { echo "[setup] error: no python3 on PATH; install Python 3.11" >&2; exit 2; }
	@"$(PYTHON)" launch/setup_env.py

train: setup
	@$(BIN)/python launch/train.py $(ARGS)

test: export EXTRAS := $(EXTRAS) trackers
test: setup
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(ARGS)

chaos: setup
	@$(BIN)/python tests/chaos/chaos.py $(ARGS)

two-hosts: setup
	@$(BIN)/python tests/cluster/two_hosts.py

bench: setup
	@$(BIN)/python benchmarks/bench.py $(ARGS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Keeps the versions already locked; add UPGRADE=--upgrade to take newer ones. Needs uv.
lock:
	$(COMPILE) $(UPGRADE) requirements/cpu.in -o requirements/cpu.txt \
		--overrides requirements/cpu_excluded.in --find-links $(TORCH_WHEELS)
	$(COMPILE) $(UPGRADE) requirements/gpu.in -o requirements/gpu.txt \
		--overrides requirements/gpu_excluded.in
	$(COMPILE) $(UPGRADE) requirements/text.in -o requirements/text.txt \
		--constraints requirements/cpu.txt --find-links $(TORCH_WHEELS)
	$(COMPILE) $(UPGRADE) requirements/trackers.in -o requirements/trackers.txt \
		--constraints requirements/cpu.txt --overrides requirements/trackers_overrides.in
