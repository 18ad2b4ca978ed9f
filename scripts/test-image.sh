#!/usr/bin/env bash
# make test-image: tests the Dockerfile without a container engine. Runs its steps in debootstrapped roots, then
# starts the result as a container (its user, a read-only root, its health check) and sends a request. Needs root
# (chroot, mount namespaces); some fifteen minutes on two cores, so it is not part of make test.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

scripts/system.sh image
PATH="$PATH:/usr/sbin:/sbin"
have unshare || die "unshare is missing (Debian's package util-linux)"
python="$(find_python)" || die "no Python of at least 3.10"
roots="${SPILLWAY_IMAGE_ROOTS:-$CACHE/image}"
mkdir -p "$roots"
# Mounts of the steps live in this namespace and end with it, whatever happens.
exec unshare --mount --propagation private "$python" scripts/test_image.py --source "$ROOT" --roots "$roots" "$@"
