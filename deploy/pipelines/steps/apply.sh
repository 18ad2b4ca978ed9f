#!/usr/bin/env bash
# apply.sh FILE: puts a configuration where the gateways read it, and waits until the gateway at SPILLWAY_ADMIN runs it.
#
# SPILLWAY_CONFIGMAP  NAMESPACE/NAME of the ConfigMap to write, with kubectl; or
# SPILLWAY_TARGET     the file to replace
# SPILLWAY_SECONDS    longest wait until the gateway runs it (default: 180; the kubelet takes up to two minutes to renew a ConfigMap)
# SPILLWAY, SPILLWAY_ADMIN, SPILLWAY_ADMIN_TOKEN   as for validate.sh
set -euo pipefail
spillway="${SPILLWAY:-spillway}"
file="${1:?the configuration}"

if [ -n "${SPILLWAY_CONFIGMAP:-}" ]; then
  namespace="${SPILLWAY_CONFIGMAP%%/*}"
  name="${SPILLWAY_CONFIGMAP#*/}"
  kubectl create configmap "$name" --namespace "$namespace" --from-file=spillway.yaml="$file" --dry-run=client --output=yaml | kubectl apply --filename=-
else
  target="${SPILLWAY_TARGET:?the file to replace, or SPILLWAY_CONFIGMAP}"
  # In one step, so that no gateway reads half a file.
  cp -- "$file" "$target.new"
  mv -- "$target.new" "$target"
fi

end=$((SECONDS + ${SPILLWAY_SECONDS:-180}))
until [[ "$("$spillway" diff "$file" --json | tr -d ' \n')" == '{"changes":[],'* ]]; do
  if [ "$SECONDS" -ge "$end" ]; then
    echo "apply.sh: the gateway does not run $file after ${SPILLWAY_SECONDS:-180} s; this is what still differs:" >&2
    "$spillway" diff "$file" >&2
    exit 1
  fi
  sleep 1
done
