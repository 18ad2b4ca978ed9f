#!/usr/bin/env bash
# make test-aarch64: cross-compiles the engine for 64-bit ARM and runs the tests of the CPU kernels in qemu, on a
# processor with NEON's dot product and on one without. Arguments go to the test program in place of the tests' names.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

target=aarch64-unknown-linux-gnu
tools="$CACHE/aarch64"
apt_log="$CACHE/apt.log"

# apt_here ARGUMENTS..., apt_arm ARGUMENTS...: package lists and files of this machine, and of ARM. ARM's lists are
# separate: no architecture is added to the machine's package manager.
apt_here() { apt-get -q -o APT::Sandbox::User=root "$@" >>"$apt_log" 2>&1; }
apt_arm() {
  apt_here -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::State::Lists=$tools/lists" \
    -o "Dir::Cache=$tools" "$@"
}

# rustup's standard library for ARM, if its servers can be reached.
from_rustup() {
  have rustup || return 1
  if rustup target list --installed 2>/dev/null | grep -qx "$target"; then return 0; fi
  timeout 60 rustup target add "$target" >/dev/null 2>&1
}

# Otherwise Debian's compiler, which follows new releases in old ones too (rustc-web), with the standard libraries of
# both processors. Unpacked, not installed, because an installation would conflict with other Rust packages.
from_debian() {
  if "$tools/rustc" --version >/dev/null 2>&1; then return 0; fi
  have apt-get || die "no standard library of Rust for $target: rustup's servers cannot be reached, and there is no apt-get"
  say "Fetching Debian's Rust for ARM (rustup's servers cannot be reached)"
  rm -rf "$tools"
  mkdir -p "$tools/lists/partial" "$tools/packages" "$tools/root"
  apt_arm update || die "apt-get could not read the package lists for arm64 (see $apt_log)"
  (
    cd "$tools/packages"
    apt_arm download libstd-rust-web-dev
    apt_here download rustc-web libstd-rust-web-dev
    runtime="$(dpkg-deb -f libstd-rust-web-dev_*_arm64.deb Depends | grep -o 'libstd-rust-web-[0-9.]*')"
    apt_here download "$runtime"
    llvm="$(dpkg-deb -f "$runtime"_*.deb Depends | grep -o 'libllvm[0-9.]*')"
    # Its libraries are dependencies of the package, so that one is installed.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$llvm" >>"$apt_log" 2>&1
  ) || die "apt-get could not fetch rustc-web and libstd-rust-web-dev (see $apt_log)"
  local package
  for package in "$tools"/packages/*.deb; do dpkg-deb -x "$package" "$tools/root"; done
  rm -rf "$tools/packages" "$tools/lists"
  printf '#!/bin/sh\nexec env LD_LIBRARY_PATH="%s" "%s" "$@"\n' "$tools/root/usr/lib/x86_64-linux-gnu" \
    "$tools/root/usr/bin/rustc" >"$tools/rustc"
  chmod 755 "$tools/rustc"
  "$tools/rustc" --version || die "Debian's rustc does not run here (see the message above)"
}

[ "$(uname -m)" = x86_64 ] || die "this cross-compiles from x86_64; on ARM make test runs the same tests"
scripts/system.sh aarch64 || die "a cross compiler or qemu could not be installed (see above)"
scripts/rust.sh
if ! from_rustup; then
  from_debian
  export RUSTC="$tools/rustc"
fi

export CARGO_TARGET_DIR="${SPILLWAY_AARCH64_TARGET:-$ROOT/target/aarch64-check}"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# Only the engine's own code must be fast under emulation.
flags=(--locked -p spillway-engine --lib --target "$target" --config 'profile.dev.package."*".opt-level=0'
  --config profile.dev.debug=false)
say "Building the engine's tests for $target"
cargo test "${flags[@]}" --no-run
program="$(cargo test "${flags[@]}" --no-run --message-format=json 2>/dev/null |
  sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n1)"
[ -x "$program" ] || die "cargo named no test program"

[ "$#" -gt 0 ] || set -- exec::cpu exec::plain
# on CPU UNIT: runs the tests on a processor; its fastest unit must be among those tested.
on() {
  local cpu="$1" unit="$2" log="$CACHE/aarch64-$1.log"
  shift 2
  say "Running them on qemu's $cpu ($unit)"
  qemu-aarch64-static -cpu "$cpu" -L /usr/aarch64-linux-gnu "$program" --show-output "$@" >"$log" 2>&1 || {
    cat "$log"
    die "tests failed on qemu's $cpu"
  }
  grep '^test ' "$log"
  grep -q "^$unit, " "$log" || die "nothing ran on $unit (see $log)"
}
on max "NEON dot product" "$@"
on cortex-a53 NEON "$@"
