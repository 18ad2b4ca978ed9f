#!/usr/bin/env bash
# make test-gpu: every kernel, the logits and texts of a model of SmolLM2's shape, and the rates, on a real GPU. The
# model is made of random weights on the spot.
#
# scripts/test-gpu.sh         builds the test program unless .gpu/ has one, and runs it
# scripts/test-gpu.sh build   builds it into .gpu/ only, for a GPU's machine without Rust: take the folder there
#
# SPILLWAY_TEST_DEVICE names the adapter: `gpu` (default: the best GPU), `software` (software Vulkan), or a part of its
# name.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

program="$ROOT/.gpu/engine-tests"
# Longest run of each part, in seconds: together under eight minutes.
kernels_within=200 model_within=130 rates_within=130

build() {
  scripts/system.sh run
  scripts/rust.sh
  say "Building the engine's tests (release)"
  cargo test --release --locked -p spillway-engine --lib --no-run
  local built
  built="$(cargo test --release --locked -p spillway-engine --lib --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n1)"
  [ -x "$built" ] || die "cargo named no test program"
  mkdir -p "${program%/*}"
  # Without symbols: it may have to travel.
  objcopy --strip-all "$built" "$program.new"
  mv -f "$program.new" "$program"
  note "$(du -h "$program" | cut -f1) in $program"
}

case "${1:-}" in
  build)
    build
    exit 0
    ;;
  '') ;;
  *) die "unknown argument \`$1\`: expected none, or build" ;;
esac

# A program that another machine built is used as it is; where there is Rust, it follows the sources.
if have cargo || [ ! -x "$program" ]; then build; fi
export SPILLWAY_TEST_DEVICE="${SPILLWAY_TEST_DEVICE:-gpu}"
[ "$SPILLWAY_TEST_DEVICE" != gpu ] || has_gpu ||
  die "this machine has no GPU device; SPILLWAY_TEST_DEVICE=software tries the same on software Vulkan"
vulkan_environment

# on_gpu SECONDS ARGUMENTS...: runs tests one at a time, so that each has the device for itself, and prints what they do.
on_gpu() {
  local within="$1"
  shift
  timeout "$within" "$program" --test-threads 1 --nocapture "$@"
}
kernels() { on_gpu "$kernels_within" exec::gpu; }
real_size() { on_gpu "$model_within" --ignored a_model_of_real_size; }
rates() { on_gpu "$rates_within" --ignored rates_of_a_model_of_real_size; }

if have nvidia-smi; then nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true; fi
stage "kernels against their references" kernels
stage "logits and texts of a model of real size" real_size
stage "rates" rates
stages_end
