#!/usr/bin/env bash
# make run: the gateway with the built-in model, on this machine, in the foreground. Ctrl-C stops it. The
# configuration is config/examples/demo.yaml; another one: SPILLWAY_CONFIG=FILE make run.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

scripts/system.sh run
scripts/rust.sh
scripts/model.sh

# What only GPUs, Kubernetes and WebAssembly need is left out: a good part of a first build.
features=()
if has_gpu; then
  features=(--features gpu)
else
  note "There is no GPU here: the model runs on the CPU, and the build leaves GPU support out."
fi
say "Building (the first time takes some minutes)"
cargo build --profile quick --locked -p spillway --no-default-features "${features[@]}"
spillway="${CARGO_TARGET_DIR:-$ROOT/target}/quick/spillway"
config="${SPILLWAY_CONFIG:-config/examples/demo.yaml}"

vulkan_environment

# Prints what to try once the gateway is ready. Ends with the gateway: $$ is its process from `exec` on.
what_to_try() {
  local deadline=$((SECONDS + 180))
  until curl --silent --fail --max-time 2 --output /dev/null http://127.0.0.1:9901/readyz; do
    kill -0 $$ 2>/dev/null || return 0
    if [ "$SECONDS" -ge "$deadline" ]; then
      warn "the gateway is not ready after 180 s (asked: http://127.0.0.1:9901/readyz)"
      return 0
    fi
    sleep 0.2
  done
  cat <<'EOF'

Spillway is ready. In another terminal, try:

  curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' -d '{
    "model": "smollm2", "temperature": 0,
    "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]}'

or, with Python's openai package:

  from openai import OpenAI
  client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")
  for chunk in client.chat.completions.create(model="smollm2", stream=True, max_tokens=200,
          messages=[{"role": "user", "content": "Tell me a short story."}]):
      print(chunk.choices[0].delta.content or "", end="", flush=True)

  http://127.0.0.1:9901   the dashboard, in a browser; /healthz, /readyz, /metrics
EOF
  printf '  %-23s the configuration: edit and save it, it is applied at once\n' "$config"
  printf '  Ctrl-C                  stops the gateway\n\n'
}
what_to_try &

say "Starting the gateway: $spillway serve -c $config"
exec "$spillway" serve -c "$config"
