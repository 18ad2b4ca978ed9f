#!/usr/bin/env bash
# make lint: what can be said about the source without running it.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/checks.sh
. "$ROOT/scripts/checks.sh"
cd "$ROOT"

scripts/system.sh test
scripts/rust.sh
scripts/test-tools.sh deny
static_checks
stages_end
