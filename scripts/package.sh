#!/usr/bin/env bash
# make package: a Debian package of dist/spillway, in dist/. The same program gives the same bytes.
#
# scripts/package.sh [PROGRAM] [FOLDER]   of another program, into another folder
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

program="${1:-$ROOT/dist/spillway}"
out="$(realpath -m "${2:-$ROOT/dist}")"
[ -x "$program" ] || die "there is no program $program: run make dist before, or name another"
have dpkg-deb || die "dpkg-deb is missing: packages of Debian are built on Debian or Ubuntu"
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
export SOURCE_DATE_EPOCH

root="$(mktemp -d)"
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
doc="$root/usr/share/doc/spillway"
install -D -m 755 "$program" "$root/usr/bin/spillway"
install -D -m 644 deploy/debian/spillway.yaml "$root/etc/spillway/spillway.yaml"
install -d -m 755 "$root/usr/lib/systemd/system"
sed 's#/usr/local/bin/#/usr/bin/#' deploy/systemd/spillway.service >"$root/usr/lib/systemd/system/spillway.service"
install -m 644 deploy/systemd/spillway.socket "$root/usr/lib/systemd/system/spillway.socket"
install -D -m 644 LICENSE "$doc/copyright"
install -D -m 644 config/examples/gateway.yaml "$doc/examples/gateway.yaml"
gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
bill="$(dirname "$program")/spillway.cdx.json"
if [ -f "$bill" ]; then gzip -9n <"$bill" >"$doc/spillway.cdx.json.gz"; fi
chmod -R u=rwX,go=rX "$root"

version="$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n1)"
architecture="$(dpkg --print-architecture)"
libc="$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -uV | tail -n1)"
size="$(du -sk "$root" | cut -f1)"
mkdir "$root/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@LIBC@/$libc/" -e "s/@SIZE@/$size/" \
  deploy/debian/control >"$root/DEBIAN/control"
echo /etc/spillway/spillway.yaml >"$root/DEBIAN/conffiles"
install -m 755 deploy/debian/postinst deploy/debian/prerm deploy/debian/postrm "$root/DEBIAN/"
(cd "$root" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
find "$root" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
mkdir -p "$out"
package="$out/spillway_${version}_$architecture.deb"
dpkg-deb --root-owner-group -Zxz --build "$root" "$package" >/dev/null
note "$package: $(du -h "$package" | cut -f1)"
