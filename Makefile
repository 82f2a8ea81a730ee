# The project's vocabulary; CI runs these targets. `make help` lists them.

.PHONY: help build demo test lint test-unit crds test-sdk test-browser test-rmcp advisories test-conformance test-hammer test-shared test-memory test-start test-scrape test-bounds bench bench-smoke bench-decide callgrind fuzz fuzz-smoke images cluster-up cluster-down e2e demo-cluster test-dashboards test-dashboards-live pictures plugin clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-18s %s\n", $$1, $$2 }'

build: ## Build the sidecar: target/release/toolweir-sidecar
	cargo build --release --locked -p toolweir-sidecar

demo: ## Show it: a real server, a real agent, 30 of 35 calls delivered
	@tests/demo/run.sh

test: ## Test everything, from nothing, with a summary
	@tests/run.sh

lint: ## Formatting, clippy, dependencies
	@tests/lint.sh

test-unit: ## Unit, property and in-process integration tests
	@tests/unit.sh

crds: ## Write crds/generated from the types
	cargo run --quiet --locked -p toolweir-crds --features kube --bin crdgen crds/generated

test-sdk: ## Real SDKs and agent frameworks against real servers, through the sidecar (ONLY="gosdk java" takes these alone)
	@tests/sdk/run.sh

test-browser: ## A page in headless Chromium, through the sidecar
	@tests/browser/run.sh

test-rmcp: ## The Rust SDK (rmcp) through the sidecar
	cargo test --locked -p toolweir-test-rmcp

advisories: ## Known vulnerabilities of dependencies; needs the network of the advisory database
	@tests/lint.sh advisories

test-conformance: ## The official conformance suite, direct and through the sidecar
	@tests/conformance/run.sh

test-hammer: ## 8 tasks hammer one limit for 60 s; the server's log is checked
	@tests/bench/hammer.sh

test-shared: ## Limits across pods with real redis-servers, judged by the server's log (ROWS="1 4" for these alone)
	@ROWS="$(ROWS)" tests/shared/run.sh

test-memory: ## Resident memory over 100 000 calls
	@tests/bench/memory.sh

test-start: ## Size of the binary, time from start to ready
	@tests/bench/start.sh

test-scrape: ## What a scrape of 200 tools and 50 limits costs
	@tests/bench/scrape.sh

test-bounds: ## What strangers can make a sidecar of 64 MiB and an operator of 256 MiB hold and do, in control groups (ROWS="keys items")
	@ROWS="$(ROWS)" tests/bounds/run.sh

bench: ## Compare direct, pass-through proxy, nginx and the sidecar (PEERS="name=url ..." adds more)
	@tests/bench/run.sh

bench-smoke: ## The same, shortened: shows that the harness works
	@SMOKE=1 tests/bench/run.sh

bench-decide: ## Engine::decide
	cargo bench --locked -p toolweir-engine

callgrind: ## Instructions of a call; BASELINE=BINARY fails where that one takes over PERCENT (3) fewer
	@tests/bench/callgrind.sh

fuzz: ## Fuzz every parser of untrusted bytes, 5 minutes each (FUZZ_SECONDS)
	@tests/fuzz.sh

fuzz-smoke: ## The same, 20 s each
	@FUZZ_SECONDS=20 tests/fuzz.sh

images: ## Build the images of operator and sidecar: target/images
	@IMAGE_PROFILE=$${IMAGE_PROFILE:-release} tests/cluster/images.sh build operator sidecar

cluster-up: ## Start a real one-node Kubernetes on this machine; prints what to export
	@tests/cluster/node.sh up

cluster-down: ## Stop it
	@tests/cluster/node.sh down

e2e: ## Every row of the table on a real cluster (that of KUBECONFIG, else one that it starts); ROWS="run audit" for these alone
	@tests/cluster/e2e.sh $(ROWS)

demo-cluster: ## Show it on Kubernetes: node, chart, policy, agent, server (KEEP=1 leaves it running)
	@tests/cluster/demo.sh

test-dashboards: ## Dashboards and alerts, without a cluster
	@tests/dashboards/run.sh

test-dashboards-live: ## Every query of dashboards and alerts against a real Prometheus on a real cluster
	@tests/dashboards/live.sh

pictures: ## The same, ten minutes of calls, and both dashboards drawn: docs/img
	@LIVE_SECONDS=$${LIVE_SECONDS:-600} PICTURES=1 tests/dashboards/live.sh

plugin: ## Build kubectl toolweir: target/release/kubectl-toolweir
	cargo build --release --locked -p toolweir-cli

clean: ## Remove what was built
	cargo clean
