#!/usr/bin/env bash
# canary.sh ROUTE [TIME]: waits until the rollout of ROUTE has ended. Ends with 0 if the candidate was promoted, 1 if it was aborted, 3 if it
# waits for a person, 4 if TIME is over (default: 1h). An aborted candidate gets no requests any more: the gateway does that by itself.
#
# SPILLWAY, SPILLWAY_ADMIN, SPILLWAY_ADMIN_TOKEN   as for validate.sh
set -euo pipefail
route="${1:?the route}"

exec "${SPILLWAY:-spillway}" rollout status "$route" --wait --timeout "${2:-1h}"
