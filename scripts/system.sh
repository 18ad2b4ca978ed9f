#!/usr/bin/env bash
# Installs missing system packages, and only those. Usage: scripts/system.sh run|test|bench|image|aarch64|instructions|package|dashboard
# Debian 12 and 13, Ubuntu 22.04 and 24.04; elsewhere it prints the packages to install. Upgrades nothing but Mesa's
# own libraries where Debian 12's newer Mesa is used (SPILLWAY_MESA=stable keeps to the release's own).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

profile="${1:-run}"
missing=()

# need PACKAGE COMMAND: adds the package unless the command exists.
need() { have "$2" || missing+=("$1"); }

vulkan_loader() { /sbin/ldconfig -p 2>/dev/null | grep -q 'libvulkan\.so\.1'; }
vulkan_software() { compgen -G '/usr/share/vulkan/icd.d/lvp_icd*.json' >/dev/null || compgen -G '/etc/vulkan/icd.d/lvp_icd*.json' >/dev/null; }

need cmake cmake
need gcc cc
need g++ c++
need pkg-config pkg-config
need curl curl
[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] || missing+=(ca-certificates)
# Vulkan's loader and drivers: for a GPU if there is one, and to test its kernels without one. Otherwise models run on
# the CPU's own vector units.
mesa=""
if [ "$profile" = test ] || has_gpu; then
  vulkan_loader || missing+=(libvulkan1)
  vulkan_software || mesa="mesa-vulkan-drivers"
fi
find_python >/dev/null || missing+=(python3 python3-venv)
case "$profile" in
  run) ;;
  test | bench)
    PATH="$PATH:/usr/sbin" need nginx-light nginx
    need wrk wrk
    if [ "$profile" = test ]; then
      need shellcheck shellcheck
      need redis-server redis-server
      need git git
      need util-linux prlimit
      # A library that is preloaded, so there is no command to look for.
      compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null || missing+=(libfaketime)
    else
      PATH="$PATH:/usr/sbin" need haproxy haproxy
      need nghttp2-client h2load
    fi
    ;;
  instructions) need valgrind valgrind ;;
  dashboard) have google-chrome || have chromium-browser || need chromium chromium ;;
  package)
    need systemd systemd-analyze
    need binutils strip
    ;;
  image) PATH="$PATH:/usr/sbin" need debootstrap debootstrap ;;
  aarch64)
    need gcc-aarch64-linux-gnu aarch64-linux-gnu-gcc
    [ -e /usr/aarch64-linux-gnu/lib/crt1.o ] || missing+=(libc6-dev-arm64-cross)
    need qemu-user-static qemu-aarch64-static
    ;;
  *) die "unknown profile '$profile': run, test, bench, image, aarch64, instructions, package or dashboard" ;;
esac

if [ "${#missing[@]}" -eq 0 ] && [ -z "$mesa" ]; then exit 0; fi

if ! have apt-get; then
  die "these are missing, and there is no apt-get to install them with: ${missing[*]} $mesa
       Install what your distribution calls them, then try again."
fi
if [ "$(id -u)" -ne 0 ] && ! have sudo; then
  die "system packages are missing and neither root nor sudo is at hand. Run this as root, then try again:
       apt-get update && apt-get install -y --no-install-recommends ${missing[*]} $mesa"
fi

say "Installing system packages: ${missing[*]} $mesa"
# apt-get without its output, which is shown on failure.
apt() {
  local log="$CACHE/apt.log"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=180 -o Acquire::Retries=3 \
    -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1 && return 0
  tail -n 30 "$log" >&2
  return 1
}

# Servers that tests and measurements start themselves (nginx, HAProxy, Redis) must not be started or enabled at boot by
# their packages.
policy=/usr/sbin/policy-rc.d
guard=""
release_guard() { if [ -n "$guard" ]; then as_root rm -f "$policy"; fi; }
trap release_guard EXIT
came=()
for p in "${missing[@]}"; do
  case "$p" in
    nginx-light) came+=(nginx) ;;
    redis-server) came+=(redis-server) ;;
    haproxy) came+=(haproxy) ;;
  esac
done
if [ "${#came[@]}" -gt 0 ] && [ ! -e "$policy" ]; then
  guard=yes
  printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
  as_root chmod 755 "$policy"
fi

apt update || warn "apt-get update had errors; trying with the package lists that are there"
if [ "${#missing[@]}" -gt 0 ]; then
  apt install -y --no-install-recommends "${missing[@]}" ||
    die "apt-get could not install: ${missing[*]} (its messages are above)"
fi
if [ "${#came[@]}" -gt 0 ] && have systemctl; then
  as_root systemctl disable "${came[@]}" >/dev/null 2>&1 || true # no systemd running: then nothing was enabled either
fi

# Debian 12 has a newer Mesa in its backports, whose software Vulkan is several times as fast. Installed through
# separate package lists under .cache/, so that the machine's list of sources is not changed.
install_mesa_backport() {
  local codename uri lists sources
  # shellcheck source=/dev/null
  codename="$(. /etc/os-release && echo "${VERSION_CODENAME:-}")"
  [ "$codename" = bookworm ] && [ "${SPILLWAY_MESA:-}" != stable ] || return 1
  if apt-cache madison mesa-vulkan-drivers | grep -q "$codename-backports/"; then
    apt install -y --no-install-recommends -t "$codename-backports" mesa-vulkan-drivers
    return
  fi
  # shellcheck disable=SC2016  # these are apt's own variables
  uri="$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    sed -n "s/^$codename //p" | head -n1)"
  [ -n "$uri" ] || uri="http://deb.debian.org/debian"
  lists="$CACHE/apt/lists"
  sources="$CACHE/apt/sources.list.d"
  mkdir -p "$lists/partial" "$sources"
  cp -f /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources "$sources/" 2>/dev/null || true # either kind may be absent
  printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
    "$uri" "$codename-backports" >"$sources/spillway-backports.sources"
  local own=(-o "Dir::State::Lists=$lists" -o "Dir::Etc::SourceParts=$sources" -o APT::Sandbox::User=root)
  apt "${own[@]}" update || return 1
  apt "${own[@]}" install -y --no-install-recommends -t "$codename-backports" mesa-vulkan-drivers
}

if [ -n "$mesa" ]; then
  if install_mesa_backport; then
    note "Mesa's software Vulkan comes from the backports of this release (faster)."
  else
    apt install -y --no-install-recommends mesa-vulkan-drivers || die "apt-get could not install mesa-vulkan-drivers"
  fi
fi
