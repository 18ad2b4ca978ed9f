#!/usr/bin/env bash
# promote.sh ROUTE REASON: gives the candidate of ROUTE all requests, for a pipeline that asks a person before the last step.
#
# SPILLWAY, SPILLWAY_ADMIN, SPILLWAY_ADMIN_TOKEN   as for validate.sh
set -euo pipefail
route="${1:?the route}"
reason="${2:?the reason}"

exec "${SPILLWAY:-spillway}" rollout promote "$route" --reason "$reason"
