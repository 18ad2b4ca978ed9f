#!/usr/bin/env bash
# make test-wasm: a module of the Rust SDK for proxy-wasm, built for wasm32-wasip1 from its own lock file, before the gateway:
# configuration, headers, bodies whole and streamed, a call to a server, a panic.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

target=wasm32-wasip1
example="$ROOT/plugins/wasm/examples/words"

scripts/system.sh run
scripts/rust.sh
scripts/test-tools.sh nextest
if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
  say "Fetching the standard library for $target"
  timeout 300 rustup target add "$target" || die "no standard library for $target: rustup's servers cannot be reached"
fi

say "Building the module with the SDK"
cargo build --release --locked --target "$target" --manifest-path "$example/Cargo.toml" --target-dir "$CACHE/wasm"
export SPILLWAY_WASM_MODULE="$CACHE/wasm/$target/release/words.wasm"
note "$(du -h "$SPILLWAY_WASM_MODULE" | cut -f1) in $SPILLWAY_WASM_MODULE"

say "Running it in the gateway"
cargo build --locked -p spillway --bins
cargo nextest run -p spillway-tests --locked --test side_by_side --run-ignored all -E 'test(/^wasm::/)'
