#!/usr/bin/env bash
# make fuzz: each fuzz target for a minute, from its seeds and the corpus of earlier runs, which stays in gateway/fuzz/corpus and
# engine/fuzz/corpus. Without a sanitizer, so that the pinned toolchain builds the targets; a panic, a failed assertion, more than
# 2 GiB or 20 s for one input is a fault, whose input is kept under artifacts/.
#
# scripts/fuzz.sh [TARGET...]   SPILLWAY_FUZZ_SECONDS=600 for longer than a minute each
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

stage "tools" scripts/test-tools.sh fuzz

# fuzz FOLDER TARGET: one target.
fuzz() {
  local folder="$1" target="$2"
  mkdir -p "$folder/corpus/$target"
  "$BIN/cargo-fuzz" run --fuzz-dir "$folder" --sanitizer none "$target" "$folder/corpus/$target" "$folder/seeds/$target" -- \
    -max_total_time="${SPILLWAY_FUZZ_SECONDS:-60}" -timeout=20 -rss_limit_mb=2048 -print_final_stats=1
}

for folder in gateway/fuzz engine/fuzz; do
  for file in "$folder"/fuzz_targets/*.rs; do
    target="$(basename "$file" .rs)"
    grep -q "^name = \"$target\"$" "$folder/Cargo.toml" || continue
    [ "$#" -eq 0 ] || [[ " $* " == *" $target "* ]] || continue
    stage "$target" fuzz "$folder" "$target"
  done
done
stages_end
