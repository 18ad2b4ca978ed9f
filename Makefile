# Every target installs what it needs and says what it does. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help run demo test test-upgrades test-image test-aarch64 test-gpu test-clients test-dashboard test-instructions test-kubernetes test-package test-wasm test-dist soak fuzz lint bench dist package sbom model

help: ## list what there is
	@echo 'make TARGET, where TARGET is'
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

run: ## the gateway with the model inside, on http://127.0.0.1:8080 (Ctrl-C stops it)
	@scripts/run.sh

demo: ## the gateway before two llama.cpp servers, with Jaeger: spill and a whole trace (Ctrl-C stops all)
	@scripts/demo.sh

test: ## formatting, lints, licences, unit tests, end-to-end tests with real programs
	@scripts/test.sh

test-upgrades: ## 20 hand-overs of the release binary under 2,000 requests a second and 50 open streams
	@scripts/test-upgrades.sh

test-image: ## the Dockerfile's steps in debootstrapped roots, and the image tried (root; some fifteen minutes)
	@scripts/test-image.sh

test-aarch64: ## the kernels for 64-bit ARM, cross-compiled and run by qemu
	@scripts/test-aarch64.sh

test-gpu: ## the engine on this machine's GPU: kernels, logits, texts, rates (eight minutes at most once built)
	@scripts/test-gpu.sh

test-clients: ## other programs, unmodified: LangChain, LiteLLM, AI SDKs, agents, NVIDIA's client before MLServer, GuideLLM (7 GB of packages)
	@scripts/test-clients.sh

test-dashboard: ## the dashboard in Chromium: pages, changes, accessibility, memory (seven minutes once built)
	@scripts/test-dashboard.sh

test-instructions: ## instructions of a request through the release binary against loadtest/instructions.txt (callgrind)
	@scripts/test-instructions.sh

test-kubernetes: ## the chart through Helm 3 and 4 and the types of Kubernetes, and the gateway before a real API server
	@scripts/test-kubernetes.sh

test-wasm: ## a module of the Rust SDK for proxy-wasm, built for wasm32-wasip1 and run in the gateway
	@scripts/test-wasm.sh

test-package: ## the Debian package and the service of systemd in it
	@scripts/test-package.sh

test-dist: ## `make dist` in two folders gives the same bytes (most of an hour)
	@scripts/test-dist.sh

soak: ## a mix of everything for an hour: answers, memory, descriptors, threads, counters (SPILLWAY_SOAK_SECONDS=600: ten minutes)
	@scripts/soak.sh

fuzz: ## each fuzz target for a minute, its corpus kept (once built)
	@scripts/fuzz.sh

lint: ## formatting, clippy, cargo deny, shellcheck
	@scripts/lint.sh

bench: ## Spillway beside nginx, HAProxy, Envoy and others, as one table (half an hour; ARGS="peers --quick" tries it out)
	@scripts/bench.sh $(ARGS)

dist: ## the program as it is shipped, its bill of materials and checksums, in dist/: the same bytes in any folder
	@scripts/dist.sh

package: ## a Debian package of the program in dist/
	@scripts/package.sh

sbom: ## the bill of materials alone (CycloneDX), in dist/
	@scripts/sbom.sh

model: ## fetch the demo model (98 MB), once
	@scripts/system.sh run
	@scripts/model.sh
