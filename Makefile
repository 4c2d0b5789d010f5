# The project's vocabulary: `make help`. What a target needs beyond the prerequisites in README.md, tools/fetch builds
# once into the user's cache.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# More words for the program that a target runs: make test ARGS='--test dialler'
ARGS ?=

# The tests wait more than they compute, most of all for the ack wait of 30 s.
export RUST_TEST_THREADS ?= 6

# Where cargo builds.
target := $(abspath $(or $(CARGO_TARGET_DIR),target))

# Put before a command, these give it the pinned servers.
nats = nats=$$(tools/fetch nats-server) && export NATS_SERVER=$$nats/nats-server &&
kubernetes = kubernetes=$$(tools/fetch kubernetes) && export KUBERNETES_BIN=$$kubernetes &&

.PHONY: help
help: ## List what can be done here
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: demo
demo: ## See it work: a NATS server, the operator and simulated calls, then an end
	@$(nats) cargo build --bin sipstuff-operator --example demo && \
		SIPSTUFF_OPERATOR=$(target)/debug/sipstuff-operator $(target)/debug/examples/demo $(ARGS)

.PHONY: run
run: ## The same, kept running to try things on until Ctrl-C
	@$(MAKE) demo ARGS='--keep $(ARGS)'

.PHONY: test
test: ## Run every test, against a real nats-server and Kubernetes API
	@$(nats) $(kubernetes) cargo test --features failpoints $(ARGS)

.PHONY: test-api
test-api: ## Test a running operator against its OpenAPI document: ARGS='--seed 7 --max-examples 1000'
	@tools/test-api $(ARGS)

.PHONY: chaos
chaos: ## Place 10,000 calls under 200 faults: ARGS='CHAOS_SEED=7 CHAOS_CALLS=500 CHAOS_FAULTS=20'
	@$(nats) $(kubernetes) env CHAOS_SEED=$$(date +%s) CHAOS_CALLS=10000 CHAOS_FAULTS=200 $(ARGS) \
		cargo test --features failpoints --test integration faults::chaos:: -- --nocapture

.PHONY: test-power
test-power: ## Cut nats-server's power at random moments (root, loop devices): ARGS='POWER_SEED=7 POWER_ROUNDS=1'
	@cargo test --quiet --features failpoints --test integration --no-run
	@# In a mount namespace of its own: however the test ends, its file systems and loop devices go with it.
	@$(nats) unshare --mount env $(ARGS) cargo test --quiet --features failpoints --test integration \
		faults::power_loss:: -- --ignored --nocapture --test-threads 1

.PHONY: check
check: ## Look at formatting, lints, documentation, dependencies, generated files
	@echo 'check: formatting'
	@cargo fmt --check
	@echo 'check: lints'
	@cargo clippy --quiet --all-targets --all-features -- -D warnings
	@echo 'check: documentation'
	@RUSTDOCFLAGS='-D warnings' cargo doc --quiet --no-deps --all-features --document-private-items
	@echo 'check: dependencies'
	@deny=$$(tools/fetch cargo-deny) && $$deny/cargo-deny --log-level warn check bans licenses sources
	@echo 'check: generated files'
	@tools/generate --check

.PHONY: audit
audit: ## Look for known vulnerabilities in dependencies (needs the network)
	@deny=$$(tools/fetch cargo-deny) && $$deny/cargo-deny check advisories

.PHONY: bench
bench: ## Measure the operator beside raw NATS and raw Kubernetes
	@$(nats) $(kubernetes) cargo bench --bench ratios $(if $(ARGS),-- $(ARGS))

.PHONY: generate
generate: ## Write the generated files anew: schemas, rendered manifests, the table of settings
	@tools/generate .

.PHONY: tools
tools: ## Build ahead of time what the other targets need
	@for tool in nats-server kubernetes kubectl cargo-deny schemathesis; do tools/fetch $$tool || exit; done

.PHONY: clean
clean: ## Remove what cargo built
	@cargo clean --quiet
	@echo "The servers stay, for every clone. To remove them: rm -r $${XDG_CACHE_HOME:-$$HOME/.cache}/sipstuff-operator"
