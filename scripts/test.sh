#!/usr/bin/env bash
# make test: all tests of a change. Installs its tools; all stages run even if one fails, except that nothing is
# tested after a failed build.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/checks.sh
. "$ROOT/scripts/checks.sh"
cd "$ROOT"

prepare() {
  scripts/system.sh test && scripts/rust.sh && scripts/model.sh && scripts/test-models.sh && scripts/test-tools.sh deny nextest python actionlint check-jsonschema
}
stage "system packages, Rust, model, tools" prepare
[ "${#FAILED[@]}" -eq 0 ] || stages_end

target="${CARGO_TARGET_DIR:-$ROOT/target}"
export SPILLWAY_BIN="$target/debug/spillway"
export SPILLWAY_TEST_MODEL="${SPILLWAY_MODEL_FILE:-$ROOT/models/smollm2-135m-instruct-q4_1.gguf}"
export SPILLWAY_TEST_PYTHON="$VENV/bin/python"
export SPILLWAY_TEST_JAEGER="$BIN/jaeger"
export SPILLWAY_TEST_PEBBLE="$BIN/pebble" SPILLWAY_TEST_PEBBLE_DNS="$BIN/pebble-challtestsrv"
export SPILLWAY_TEST_PROMTOOL="$BIN/promtool"
vulkan_environment

# Binaries and tests in one command, because two would build some dependencies twice, with other features.
build() { cargo build --workspace --bins --tests --locked; }
unit_and_end_to_end() { cargo nextest run --workspace --locked; }
doc_tests() { cargo test --doc --workspace --locked --quiet; }

stage "Jaeger, Pebble, promtool" scripts/test-tools.sh jaeger pebble promtool
static_checks
before=${#FAILED[@]}
stage "build" build
if [ "${#FAILED[@]}" -eq "$before" ]; then
  stage "examples in the documentation (cargo test --doc)" doc_tests
  # Last, so that its summary is at the end of the output.
  stage "unit and end-to-end tests (cargo nextest)" unit_and_end_to_end
fi
stages_end
