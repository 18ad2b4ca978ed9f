#!/usr/bin/env bash
# make test-clients: programs of others, unmodified, against the gateway (tests/tests/clients.rs, frameworks.rs), and nginx
# that ends its connections after seven requests. Each program has an environment of its own under .cache/clients/, pinned in
# tests/python/clients/*.txt and tests/node: some need versions that others cannot have, and GuideLLM brings PyTorch (6 GB).
#
# scripts/test-clients.sh [EXPRESSION]   only tests whose names match the regular expression
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

CLIENTS="$CACHE/clients"

# environment NAME PACKAGE...: installs what tests/python/clients/NAME.txt pins, and prints the versions of PACKAGE....
environment() {
  local name="$1" file="tests/python/clients/$1.txt" python want
  shift
  python="$(find_python)" || die "no Python of at least 3.10 with its venv module: run scripts/system.sh run"
  want="$("$python" --version) $(sha256_of "$file")"
  if ! stamp_is "clients-$name" "$want"; then
    say "Installing the Python packages of $file"
    rm -rf "${CLIENTS:?}/$name"
    "$python" -m venv "$CLIENTS/$name"
    "$CLIENTS/$name/bin/python" -m pip install --quiet --only-binary=:all: --disable-pip-version-check --no-deps \
      --requirement "$file" || die "pip could not install $file (its message is above)"
    "$CLIENTS/$name/bin/python" -m pip check --disable-pip-version-check >/dev/null ||
      die "$file is not complete: '$CLIENTS/$name/bin/python -m pip check' says what is missing"
    set_stamp "clients-$name" "$want"
  fi
  local package
  for package in "$@"; do
    note "$package $("$CLIENTS/$name/bin/python" -c "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))" "$package")"
  done
}

# node_environment: installs what tests/node/package-lock.json pins, and prints the versions of its packages.
node_environment() {
  local want folder="$CLIENTS/node"
  if ! have node || ! have npm; then
    die "the clients for Node need Node.js of at least 20 with npm: install them, then try again"
  fi
  want="$(node --version) $(sha256_of tests/node/package-lock.json)"
  if ! stamp_is clients-node "$want"; then
    say "Installing the packages of tests/node/package-lock.json"
    rm -rf "${folder:?}"
    mkdir -p "$folder"
    cp tests/node/package.json tests/node/package-lock.json "$folder/"
    (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) ||
      die "npm could not install tests/node/package-lock.json (its message is above)"
    set_stamp clients-node "$want"
  fi
  (cd "$folder" && npm ls --depth 0) | sed -n '2,$s/^[^ ]* /    /p'
}

prepare() {
  scripts/system.sh test && scripts/rust.sh && scripts/model.sh && scripts/test-tools.sh nextest python
}
stage "system packages, Rust, model, tools" prepare
stage "OpenAI's Agents SDK" environment agents openai-agents openai
stage "MLServer and NVIDIA's client" environment mlserver mlserver tritonclient grpcio
stage "GuideLLM" environment guidellm guidellm
stage "LangChain" environment langchain langchain-core langchain-openai langchain-anthropic langchain-ollama
stage "LlamaIndex" environment llamaindex llama-index-core llama-index-llms-openai-like
stage "LiteLLM" environment litellm litellm
stage "clients for Node" node_environment
[ "${#FAILED[@]}" -eq 0 ] || stages_end

target="${CARGO_TARGET_DIR:-$ROOT/target}"
export SPILLWAY_BIN="$target/debug/spillway" SPILLWAY_TEST_CLIENTS="$CLIENTS"
export SPILLWAY_TEST_MODEL="${SPILLWAY_MODEL_FILE:-$ROOT/models/smollm2-135m-instruct-q4_1.gguf}"
export SPILLWAY_TEST_PYTHON="$VENV/bin/python"
vulkan_environment

build() { cargo build --workspace --bins --tests --locked; }
clients() {
  local filter='package(spillway-tests) and test(/^(clients|frameworks)::|nginx/)'
  [ "$#" -eq 0 ] || filter="($filter) and test(/$1/)"
  cargo nextest run --workspace --locked --run-ignored all --status-level pass --filterset "$filter"
}
stage "build" build
[ "${#FAILED[@]}" -ne 0 ] || stage "clients" clients "$@"
stages_end
