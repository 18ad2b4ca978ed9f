#!/usr/bin/env bash
# make test-kubernetes: the gateway before a real API server, with the rights of the chart; the chart through Helm 3 and 4 with several values, and what it makes through the types of Kubernetes: unknown
# fields and pods that are not restricted fail. deploy/manifests/spillway.yaml is what the chart makes of its defaults.
#
# SPILLWAY_UPDATE_DOCS=1 scripts/test-kubernetes.sh   writes that file anew
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

chart=deploy/helm/spillway
plain=deploy/manifests/spillway.yaml
# Which version Helm assumes is set where its releases are built, not in its module.
kubernetes=1.34.0
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

scripts/test-tools.sh kubernetes api-server nextest
find_program

# made HELM NAME ARGUMENTS...: what the chart makes, checked.
made() {
  local helm="$1" name="$2"
  shift 2
  "$helm" template spillway "$chart" --kube-version "$kubernetes" --namespace inference "$@" >"$work/$name.yaml" || die "$helm template failed for $name"
  "$BIN/manifests" <"$work/$name.yaml" >"$work/$name.objects" || die "$helm made something for $name that Kubernetes would not take"
  "$BIN/manifests" configuration <"$work/$name.yaml" >"$work/$name.routes"
  if [ -s "$work/$name.routes" ]; then
    SPILLWAY_ADMIN_TOKEN=a-token-of-an-operator UPSTREAM_KEY=key "$SPILLWAY_BIN" check --offline "$work/$name.routes" >"$work/$name.check" 2>&1 || {
      cat "$work/$name.check"
      die "the configuration of $name is not what the gateway takes"
    }
  fi
}

# refused HELM WORDS ARGUMENTS...: the chart refuses these values, with these words.
refused() {
  local helm="$1" words="$2"
  shift 2
  if "$helm" template spillway "$chart" --kube-version "$kubernetes" "$@" >"$work/refused" 2>&1; then die "$helm took $*"; fi
  grep -qi -- "$words" "$work/refused" || {
    cat "$work/refused"
    die "$helm refused $* without saying '$words'"
  }
}

for helm in "$BIN/helm3" "$BIN/helm4"; do
  say "$("$helm" version --short)"
  "$helm" lint --strict --quiet --kube-version "$kubernetes" "$chart" || die "$helm lint failed"
  made "$helm" default
  made "$helm" plain --set adminToken.existingSecret=spillway-admin
  for values in tests/kubernetes/*.yaml; do made "$helm" "$(basename "$values" .yaml)" --values "$values"; done
  for object in ConfigMap/spillway Secret/spillway-admin ServiceAccount/spillway Service/spillway Service/spillway-admin \
    Deployment/spillway PodDisruptionBudget/spillway NetworkPolicy/spillway; do
    grep -qx "$object" "$work/default.objects" || die "$helm made no $object of the defaults"
  done
  for object in StatefulSet/gateway HorizontalPodAutoscaler/gateway ServiceMonitor/gateway PrometheusRule/gateway; do
    grep -qx "$object" "$work/state.objects" || die "$helm made no $object of tests/kubernetes/state.yaml"
  done
  for object in ClusterRole/inference-spillway Role/spillway-models Role/spillway-infra RoleBinding/spillway-lease; do
    grep -qx "$object" "$work/discovery.objects" || die "$helm made no $object of tests/kubernetes/discovery.yaml"
  done
  if grep -q 'Role' "$work/default.objects"; then die "a role was made that nothing needs"; fi
  grep -qx ScaledObject/spillway "$work/keda.objects" || die "$helm made no ScaledObject of tests/kubernetes/keda.yaml"
  if grep -q '^Secret/' "$work/state.objects"; then die "a secret was made although one is named"; fi
  refused "$helm" "two autoscalers" --set autoscaling.enabled=true,keda.enabled=true
  refused "$helm" "replica" --set-string replicas=many
  refused "$helm" "unknown" --set unknown=1
  {
    echo "# What the chart in ../helm/spillway makes of its defaults, for clusters without Helm. Written by"
    echo "# \`SPILLWAY_UPDATE_DOCS=1 make test-kubernetes\`. It wants a token for operators first:"
    echo "#   kubectl create namespace inference"
    echo "#   kubectl -n inference create secret generic spillway-admin --from-literal=token=\"\$(openssl rand -hex 24)\""
    # Helm 4 writes empty lines between objects.
    sed -e '/^$/d' -e '/^# Source: /d' -e '/helm.sh\/chart/d' -e 's/managed-by: Helm/managed-by: kubectl/' "$work/plain.yaml"
  } >"$work/written.yaml"
  if [ -n "${SPILLWAY_UPDATE_DOCS:-}" ]; then
    mkdir -p "$(dirname "$plain")"
    cp "$work/written.yaml" "$plain"
  fi
  diff -u "$plain" "$work/written.yaml" || die "$plain is out of date: run SPILLWAY_UPDATE_DOCS=1 make test-kubernetes"
done

"$BIN/helm3" template spillway "$chart" --kube-version "$kubernetes" --namespace inference --set kubernetes.enabled=true \
  --show-only templates/rbac.yaml >"$work/rights.yaml"
say "The gateway before a real API server"
SPILLWAY_TEST_ETCD="$BIN/etcd" SPILLWAY_TEST_KUBE_APISERVER="$BIN/kube-apiserver" SPILLWAY_TEST_RIGHTS="$work/rights.yaml" \
  SPILLWAY_TEST_GATEWAY_API="$CACHE/gateway-api" SPILLWAY_BIN="$SPILLWAY_BIN" \
  cargo nextest run --workspace --locked --test alone --run-ignored only -E 'test(/^kubernetes::/)'
