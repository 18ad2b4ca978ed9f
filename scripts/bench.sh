#!/usr/bin/env bash
# make bench: the load tests of loadtest/, beside nginx and llama.cpp, printed as tables. Arguments go to the program;
# `policies` instead prints what the balancing policies cost and how good they are in simulated time.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

if [ "${1:-}" = policies ]; then
  scripts/rust.sh
  exec cargo bench --locked -p spillway --bench quality --bench picking
fi

scripts/system.sh bench
scripts/rust.sh
scripts/model.sh
scripts/test-tools.sh python

say "Building what is measured (profile dist) and what measures it; the first time takes some minutes"
cargo build --profile dist --locked -p spillway
cargo build --release --locked -p spillway-loadtest
target="${CARGO_TARGET_DIR:-$ROOT/target}"
export SPILLWAY_BIN="$target/dist/spillway"
export SPILLWAY_TEST_MODEL="${SPILLWAY_MODEL_FILE:-$ROOT/models/smollm2-135m-instruct-q4_1.gguf}"
export SPILLWAY_TEST_PYTHON="$VENV/bin/python"
export PATH="$PATH:/usr/sbin"
vulkan_environment
exec "$target/release/spillway-loadtest" "$@"
