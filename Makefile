# Needs Rust, Python 3.11 with pip and venv, gcc and make. Everything else comes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What building needs, what testing and checking need beyond it, and what aioraft is measured beside.
BUILD_TOOLS := $(VENV)/.build-tools
DEV_TOOLS := $(VENV)/.dev-tools
BENCH_TOOLS := $(VENV)/.bench-tools
# A protoc generates raft's messages when cargo builds: the virtual environment's, whatever else is on PATH.
export PROTOC := $(CURDIR)/$(BIN)/protoc
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python

# What times and counts the hot paths needs no Python.
HOT := --no-default-features --features driver

# Worlds that `make sim` runs.
SEEDS ?= 1000

.DEFAULT_GOAL := help
.PHONY: help demo test test-rust test-python test-chaos test-slow-disk test-large sim sim-mutants verify fix bench bench-peers bench-long instructions fuzz soak chaos judge exits stubs audit build venv wheel clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: build ## Three processes, their leader killed half-way (ARGS="--input FILE --out DIR")
	@$(BIN)/python examples/demo.py $(ARGS)

test: test-rust test-python test-chaos ## All tests

test-rust: $(BUILD_TOOLS)
	cargo test --no-default-features
	cargo test --no-default-features --features driver
	@libdir=$$($(BIN)/python -c 'import sysconfig as s; print(s.get_config_var("LIBDIR") if s.get_config_var("Py_ENABLE_SHARED") else "")'); \
	if [ -n "$$libdir" ] && ls "$$libdir"/libpython3.*.so >/dev/null 2>&1; then LD_LIBRARY_PATH="$$libdir" cargo test --lib bridge; \
	else echo "this Python has no libpython to link with: the bridge is tested by pytest alone"; fi
	cargo test --release --no-default-features --features mutants -- sim::
	@$(MAKE) --no-print-directory sim SEEDS=300 FROM=1 SECONDS=60

# SEED=x runs one seed again (EDITION=n: as it was drawn then); FROM=x begins there instead of at a random seed.
sim: $(BUILD_TOOLS) ## A simulated world, all faults, and its checkers (SEEDS=n FROM=seed, or SEED=x again)
	@cargo run --quiet --release --no-default-features --features mutants --example sim -- \
		$(if $(SEED),seed $(SEED) $(EDITION),seeds $(SEEDS) $(or $(FROM),new) $(SECONDS))

sim-mutants: $(BUILD_TOOLS) ## Deliberate bugs: which checker of the simulated world finds each, and how soon
	@cargo run --quiet --release --no-default-features --features mutants --example sim -- mutants

test-python: venv build
	$(BIN)/python -m pytest $(ARGS)

test-large: venv build ## A state of 1 GiB, taken, sent and restored: stalls, memory, latency of proposals (prints the figures)
	AIORAFT_STATE_MIB=1024 $(BIN)/python -m pytest -rP tests/python/test_snapshot_size.py tests/python/test_snapshot_transfer.py

test-chaos: venv build judge
	$(BIN)/python -m pytest tests/chaos
	@$(BIN)/python tests/chaos/chaos.py --seconds 40

test-slow-disk: venv build ## Fsyncs of five seconds, on a quiet machine
	AIORAFT_SLOW_DISK=1 $(BIN)/python -m pytest tests/python/test_disk_faults.py -k slow_disk

verify: venv build ## Formats, lints, types and stubs; changes nothing
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --all-targets --no-default-features -- -D warnings
	cargo clippy --all-targets --no-default-features --features driver -- -D warnings
	cargo clippy --all-targets --no-default-features --features sim -- -D warnings
	cargo clippy --all-targets --no-default-features --features mutants -- -D warnings
	cargo clippy --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m mypy.stubtest --allowlist .ci/stubtest-allowlist aioraft
	rm -rf target/stubs
	$(BIN)/maturin generate-stubs --features stubs --out target/stubs
	diff -ru target/stubs stubs

