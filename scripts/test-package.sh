#!/usr/bin/env bash
# make test-package: the Debian package and the service of systemd in it, of the program in SPILLWAY_BIN (default: the one that cargo
# builds for tests). Upgrades are tried with commands in place of systemd's, which write down what they are asked.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

work="$(mktemp -d)"
gateway=""
finish() {
  [ -z "$gateway" ] || kill "$gateway" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

scripts/system.sh package
find_program
strip -o "$work/program" "$SPILLWAY_BIN"

say "Building the package twice"
scripts/package.sh "$work/program" "$work/one"
scripts/package.sh "$work/program" "$work/two"
package="$(basename "$work"/one/*.deb)"
cmp "$work/one/$package" "$work/two/$package" || die "the same program gave two packages"
dpkg-deb --extract "$work/one/$package" "$work/root"
dpkg-deb --control "$work/one/$package" "$work/control"
(cd "$work/root" && md5sum --quiet --check "$work/control/md5sums") || die "the checksums in the package are wrong"

say "What is in it runs"
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port="$(free_port)" admin="$(free_port)"
"$work/root/usr/bin/spillway" check "$work/root/etc/spillway/spillway.yaml" || die "the package's configuration is not what the gateway takes"
sed -e "s/127.0.0.1:8080/127.0.0.1:$port/" -e "s/127.0.0.1:9901/127.0.0.1:$admin/" "$work/root/etc/spillway/spillway.yaml" >"$work/spillway.yaml"
"$work/root/usr/bin/spillway" serve -c "$work/spillway.yaml" >"$work/log" 2>&1 &
gateway=$!
curl --silent --fail --retry 50 --retry-connrefused --retry-delay 1 "http://127.0.0.1:$port/" | grep -q 'Spillway runs' || {
  cat "$work/log"
  die "the gateway of the package does not answer"
}

say "An upgrade hands over, and restarts where it cannot"
mkdir -p "$work/bin" "$work/systemd" "$work/etc"
for command in systemctl deb-systemd-helper deb-systemd-invoke; do
  printf '#!/bin/sh\necho %s "$*" >>%s\n' "$command" "$work/asked" >"$work/bin/$command"
done
# `systemctl is-active` says what the file has.
echo "case \"\$*\" in *is-active*) exit \"\$(cat '$work/inactive')\" ;; esac" >>"$work/bin/systemctl"
cat >"$work/bin/systemd-run" <<'SH'
#!/bin/sh
for argument in "$@"; do
  shift
  case "$argument" in
    --property=EnvironmentFile=-*) set -a && . "${argument#--property=EnvironmentFile=-}" && set +a ;;
    --) exec "$@" ;;
  esac
done
exit 99
SH
chmod +x "$work"/bin/*
sed -e "s#/usr/bin/spillway#$work/root/usr/bin/spillway#" -e "s#/run/systemd/system#$work/systemd#" -e "s#/etc/spillway#$work/etc#" \
  -e "s#/var/lib/spillway#$work/state#" -e "s#/var/cache/spillway#$work/cache#" -e "s#/usr/sbin/policy-rc.d#$work/policy#" \
  "$work/control/postinst" >"$work/postinst"
cp "$work/spillway.yaml" "$work/etc/spillway.yaml"
serving() { curl --silent --fail --max-time 10 "http://127.0.0.1:$admin/api/upgrade" | python3 -c 'import json, sys; print(json.load(sys.stdin)["pid"])'; }
# configure ARGUMENT...: runs the script of the package as dpkg does; `said` and `asked` have what it says and asks systemd.
configure() {
  : >"$work/asked"
  PATH="$work/bin:$PATH" sh "$work/postinst" configure "$@" >"$work/said" 2>&1 || {
    cat "$work/said"
    die "the script of the package failed"
  }
}
asked() { grep -q "^deb-systemd-invoke $1 spillway.service\$" "$work/asked"; }

echo "SPILLWAY_ADMIN=http://127.0.0.1:$admin" >"$work/etc/environment"
echo 0 >"$work/inactive"
configure ""
asked start || die "an installation does not start the service"
before="$(serving)"
configure 0.0.1
if [ "$(serving)" = "$before" ] || asked restart; then
  cat "$work/said" "$work/asked" "$work/log"
  die "an upgrade of a running service did not hand over"
fi
wait "$gateway" || die "the process before did not end by itself"
gateway="$(serving)"
# A mistake in the file: neither a hand-over nor a restart would lead to a service.
echo 'nonsense: 1' >>"$work/spillway.yaml"
cp "$work/spillway.yaml" "$work/etc/spillway.yaml"
configure 0.0.1
if [ "$(serving)" != "$gateway" ] || asked restart || ! grep -q 'goes on with the program before' "$work/said"; then
  cat "$work/said" "$work/asked"
  die "an upgrade with a mistake in the file did not leave the service as it was"
fi
sed -i '$d' "$work/spillway.yaml"
cp "$work/spillway.yaml" "$work/etc/spillway.yaml"
printf '#!/bin/sh\nexit 101\n' >"$work/policy"
chmod +x "$work/policy"
configure 0.0.1
# The command in the place of this one asks the policy itself.
if [ "$(serving)" != "$gateway" ] || ! asked restart; then die "a policy against restarts did not stop the hand-over"; fi
rm "$work/policy"
echo 3 >"$work/inactive"
configure 0.0.1
if [ "$(serving)" != "$gateway" ] || ! asked restart; then die "an upgrade of a service that does not run handed over"; fi
echo 0 >"$work/inactive"
echo "SPILLWAY_ADMIN=http://127.0.0.1:$(free_port)" >"$work/etc/environment"
configure 0.0.1
asked restart || die "an upgrade of a gateway that does not answer did not restart it"
kill "$gateway"
for _ in $(seq 100); do
  kill -0 "$gateway" 2>/dev/null || break
  sleep 0.1
done
kill -0 "$gateway" 2>/dev/null && die "the gateway did not end by itself"
gateway=""

say "The service of systemd"
unit="$work/root/usr/lib/systemd/system/spillway.service"
grep -q '^ExecStart=/usr/bin/spillway ' "$unit" || die "the unit in the package runs another program"
sed "s#/usr/bin/spillway#$work/root/usr/bin/spillway#" "$unit" >"$work/spillway.service"
cp "$work/root/usr/lib/systemd/system/spillway.socket" "$work/spillway.socket"
systemd-analyze verify "$work/spillway.service" "$work/spillway.socket" || die "systemd does not take the unit"
# In tenths: systemd calls the exposure of a service below 2.0 OK.
systemd-analyze security --offline=true --threshold=20 "$work/spillway.service" >"$work/exposure" 2>&1 || {
  tail -n 40 "$work/exposure"
  die "the service is more exposed than it was"
}
tail -n 1 "$work/exposure"
