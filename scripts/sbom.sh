#!/usr/bin/env bash
# make sbom: the bill of materials of the program, in CycloneDX 1.5: every crate in it and every one that builds it, with version,
# licence, checksum and place in the tree. The same commit gives the same bytes in any folder.
#
# scripts/sbom.sh [FILE]   default: dist/spillway.cdx.json
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
out="$(realpath -m "${1:-$ROOT/dist/spillway.cdx.json}")"
cd "$ROOT"

scripts/rust.sh
scripts/test-tools.sh cyclonedx
# Without this the bill has the present time and a random number. A source without its history has no time.
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
export SOURCE_DATE_EPOCH

# The tool writes a file beside every Cargo.toml of the workspace, and knows no other folder.
name="spillway-bom-$$"
remove_bills() { find . -name "$name.json" -not -path './target/*' -not -path './.cache/*' -delete; }
trap remove_bills EXIT
say "Listing what the program is made of"
cargo cyclonedx --quiet --manifest-path gateway/Cargo.toml --format json --spec-version 1.5 --target "$(rustc -vV | sed -n 's/^host: //p')" \
  --override-filename "$name"
mkdir -p "$(dirname "$out")"
sed "s|file://$ROOT/|file:///spillway/|g" "gateway/$name.json" >"$out"
note "$out: $(grep -c '"purl": "pkg:cargo/[^"]*"' "$out") entries"
