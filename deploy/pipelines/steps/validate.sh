#!/usr/bin/env bash
# validate.sh FILE: ends with 0 if FILE can be run, and shows what it would change in the gateway at SPILLWAY_ADMIN, where that is set.
#
# SPILLWAY         the program (default: spillway)
# SPILLWAY_FORMAT  form of mistakes: text, json, sarif or github (default: text)
# SPILLWAY_ADMIN, SPILLWAY_ADMIN_TOKEN   the admin address of the gateway, and its token
set -euo pipefail
spillway="${SPILLWAY:-spillway}"
file="${1:?the configuration}"

"$spillway" check --offline --format "${SPILLWAY_FORMAT:-text}" "$file"
if [ -n "${SPILLWAY_ADMIN:-}" ]; then
  "$spillway" diff "$file"
fi
