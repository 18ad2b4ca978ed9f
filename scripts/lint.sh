#!/usr/bin/env bash
# make lint: checks of the source that need no run.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/checks.sh
. "$ROOT/scripts/checks.sh"
cd "$ROOT"

scripts/system.sh test
scripts/rust.sh
scripts/test-tools.sh deny actionlint check-jsonschema
static_checks
stages_end
