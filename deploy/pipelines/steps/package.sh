#!/usr/bin/env bash
# package.sh ARCHIVE FILE...: packs a configuration and its files with their checksums. The same files give the same bytes.
set -euo pipefail
archive="${1:?the archive, ending in .tar.gz}"
shift
[ "$#" -gt 0 ] || { echo "package.sh: no file to pack" >&2; exit 2; }

sums="$(mktemp -d)"
trap 'rm -rf "$sums"' EXIT
sha256sum -- "$@" >"$sums/SHA256SUMS"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --format=ustar -cf - -C "$sums" SHA256SUMS -C "$PWD" -- "$@" | gzip --no-name >"$archive"
sha256sum -- "$archive"
