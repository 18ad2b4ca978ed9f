#!/usr/bin/env bash
# make demo: the gateway in front of two real llama.cpp servers, with Jaeger. Installs and builds missing parts, then
# runs demo.py. scripts/demo.sh --once ends by itself after the last step.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

scripts/system.sh run
scripts/rust.sh
scripts/model.sh
scripts/test-tools.sh python jaeger

say "Building the release binary (the first time takes some minutes)"
# Without the client for Kubernetes, whose crates take a minute more to build.
cargo build --release --locked -p spillway --no-default-features

vulkan_environment
exec "$VENV/bin/python" scripts/demo.py \
  --spillway "${CARGO_TARGET_DIR:-$ROOT/target}/release/spillway" \
  --jaeger "$BIN/jaeger" \
  --model "${SPILLWAY_MODEL_FILE:-$ROOT/models/smollm2-135m-instruct-q4_1.gguf}" \
  --config config/examples/demo-fleet.yaml \
  --logs "$CACHE/demo" "$@"
