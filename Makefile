# The commands of the project. `make help` lists them.

.PHONY: help build demo test lint test-unit test-cel test-classes crds test-tools test-pins test-approvals test-methods test-sdk test-operations test-browser test-rmcp advisories test-conformance test-hammer test-shared test-credentials test-capture test-intercept test-memory test-start test-scrape test-replay test-bounds bench bench-capture bench-intercept bench-lists bench-asks bench-smoke bench-decide callgrind fuzz fuzz-smoke images cluster-build cluster-up cluster-down e2e demo-cluster test-chart test-dashboards test-dashboards-live pictures plugin clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-21s %s\n", $$1, $$2 }'

build: ## Build the sidecar: target/release/toolweir-sidecar
	cargo build --release --locked -p toolweir-sidecar

demo: ## Show Toolweir with a real server and a real agent
	@tests/demo/run.sh

test: ## Run all tests and print a summary
	@tests/run.sh

lint: ## Check formatting, clippy, API documentation, structure, CONTRIBUTING and dependencies
	@tests/lint.sh

test-unit: ## Run unit, property and in-process integration tests
	@tests/unit.sh

test-cel: ## Compare the CEL test results with those of cel-go, the engine of Kubernetes
	@tests/cel/run.sh

test-classes: ## Measure the classes of tools on a public catalogue (UPDATE_GOLDEN=1 writes docs/classes.md)
	@tests/classes/run.sh

crds: ## Generate the CRDs: crds/generated
	cargo run --quiet --locked -p toolweir-crds --features kube --bin crdgen crds/generated

test-tools: ## Read the tools of real servers, suggest policies, and call what they allow (ONLY="git fetch")
	@ONLY="$(ONLY)" tests/tools/run.sh

test-pins: ## Change tools one part at a time, and hold them to pins and classes (ONLY="stdio classes")
	@ONLY="$(ONLY)" tests/pins/run.sh

test-approvals: ## Ask a person, with SDK clients, crashes and a flood; needs root (ONLY="clients once", SEED=1)
	@ONLY="$(ONLY)" tests/approvals/run.sh

test-methods: ## Send every method of MCP through the sidecar, in both directions (ONLY="table stdio")
	@ONLY="$(ONLY)" tests/methods/run.sh

test-sdk: ## Run SDKs and agent frameworks through the sidecar (ONLY="gosdk java")
	@tests/sdk/run.sh

test-operations: ## Run SDKs that use every operation of MCP, directly and through the sidecar (ONLY="stdio tasks")
	@ONLY="$(ONLY)" tests/operations/run.sh

test-browser: ## Run a page in headless Chromium through the sidecar
	@tests/browser/run.sh

test-rmcp: ## Run the Rust SDK (rmcp) through the sidecar; part of test-unit
	cargo test --locked -p toolweir-test-rmcp

advisories: ## Check dependencies for known vulnerabilities; needs the network
	@tests/lint.sh advisories

test-conformance: ## Run the official conformance suite, directly and through the sidecar
	@tests/conformance/run.sh

test-hammer: ## Hammer one limit for 60 s and check the log of the server
	@tests/bench/hammer.sh

test-shared: ## Test limits across pods with real redis-servers (ONLY="1 4")
	@ONLY="$(ONLY)" tests/shared/run.sh

test-credentials: ## Test credentials that only the sidecar holds, with real servers (ONLY="kinds expiry")
	@ONLY="$(ONLY)" tests/credentials/run.sh

test-capture: ## Try every way out of a captured pod in network namespaces; needs root (ONLY="rules ways")
	@ONLY="$(ONLY)" tests/capture/run.sh

test-intercept: ## Test HTTPS of captured agents with clients of many runtimes; needs root (ONLY="runtimes mcp")
	@ONLY="$(ONLY)" tests/intercept/run.sh

test-memory: ## Measure resident memory over 100,000 calls
	@tests/bench/memory.sh

test-start: ## Measure the size of the binary and the time until it is ready
	@tests/bench/start.sh

test-scrape: ## Measure a scrape with 200 tools and 50 limits
	@tests/bench/scrape.sh

test-replay: ## Replay a million recorded calls, and those of the demo
	@tests/replay/run.sh

test-bounds: ## Attack sidecar and operator in small control groups; needs root (ONLY="keys items")
	@ONLY="$(ONLY)" tests/bounds/run.sh

bench: ## Compare direct calls, a plain proxy, nginx and the sidecar (PEERS="name=url ...")
	@tests/bench/run.sh

bench-capture: ## Measure what capture costs, and compare it with nginx; needs root
	@tests/bench/capture.sh

bench-intercept: ## Measure what it costs to open TLS of captured agents; needs root
	@tests/bench/intercept.sh

bench-lists: ## Measure what pins and classes add to a tools/list (BASELINE=BINARY compares)
	@tests/bench/lists.sh

bench-asks: ## Measure what a server that asks for very much costs the calls of others
	@tests/bench/asks.sh

bench-smoke: ## Run these benchmarks for a few seconds; needs root
	@SMOKE=1 tests/bench/run.sh
	@SMOKE=1 tests/bench/capture.sh
	@SMOKE=1 tests/bench/intercept.sh
	@SMOKE=1 tests/bench/lists.sh
	@SMOKE=1 tests/bench/asks.sh

bench-decide: ## Benchmark the decision of the engine
	cargo bench --locked -p toolweir-engine

callgrind: ## Count the instructions of a call (BASELINE=BINARY compares)
	@tests/bench/callgrind.sh

fuzz: ## Fuzz each parser of untrusted bytes for 5 minutes (FUZZ_SECONDS)
	@tests/fuzz.sh

fuzz-smoke: ## Fuzz each parser for 20 s
	@FUZZ_SECONDS=20 tests/fuzz.sh

images: ## Build the images of operator and sidecar: target/images
	@IMAGE_PROFILE=$${IMAGE_PROFILE:-release} tests/cluster/images.sh build operator sidecar

cluster-build: ## Build kubectl, helm and the control plane of the test cluster; needs root
	@tests/cluster/node.sh build

cluster-up: ## Start a Kubernetes of one node, or of NODES=2, on this machine; needs root
	@tests/cluster/node.sh up

cluster-down: ## Stop it
	@tests/cluster/node.sh down

e2e: ## Run the end-to-end tests on the cluster of KUBECONFIG, or on its own (ONLY="run audit")
	@tests/cluster/e2e.sh $(ONLY)

demo-cluster: ## Show Toolweir on Kubernetes (KEEP=1 leaves it running)
	@tests/cluster/demo.sh

test-chart: ## Test the chart without a cluster
	@tests/chart/run.sh

test-dashboards: ## Test dashboards and alerts without a cluster
	@tests/dashboards/run.sh

test-dashboards-live: ## Test dashboards and alerts with a real Prometheus on a real cluster
	@tests/dashboards/live.sh

pictures: ## Draw both dashboards with ten minutes of real calls: docs/img
	@LIVE_SECONDS=$${LIVE_SECONDS:-600} PICTURES=1 tests/dashboards/live.sh

plugin: ## Build kubectl toolweir: target/release/kubectl-toolweir, also as target/release/toolweir
	cargo build --release --locked -p toolweir-cli

clean: ## Remove the build output
	cargo clean
