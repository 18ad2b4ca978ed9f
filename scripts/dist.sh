#!/usr/bin/env bash
# make dist: the program as it is shipped, its bill of materials (CycloneDX) and their checksums, in dist/. The same commit,
# toolchain and C compiler give the same bytes in any folder: nothing of the folder, the user or the time is in them.
#
# scripts/dist.sh [FOLDER]   into another folder
# SPILLWAY_DIST_PROFILE=release builds faster, without link-time optimisation.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

out="$(realpath -m "${1:-$ROOT/dist}")"
profile="${SPILLWAY_DIST_PROFILE:-dist}"
target="$ROOT/target/dist-build"
scripts/rust.sh

# Names for the folders that compilers write into programs: of this source, of the crates, of the standard library.
cargo_home="${CARGO_HOME:-$HOME/.cargo}"
flags=("--remap-path-prefix=$ROOT=/spillway" "--remap-path-prefix=$cargo_home=/cargo"
  "--remap-path-prefix=$(rustc --print sysroot)=/rust")
prefixes="-ffile-prefix-map=$ROOT=/spillway -ffile-prefix-map=$cargo_home=/cargo"
# Flags of C compilers are split at blanks.
[[ "$ROOT$cargo_home" != *[[:space:]]* ]] || die "a folder with a blank in its name: copy this source to one without"
# Cargo reads flags with this separator.
CARGO_ENCODED_RUSTFLAGS="$(IFS=$'\x1f' && echo "${flags[*]}")"
# C compilers write this time for the present one. A source without its history has no time.
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}"
export CARGO_ENCODED_RUSTFLAGS SOURCE_DATE_EPOCH
export CFLAGS="${CFLAGS:-} $prefixes" CXXFLAGS="${CXXFLAGS:-} $prefixes" CARGO_INCREMENTAL=0
unset RUSTFLAGS

say "Building the program (profile $profile)"
cargo build --profile "$profile" --locked -p spillway --target-dir "$target"
mkdir -p "$out"
install -m 755 "$target/$profile/spillway" "$out/spillway"
scripts/sbom.sh "$out/spillway.cdx.json"
(cd "$out" && sha256sum spillway spillway.cdx.json | tee SHA256SUMS)
