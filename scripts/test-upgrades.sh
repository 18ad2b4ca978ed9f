#!/usr/bin/env bash
# make test-upgrades: 20 hand-overs under 2,000 requests a second and 50 open streams, of the release binary, or of the program in SPILLWAY_BIN.
# Fails with the first request that does.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

scripts/system.sh run
scripts/rust.sh
scripts/test-tools.sh nextest
if [ -z "${SPILLWAY_BIN:-}" ]; then
  say "Building the release binary; the first time takes some minutes"
  cargo build --release --locked -p spillway
  SPILLWAY_BIN="${CARGO_TARGET_DIR:-$ROOT/target}/release/spillway"
fi
export SPILLWAY_BIN
cargo nextest run --workspace --locked --test alone --run-ignored only --no-capture -E 'test(/^upgrade::/)'
