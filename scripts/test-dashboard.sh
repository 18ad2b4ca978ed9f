#!/usr/bin/env bash
# make test-dashboard: the dashboard in Chromium, before a real gateway and before scripted answers: each page, each change, axe,
# keyboard, memory. Screenshots are in .cache/dashboard/shots. tests/dashboard/package-lock.json pins its packages.
#
# scripts/test-dashboard.sh [EXPRESSION]   only tests whose names match the regular expression
# scripts/test-dashboard.sh --time         prints the main thread's time of an update at 1,000 requests a second
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

FOLDER="$CACHE/dashboard"

# find_chromium: sets SPILLWAY_TEST_CHROMIUM, where it is not set, to the Chromium or Chrome of this machine.
find_chromium() {
  local name
  [ -z "${SPILLWAY_TEST_CHROMIUM:-}" ] || return 0
  for name in chromium chromium-browser google-chrome; do
    if have "$name"; then
      SPILLWAY_TEST_CHROMIUM="$(command -v "$name")"
      return 0
    fi
  done
  die "the tests of the dashboard need Chromium: apt-get install chromium, or set SPILLWAY_TEST_CHROMIUM"
}

# packages: installs what tests/dashboard/package-lock.json pins, and prints the versions of its packages.
packages() {
  local want
  if ! have node || ! have npm; then
    die "the tests of the dashboard need Node.js of at least 20 with npm: install them, then try again"
  fi
  want="$(node --version) $(sha256_of tests/dashboard/package-lock.json)"
  if ! stamp_is dashboard "$want"; then
    say "Installing the packages of tests/dashboard/package-lock.json"
    rm -rf "$FOLDER/node_modules"
    mkdir -p "$FOLDER"
    cp tests/dashboard/package.json tests/dashboard/package-lock.json "$FOLDER/"
    (cd "$FOLDER" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) ||
      die "npm could not install tests/dashboard/package-lock.json (its message is above)"
    set_stamp dashboard "$want"
  fi
  (cd "$FOLDER" && npm ls --depth 0) | sed -n '2,$s/^[^ ]* /    /p'
}

scripts/system.sh test
[ -n "${SPILLWAY_TEST_CHROMIUM:-}" ] || scripts/system.sh dashboard
find_chromium
packages
scripts/model.sh
find_program
export SPILLWAY_BIN SPILLWAY_TEST_CHROMIUM SPILLWAY_TEST_DASHBOARD="$FOLDER" SPILLWAY_TEST_SHOTS="$FOLDER/shots"
export SPILLWAY_TEST_MODEL="${SPILLWAY_MODEL_FILE:-$ROOT/models/smollm2-135m-instruct-q4_1.gguf}"
vulkan_environment

if [ "${1:-}" = --time ]; then
  exec node tests/dashboard/time.mjs
fi

types() { "$FOLDER/node_modules/.bin/tsc" --project tests/dashboard/jsconfig.json; }
# One file after the other: Chromium, the gateway and its model share the machine.
pages() { node --test --test-reporter=spec --test-concurrency=1 --test-force-exit ${1:+--test-name-pattern="$1"} tests/dashboard/*.test.mjs; }
rm -rf "$FOLDER/shots"
stage "types" types
stage "pages" pages "$@"
stages_end
