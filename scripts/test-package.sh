#!/usr/bin/env bash
# make test-package: the Debian package and the service of systemd in it, of the program in SPILLWAY_BIN (default: the one that cargo
# builds for tests).
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
port="$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
"$work/root/usr/bin/spillway" check "$work/root/etc/spillway/spillway.yaml" || die "the package's configuration is not what the gateway takes"
sed -e "s/127.0.0.1:8080/127.0.0.1:$port/" -e 's/127.0.0.1:9901/127.0.0.1:0/' "$work/root/etc/spillway/spillway.yaml" >"$work/spillway.yaml"
"$work/root/usr/bin/spillway" serve -c "$work/spillway.yaml" >"$work/log" 2>&1 &
gateway=$!
curl --silent --fail --retry 50 --retry-connrefused --retry-delay 1 "http://127.0.0.1:$port/" | grep -q 'Spillway runs' || {
  cat "$work/log"
  die "the gateway of the package does not answer"
}
kill "$gateway"
wait "$gateway" || die "the gateway did not end by itself"
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
