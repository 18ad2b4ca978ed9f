#!/usr/bin/env bash
# make soak: the release binary under a mix of everything for an hour, judged at the end: answers, memory, descriptors,
# threads, counters. Fails where a check does. What is sent stands in loadtest/src/soak/clients.rs.
#
# SPILLWAY_SOAK_SECONDS=600 scripts/soak.sh   ten minutes, the short form
# SPILLWAY_BIN names a binary that was built elsewhere.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

seconds="${SPILLWAY_SOAK_SECONDS:-3600}"
[[ "$seconds" =~ ^[0-9]+$ ]] || die "SPILLWAY_SOAK_SECONDS is '$seconds'; expected a number of seconds, such as 600"
scripts/system.sh run
scripts/rust.sh
scripts/model.sh
target="${CARGO_TARGET_DIR:-$ROOT/target}"
if [ -z "${SPILLWAY_BIN:-}" ]; then
  say "Building the release binary; the first time takes some minutes"
  cargo build --release --locked -p spillway
  SPILLWAY_BIN="$target/release/spillway"
fi
cargo build --release --locked -p spillway-loadtest
export SPILLWAY_BIN
export SPILLWAY_TEST_MODEL="${SPILLWAY_MODEL_FILE:-$ROOT/models/smollm2-135m-instruct-q4_1.gguf}"
say "Soaking for $seconds s"
exec "$target/release/spillway-loadtest" soak --seconds "$seconds"
