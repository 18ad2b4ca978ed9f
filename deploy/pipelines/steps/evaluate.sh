#!/usr/bin/env bash
# evaluate.sh CASES URL: asks the questions of a holdout set at URL, which may be the candidate's own server, and writes a report. Ends with
# 0 if enough answers are right.
#
# SPILLWAY           the program (default: spillway)
# SPILLWAY_MODEL     model that is asked (default: that of each case)
# SPILLWAY_MIN_PASS  share of right answers, 0 to 1 (default: 0.9)
# SPILLWAY_REPORT    file of the report, JSON (default: report.json)
# SPILLWAY_API_KEY   key of the caller
set -euo pipefail
spillway="${SPILLWAY:-spillway}"
cases="${1:?the cases}"
url="${2:?scheme, host and port}"

arguments=(--url "$url" --min-pass "${SPILLWAY_MIN_PASS:-0.9}")
if [ -n "${SPILLWAY_MODEL:-}" ]; then arguments+=(--model "$SPILLWAY_MODEL"); fi
"$spillway" eval-set "$cases" "${arguments[@]}" --json >"${SPILLWAY_REPORT:-report.json}"
