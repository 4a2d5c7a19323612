# Every target a developer or the CI needs; `make` alone explains them.
.DEFAULT_GOAL := help
SHELL := /bin/sh
.DELETE_ON_ERROR:

BIN := .venv/bin
STAMP := .venv/.stamp
LOCALSTACK_STAMP := .venv-localstack/.stamp
BENCH_STAMP := .venv/.bench-stamp
WITH_DOCKERD := deploy/local/with-dockerd

# End-to-end tests wait more than they compute: three processes keep two cores busy, two take half as long again. A file's
# tests stay together.
SIDE_BY_SIDE := --numprocesses 3 --dist loadfile --no-loadscope-reorder

# `make chaos SEED=7 LAUNCHES=500`, or any option of `python -m tests.chaos --help` in ARGS.
CHAOS_OPTIONS := SEED WORKERS LAUNCHES LEDGER EXECUTOR MINUTES
lower = $(shell printf %s '$(1)' | tr A-Z a-z)

.PHONY: help setup system demo dev check fmt test test-localstack chaos bench bench-quick bench-page clean

help: ## Show this help
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Install what is missing: Debian packages (as root), .venv with pinned dependencies

# Order-only: the look at the system takes milliseconds, and does not make the virtual environment stale.
$(STAMP): pyproject.toml constraints.txt | system
	@deploy/local/setup python
	@touch $@

$(LOCALSTACK_STAMP): constraints-localstack.txt | system
	@deploy/local/setup localstack
	@touch $@

system:
	@deploy/local/setup system

demo: $(STAMP) ## See it work: local stack, two launches from queue to finished log
	@$(WITH_DOCKERD) $(BIN)/launch-worker demo

dev: $(STAMP) ## Run the local stack until Ctrl+C, writes dev.env and launch.json: ARGS="--aws-port 4577"
	@$(WITH_DOCKERD) $(BIN)/launch-worker dev --env-file dev.env --message launch.json $(ARGS)

check: $(STAMP) ## Lint, format check, types, import direction
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP) ## Format and fix what can be fixed by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: check ## All that has to pass: check, then every test
	$(WITH_DOCKERD) $(BIN)/python -m pytest $(SIDE_BY_SIDE)

# Outside CI not part of `test`: LocalStack is another 500 MB.
ifeq ($(CI),true)
test: test-localstack
endif

test-localstack: $(STAMP) $(LOCALSTACK_STAMP) ## SQS and Logs against LocalStack 4.13, in a venv of its own
	$(WITH_DOCKERD) $(BIN)/python -m pytest tests/localstack

# Docker is asked for only where training jobs shall be containers.
chaos: $(STAMP) ## Kill, freeze and starve workers, then audit: ARGS="--seed 7 --launches 500", or SEED=7 LAUNCHES=500
	@$(if $(findstring docker,$(EXECUTOR) $(ARGS)),$(WITH_DOCKERD)) $(BIN)/python -m tests.chaos \
		$(foreach option,$(CHAOS_OPTIONS),$(if $($(option)),--$(call lower,$(option)) $($(option)))) $(ARGS)

bench: $(BENCH_STAMP) ## Measure the worker and W&B's agent, side by side, into docs/benchmarks.md: 20 minutes
	$(WITH_DOCKERD) $(BIN)/python -m bench run $(SCENARIOS)

bench-quick: $(BENCH_STAMP) ## The same with smaller numbers, which are only shown: 3 minutes
	$(WITH_DOCKERD) $(BIN)/python -m bench run --short $(SCENARIOS)

bench-page: $(BENCH_STAMP) ## Write docs/benchmarks.md again from the last `make bench`
	$(BIN)/python -m bench page

$(BENCH_STAMP): $(STAMP)
	@deploy/local/setup bench
	@touch $@

# Not .env, which is the user's, and not launch-ledger.db: it may be the only record of jobs that run.
clean: ## Remove .venv, caches, .state, and dev's files dev.env, launch.json; .env and *.db stay
	rm -rf .venv .venv-localstack .state build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	rm -f dev.env launch.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