fix: venv ## Format, and apply what the linters can mend themselves
	cargo fmt
	cargo fmt --manifest-path fuzz/Cargo.toml
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BUILD_TOOLS) build ## Hot paths, the bare bridge, one node, three processes, failover (ARGS="--rounds 3 --seconds 3")
	@rm -rf target/criterion
	cargo bench --quiet $(HOT) --bench hot_paths -- --noplot --quiet
	@$(BIN)/python benches/criterion_results.py
	@$(BIN)/python benches/end_to_end.py $(ARGS)

bench-long: build ## Memory over 5 million proposals; how soon a log of a million entries is open and replayed
	@$(BIN)/python benches/long_run.py $(ARGS)

instructions: $(BUILD_TOOLS) ## Count the instructions of the hot paths, and compare (ARGS=--write commits to the new counts)
	@cargo bench --quiet $(HOT) --bench instructions -- $(ARGS)

bench-peers: $(BENCH_TOOLS) build ## aioraft beside etcd and PySyncObj, in turns on one disk (ARGS="--rounds 5 --seconds 4 --publish")
	cargo build --quiet --release $(HOT) --example without_python
	@$(BIN)/python benches/side_by_side.py $(ARGS)

fuzz: $(BUILD_TOOLS) .tools/bin/cargo-fuzz ## Throw anything at wire, handshake, log records, snapshots and engine (SECONDS=1200 for each; needs a nightly Rust)
	@for target in frames handshake log_records snapshots peers; do \
		RUSTUP_TOOLCHAIN=$${RUSTUP_TOOLCHAIN:-nightly} .tools/bin/cargo-fuzz run --fuzz-dir fuzz --sanitizer none $$target -- -max_total_time=$(or $(SECONDS),1200) -print_final_stats=1 || exit 1; \
	done

soak: build ## Three processes under faults: is memory flat, is all counted once? (SECONDS=3600)
	@$(BIN)/python tests/soak/soak.py --seconds $(or $(SECONDS),3600)

chaos: build judge ## Processes, disks and links that fail; a judge of what the clients saw (SECONDS=600 NODES=3 SEED=x)
	@$(BIN)/python tests/chaos/chaos.py --seconds $(or $(SECONDS),600) --nodes $(or $(NODES),3) $(if $(SEED),--seed $(SEED))

judge: $(BUILD_TOOLS)
	@cargo build --quiet --release --no-default-features --features mutants --example sim

exits: venv build ## Every way to interrupt a node and to end its process, many times (RUNS=200)
	AIORAFT_EXIT_RUNS=$(or $(RUNS),200) $(BIN)/python -m pytest --timeout 3600 -rP tests/python/test_node_exit.py tests/python/test_core_exit.py

stubs: $(BUILD_TOOLS) ## Write stubs/aioraft/_core.pyi anew from the Rust sources
	$(BIN)/maturin generate-stubs --features stubs --out stubs

audit: venv .tools/bin/cargo-deny ## Known vulnerabilities, licenses and sources of all dependencies
	@PATH="$(CURDIR)/.tools/bin:$$PATH" BIN=$(BIN) .ci/audit

build: $(BUILD_TOOLS) ## Build the extension module into .venv
	@test -d target/release || echo "Building aioraft and what it depends on; the first time this takes some minutes." >&2
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --group build </dev/null >&2

wheel: $(BUILD_TOOLS) ## Build a wheel into dist/ as `pip install .` does, and look into it
	env -u PROTOC -u PYO3_PYTHON $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python .ci/check_wheel.py dist

venv: $(DEV_TOOLS)

$(BUILD_TOOLS): pyproject.toml
	@echo "Making $(VENV) with what building needs." >&2
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "aioraft needs Python 3.11 or newer: make PYTHON=python3.11"'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --group build
	@touch $@

$(DEV_TOOLS): $(BUILD_TOOLS)
	@echo "Installing into $(VENV) what testing and checking need." >&2
	@$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(BENCH_TOOLS): $(BUILD_TOOLS)
	@echo "Installing into $(VENV) what aioraft is measured beside." >&2
	@$(BIN)/python -m pip install --quiet --group bench
	@touch $@

.tools/bin/cargo-fuzz:
	cargo install --locked --root .tools cargo-fuzz

.tools/bin/cargo-deny:
	cargo install --locked --root .tools cargo-deny

clean: ## Remove what was built
	rm -rf target dist $(VENV) .tools .demo
