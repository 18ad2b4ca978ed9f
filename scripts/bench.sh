#!/usr/bin/env bash
# make bench: Spillway beside other proxies and gateways, as one table, written into docs/benchmarks.md (some half an hour
# once all is built). Arguments go to the program of loadtest/:
#   scripts/bench.sh peers --quick                              one round of a second each; prints alone
#   scripts/bench.sh peers --peers nginx,envoy --workloads bare,sse     only these; prints alone
#   scripts/bench.sh floods [NAME]...                           what attacks cost (docs/security.md)
#   scripts/bench.sh translate                                  a chat translated, beside passing it and beside LiteLLM
#   scripts/bench.sh idle|overload|rotation|beside              another scenario
#   scripts/bench.sh engine --cores 1 [--unit AVX2] [--model FILE]... [--llama-server FILE]
#   scripts/bench.sh embeddings --cores 1 [--unit AVX2] [--int8] [--python PYTHON_WITH_SENTENCE_TRANSFORMERS]
#                               [--python PYTHON_WITH_ONNXRUNTIME --onnx MODEL.onnx]
#   scripts/bench.sh policies                                   cost and quality of balancing policies, in simulated time
#   scripts/bench.sh growth [COUNT]                             what grows with the configuration
# SPILLWAY_BENCH_PROFILE=release builds faster, without link-time optimisation.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

if [ "${1:-}" = policies ]; then
  scripts/rust.sh
  exec cargo bench --locked -p spillway --bench quality --bench picking
fi

if [ "${1:-}" = growth ]; then
  scripts/rust.sh
  exec cargo bench --locked -p spillway --bench growth -- "${@:2}"
fi

scripts/system.sh bench
scripts/rust.sh
[ "$#" -gt 0 ] || set -- peers
export SPILLWAY_BENCH_PROFILE="${SPILLWAY_BENCH_PROFILE:-dist}"
profile="$SPILLWAY_BENCH_PROFILE"
target="${CARGO_TARGET_DIR:-$ROOT/target}"

if [ "$1" = floods ]; then
  cargo build --profile "$profile" --locked -p spillway
  python="$(find_python)" || die "no Python of at least 3.10: run scripts/system.sh run"
  PATH="$PATH:/usr/sbin" exec "$python" scripts/floods.py "$target/$profile/spillway" "${@:2}"
fi

if [ "$1" = peers ] || [ "$1" = translate ]; then
  scripts/test-tools.sh peers
else
  scripts/model.sh
  scripts/test-tools.sh python
  [ "$1" != embeddings ] || scripts/test-models.sh minilm
fi

say "Building what is measured (profile $profile) and what measures it; the first time takes some minutes"
cargo build --profile "$profile" --locked -p spillway
cargo build --release --locked -p spillway-loadtest
export SPILLWAY_BIN="$target/$profile/spillway"
export SPILLWAY_TEST_MODEL="${SPILLWAY_MODEL_FILE:-$ROOT/models/smollm2-135m-instruct-q4_1.gguf}"
export SPILLWAY_TEST_PYTHON="$VENV/bin/python"
export PATH="$PATH:/usr/sbin"
vulkan_environment
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true # thousands of connections
exec "$target/release/spillway-loadtest" "$@"
