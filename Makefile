# Everything a developer runs. `make help` lists it.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TOOLS := $(CURDIR)/.tools/bin
export PATH := $(TOOLS):$(PATH):/usr/sbin:/sbin

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LISTEN  ?= 127.0.0.1:5000
DATA    ?= ./data

# The end-to-end tests start real servers and measure them, so they run when
# nothing else does, and always: Go cannot see that the binary they start has changed.
# This part of SQLite is C made into Go. The race detector has nothing to find in it, and made the
# tests that use it twice as slow. Other packages must stay in: the linker may take their copy of a generic
# function of sync/atomic for all, and without its instrumentation everything looks like a race.
# Nor are its pointers checked, or those of its libc: every other one is C's.
RACE = -race '-gcflags=modernc.org/...=-d=checkptr=0' '-gcflags=modernc.org/sqlite/lib=-race=false -d=checkptr=0'
UNIT = unit=$$(go list ./... | grep -v /e2e)

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/fairway
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)' -o bin/fairway ./cmd/fairway

.PHONY: run
run: build ## Build and serve on 127.0.0.1:5000 with the data in ./data
	@exec bin/fairway serve --listen $(LISTEN) --data $(DATA)

.PHONY: test
test: lint-tools e2e-tools fmt vet lint ## Install what is missing, then check and test everything
	@$(UNIT); go run ./scripts/testcount $(RACE) -timeout 20m $$unit + -timeout 20m ./sim , -count=1 -timeout 10m ./e2e , -count=1 -timeout 15m ./e2e/node , -count=1 -timeout 10m ./e2e/swarm

.PHONY: test-unit
test-unit: ## Test everything but the end-to-end tests; needs Go only
	@$(UNIT); go run ./scripts/testcount $(RACE) -timeout 20m $$unit

.PHONY: test-e2e
test-e2e: e2e-tools ## Run only the tests with real clients and real container runtimes
	@go run ./scripts/testcount -count=1 -timeout 10m ./e2e , -count=1 -timeout 15m ./e2e/node , -count=1 -timeout 10m ./e2e/swarm

.PHONY: fmt
fmt: ## Fail when a Go file is not formatted
	@bad=$$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l); \
	if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi

.PHONY: vet
vet: ## Run go vet
	@go vet ./...

.PHONY: lint
lint: lint-tools ## Run golangci-lint
	@golangci-lint run ./...

.PHONY: fuzz
FUZZTIME ?= 20s
fuzz: ## Fuzz every fuzz target, FUZZTIME (20s) each
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: mutants
mutants: ## Change what decides about deletion and trust, place by place; list what no test notices (one to two hours)
	@go run ./scripts/mutants $(MUTANTS)

.PHONY: demo
demo: build demo-tools ## Push, delete, collect, restore; run a container through a node with a small cache; pull to four nodes at once
	@scripts/demo.sh bin/fairway
	@scripts/demo-node.sh bin/fairway
	@scripts/demo-swarm.sh bin/fairway

.PHONY: bench
bench: build bench-tools ## Measure against Distribution and nginx; prints Markdown (about 20 minutes)
	@go run ./bench -fairway bin/fairway

.PHONY: bench-quick
bench-quick: build bench-tools ## The same, small and rough, in about a minute
	@go run ./bench -fairway bin/fairway -quick

.PHONY: bench-swarm
bench-swarm: build ## Measure swarms of 8 and 16 nodes beside pulls from the registry (about 15 minutes)
	@go run ./bench/swarm -fairway bin/fairway

.PHONY: lint-tools e2e-tools demo-tools bench-tools
lint-tools demo-tools bench-tools:
	@scripts/tools.sh $(@:-tools=)

e2e-tools:
	@scripts/tools.sh e2e
	@scripts/tools.sh node

.PHONY: clean
clean: ## Remove what was built and installed here (not ./data)
	@rm -rf bin .tools
