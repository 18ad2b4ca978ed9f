#!/usr/bin/env bash
# Provides a Rust toolchain that builds this workspace: the present one if suitable, else one installed by rustup. The
# version is that of rust-toolchain.toml. SPILLWAY_RUSTUP_URL sets the source of the installer.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

channel="$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)"
[ -n "$channel" ] || die "rust-toolchain.toml names no channel"
components=(rustfmt clippy)

if ! have rustup && have cargo && have rustc; then
  version="$(rustc --version | cut -d' ' -f2)"
  if version_at_least "$version" "${channel%.*}"; then exit 0; fi
  note "The Rust here is $version, this needs ${channel%.*}: installing rustup beside it."
fi

if ! have rustup; then
  say "Installing Rust $channel with rustup (into $CARGO_BIN)"
  installer="$CACHE/rustup-init.sh"
  rm -f "$installer" "$installer.part"
  if [ -n "${SPILLWAY_RUSTUP_URL:-}" ]; then
    fetch "$SPILLWAY_RUSTUP_URL" "$installer" || die "cannot fetch rustup's installer from $SPILLWAY_RUSTUP_URL"
  else
    # The first address redirects to the second; some networks reach only that one.
    fetch https://sh.rustup.rs "$installer" 2>/dev/null ||
      fetch https://static.rust-lang.org/rustup/rustup-init.sh "$installer" ||
      die "cannot fetch rustup's installer from https://sh.rustup.rs: install Rust $channel yourself (https://rustup.rs), then try again"
  fi
  RUSTUP_INIT_SKIP_PATH_CHECK=yes sh "$installer" -y --profile minimal --default-toolchain "$channel" \
    --component rustfmt --component clippy
  rm -f "$installer"
  PATH="$CARGO_BIN:$PATH"
fi

export RUSTUP_AUTO_INSTALL=0
if ! rustup run "$channel" rustc --version >/dev/null 2>&1; then
  say "Installing the Rust toolchain $channel"
  rustup toolchain install "$channel" --profile minimal
fi
for c in "${components[@]}"; do
  tool="cargo-${c/rustfmt/fmt}"
  rustup which --toolchain "$channel" "$tool" >/dev/null 2>&1 || rustup component add --toolchain "$channel" "$c"
done
