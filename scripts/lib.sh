# Shared by the scripts beside it (sourced, never run): paths, messages, finding and fetching of tools. Installs
# nothing by itself and changes nothing outside of .cache/.
# shellcheck shell=bash

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CACHE="$ROOT/.cache"
BIN="$CACHE/bin"
VENV="$CACHE/venv"
mkdir -p "$BIN"

# rustup installs cargo here; a shell opened before the installation does not have it on its path yet.
CARGO_BIN="${CARGO_HOME:-$HOME/.cargo}/bin"
if [ -x "$CARGO_BIN/rustup" ]; then PATH="$CARGO_BIN:$PATH"; fi
export PATH="$BIN:$PATH"

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# SHA-256 of a file, as hex digits.
sha256_of() { sha256sum "$1" | cut -d' ' -f1; }

# version_at_least HAVE WANT: compares dotted numbers.
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

# stamp_is NAME VALUE, set_stamp NAME VALUE: record under .cache/ the input that a step was last run with.
stamp_is() { [ -f "$CACHE/$1.stamp" ] && [ "$(cat "$CACHE/$1.stamp")" = "$2" ]; }
set_stamp() { printf '%s\n' "$2" >"$CACHE/$1.stamp"; }

# as_root COMMAND...: runs it as root, with sudo if necessary.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    die "this needs root, and there is no sudo: run as root once: $*"
  fi
}

# Prints a Python that can make virtual environments; fails without one.
find_python() {
  local p
  for p in python3 /usr/bin/python3; do
    if have "$p" && "$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$p"
      return 0
    fi
  done
  return 1
}

# Makes the virtual environment (with pip, nothing else) unless it exists and works.
ensure_venv() {
  if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then return 0; fi
  local python
  python="$(find_python)" || die "no Python of at least 3.10 with its venv module: run scripts/system.sh run"
  rm -rf "$VENV" "$CACHE/python.stamp"
  "$python" -m venv "$VENV"
}

# fetch URL FILE: downloads with retries; the next call continues a broken transfer. The file appears only when it is
# complete.
fetch() {
  local url="$1" part="$2.part" status=0
  mkdir -p "$(dirname "$part")"
  local get=(curl --fail --location --silent --show-error --retry 3 --connect-timeout 20 --speed-limit 1024
    --speed-time 60 --output "$part")
  case "$url" in
    http://* | https://*) "${get[@]}" --continue-at - "$url" || status=$? ;;
    *) "${get[@]}" "$url" || status=$? ;;
  esac
  # 22 (refused, as a range past the end is), 33 and 36 (cannot be continued): the partial file is useless, start
  # again.
  if [ -s "$part" ]; then
    case "$status" in
      22 | 33 | 36)
        rm -f "$part"
        status=0
        "${get[@]}" "$url" || status=$?
        ;;
    esac
  fi
  [ "$status" -eq 0 ] || return "$status"
  mv -f "$part" "$2"
}

# stage NAME COMMAND...: runs one part of the tests, records its duration and whether it failed.
STAGES=()
FAILED=()
stage() {
  local name="$1" begin=$SECONDS status=0
  shift
  say "$name"
  "$@" || status=$?
  local took=$((SECONDS - begin))
  if [ "$status" -eq 0 ]; then
    STAGES+=("$(printf '%5d s  ok      %s' "$took" "$name")")
  else
    STAGES+=("$(printf '%5d s  FAILED  %s' "$took" "$name")")
    FAILED+=("$name")
  fi
}
# stages_end: prints the table of all stages; fails if one of them did.
stages_end() {
  say "How long each part took"
  printf '    %s\n' "${STAGES[@]}"
  [ "${#FAILED[@]}" -eq 0 ] || die "failed: ${FAILED[*]}"
}

# has_gpu: true if the machine has a GPU device of a kernel driver, of Nvidia's driver or of WSL.
has_gpu() { compgen -G '/dev/dri/renderD*' >/dev/null || compgen -G '/dev/nvidia*' >/dev/null || [ -e /dev/dxg ]; }

# Environment of a process with software Vulkan: a folder of its own for run-time files (the Vulkan loader complains
# without one).
vulkan_environment() {
  if [ -z "${XDG_RUNTIME_DIR:-}" ] || [ ! -d "$XDG_RUNTIME_DIR" ]; then
    export XDG_RUNTIME_DIR="$CACHE/runtime"
    mkdir -p "$XDG_RUNTIME_DIR"
    chmod 700 "$XDG_RUNTIME_DIR"
  fi
}

# find_program: sets SPILLWAY_BIN, where it is not set, to the program that is built for tests. It is built as they are, with all of the
# workspace: alone it would have other features, and its dependencies be compiled anew.
find_program() {
  [ -z "${SPILLWAY_BIN:-}" ] || return 0
  scripts/rust.sh
  cargo build --workspace --bins --locked
  SPILLWAY_BIN="${CARGO_TARGET_DIR:-$ROOT/target}/debug/spillway"
}
