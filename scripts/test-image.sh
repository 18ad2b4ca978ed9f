#!/usr/bin/env bash
# make test-image: the Dockerfile without a container engine. Its steps are run in debootstrapped roots, then what it would
# start is started as it would be (its user, a root that cannot be written, its health check) and asked a question.
# Needs root (chroot, mount namespaces); some fifteen minutes on two cores, so it is not part of make test.
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
# Mounts made by the steps live in this namespace and end with it, whatever happens.
exec unshare --mount --propagation private "$python" scripts/test_image.py --source "$ROOT" --roots "$roots" "$@"
