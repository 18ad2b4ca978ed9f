#!/usr/bin/env bash
# make test-instructions: user-space instructions of a request through the release binary, counted by callgrind, against the
# bounds of loadtest/instructions.txt. A count that falls for good gets a lower bound; one that must rise needs a reason in
# the commit.
#
# scripts/test-instructions.sh [WORKLOAD...]   only these: bare, full, chat, sse
# SPILLWAY_BIN names a binary that was built elsewhere.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

scripts/system.sh instructions
if [ -z "${SPILLWAY_BIN:-}" ]; then
  scripts/rust.sh
  say "Building the release binary with its symbols"
  cargo build --release --locked -p spillway --config 'profile.release.strip="none"'
  SPILLWAY_BIN="${CARGO_TARGET_DIR:-$ROOT/target}/release/spillway"
fi
python="$(find_python)" || die "no Python of at least 3.10: run scripts/system.sh run"
say "Counting instructions (callgrind; a few minutes)"
exec "$python" scripts/instructions.py "$SPILLWAY_BIN" loadtest/instructions.txt "$@"
