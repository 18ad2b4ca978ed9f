#!/usr/bin/env bash
# make test-dist: `make dist` of the last commit in two folders with names of different lengths gives the same bytes. Two
# builds from nothing: most of an hour on two cores, less with SPILLWAY_DIST_PROFILE=release.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

folder="$(mktemp -d "${TMPDIR:-/tmp}/spillway-dist.XXXXXX")"
trap 'rm -rf "$folder"' EXIT
SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)"
export SOURCE_DATE_EPOCH
for copy in "$folder/one" "$folder/another/folder/of/this/source"; do
  mkdir -p "$copy"
  git archive HEAD | tar -x -C "$copy"
  # The tools that are here already.
  ln -s "$CACHE" "$copy/.cache"
  "$copy/scripts/dist.sh" "$copy/dist"
  # One build at a time needs its gigabytes.
  rm -rf "$copy/target"
done
cmp "$folder/one/dist/spillway" "$folder/another/folder/of/this/source/dist/spillway"
cmp "$folder/one/dist/SHA256SUMS" "$folder/another/folder/of/this/source/dist/SHA256SUMS"
say "Both folders gave the same bytes"
