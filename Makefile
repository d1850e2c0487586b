# Thin on purpose: the work is in the `avatarforge` command. AVATARFORGE_HTTP_PORT, AVATARFORGE_GRPC_PORT,
# AVATARFORGE_DATA_DIR and every other AVATARFORGE_ variable hold for every target, because it reads them.

.DEFAULT_GOAL := help
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
INSTALLED := $(VENV)/.installed
DEVELOPING := $(VENV)/.developing
TEST_READY := $(VENV)/.test-ready
CLIENTS := tests/clients
CLIENTS_READY := $(CLIENTS)/.venv/.ready

PACKAGE := avatarforge/grpc_generated
GENERATED := .
SYNC_CLIENT := avatarforge/client/sync_client.py
PROTOC := $(BIN)/python -m grpc_tools.protoc -I $(PACKAGE)=proto

PHOTO ?=
OUT ?= out
PYTEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: help
help: ## Show the targets.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: install
install: $(INSTALLED) ## Make .venv and install AvatarForge in it.

.PHONY: demo
demo: $(INSTALLED) ## Turn a photo into an avatar: PHOTO=… (or the sample), OUT=out.
	@$(BIN)/avatarforge forge --demo --out "$(OUT)" $(if $(PHOTO),"$(PHOTO)")

.PHONY: up
up: $(INSTALLED) ## Serve until Ctrl-C.
	@exec $(BIN)/avatarforge up

.PHONY: test
test: $(TEST_READY) $(CLIENTS_READY) ## Run the tests, after installing what they need (PYTEST_ARGS=…).
	PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: chaos
chaos: $(TEST_READY) ## Break things for an hour or two: long versions of what `make test` does.
	PATH="$$PATH:/usr/sbin:/sbin" CHAOS_JOBS=200 CHAOS_PHOTOS=1000 SOAK_MINUTES=30 SIMULATION_SEEDS=20000 \
	  CHAOS_RESULTS=benchmarks/results/chaos.json \
	  $(BIN)/python -m pytest tests/chaos tests/cluster tests/simulation --timeout 7200 $(PYTEST_ARGS)

.PHONY: clients
clients: $(TEST_READY) $(CLIENTS_READY) ## Try other people's clients, also over twenty restarts of the service.
	PATH="$$PATH:/usr/sbin:/sbin" CLIENT_RESTARTS=20 $(BIN)/python -m pytest $(CLIENTS) --timeout 7200 -s $(PYTEST_ARGS)

.PHONY: proto
proto: $(DEVELOPING) ## Generate the gRPC code from proto/.
	@$(PROTOC) --python_out=$(GENERATED) --pyi_out=$(GENERATED) --grpc_python_out=$(GENERATED) \
	  $(PACKAGE)/profile_photo_job.proto

.PHONY: client
client: $(DEVELOPING) ## Generate the blocking client from the asynchronous one.
	@$(BIN)/python .ci/generate_client.py > $(SYNC_CLIENT)

.PHONY: drift
drift: $(DEVELOPING)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(MAKE) proto GENERATED="$$folder" && \
	diff -r -x __init__.py -x __pycache__ "$$folder/$(PACKAGE)" $(PACKAGE) >&2 || { \
	  echo "$(PACKAGE) is not what proto/ says: run 'make proto'." >&2; exit 1; }
	@$(BIN)/python .ci/generate_client.py | diff - $(SYNC_CLIENT) >&2 || { \
	  echo "$(SYNC_CLIENT) is not what async_client.py says: run 'make client'." >&2; exit 1; }
	@PYTHONPATH=. $(BIN)/python .ci/pages.py --check

.PHONY: docs
docs: $(INSTALLED) ## Write docs/settings.md, docs/rest.md and docs/metrics.md from the code.
	@PYTHONPATH=. $(BIN)/python .ci/pages.py

.PHONY: audit
audit: $(DEVELOPING)
	$(BIN)/python .ci/audit.py constraints.txt
	$(BIN)/python .ci/licences.py >/dev/null

.PHONY: check
check: $(DEVELOPING) drift audit ## Check style, format, types, layers, generated code, vulnerabilities and licences.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/client_types.py
	$(BIN)/lint-imports

.PHONY: format
format: $(DEVELOPING) ## Format the code and mend what can be mended.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: screenshots
screenshots: $(TEST_READY) ## Make the README's pictures of the studio anew, in docs/images/.
	@$(BIN)/python -m tests.studio.screenshots

.PHONY: bench
bench: $(DEVELOPING) ## Measure, and write tables and JSON (BENCH_ARGS=…).
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

.PHONY: build
build: $(DEVELOPING) ## Build the wheel and the source distribution into dist/.
	$(BIN)/python -m build --no-isolation --outdir dist .

.PHONY: clean
clean: ## Remove what was built and installed; data/ and out/ stay.
	rm -rf $(VENV) $(CLIENTS)/.venv $(CLIENTS)/node_modules dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "AvatarForge needs Python 3.11 or newer, but '$(PYTHON)' is older or missing." >&2; \
	  echo "Install it (Debian: apt-get install python3 python3-venv), or name one: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed. On Debian: apt-get install python3-venv" >&2; \
	  rm -rf $(VENV); exit 1; }
	@echo "Installing PyTorch, Ray and the rest into $(VENV): some minutes, 6 GB …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(DEVELOPING): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The tests start a MariaDB server, a Prometheus, a Redis and a browser of their own; only the programs are needed.
$(TEST_READY): $(DEVELOPING)
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	command -v mariadbd >/dev/null 2>&1 || missing="mariadb-server"; \
	command -v chromium >/dev/null 2>&1 || missing="$$missing chromium"; \
	command -v promtool >/dev/null 2>&1 || missing="$$missing prometheus"; \
	command -v redis-server >/dev/null 2>&1 || missing="$$missing redis-server"; \
	command -v npm >/dev/null 2>&1 || missing="$$missing npm"; \
	command -v mmdebstrap >/dev/null 2>&1 || missing="$$missing mmdebstrap"; \
	command -v heif-convert >/dev/null 2>&1 || missing="$$missing libheif-examples"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then sudo=; else sudo="sudo -n"; fi; \
	  echo "Installing for the tests, from Debian: $$missing …"; \
	  { $$sudo apt-get update -q && \
	    $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	  } </dev/null || { \
	    echo "The tests need MariaDB's server, Chromium, Prometheus, Redis, npm, mmdebstrap and heif-convert, and they could not be installed from here." >&2; \
	    echo "Install them by hand (as root: apt-get install $$missing), then run 'make test' again." >&2; \
	    exit 1; }; \
	fi
	@touch $@

# Clients that nobody here wrote, in environments of their own. None needs what its installation would run.
$(CLIENTS_READY): $(CLIENTS)/package.json $(CLIENTS)/requirements.txt $(TEST_READY)
	cd $(CLIENTS) && npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error
	$(PYTHON) -m venv $(CLIENTS)/.venv
	$(CLIENTS)/.venv/bin/python -m pip install --quiet --disable-pip-version-check -r $(CLIENTS)/requirements.txt
	@touch $@
