# Stages that need no running program (sourced by lint.sh and test.sh, after lib.sh).
# shellcheck shell=bash

check_formatting() { cargo fmt --all --check; }

check_clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }

# The gateway as `make run` and `make demo` build it. Of the features that they leave out, `make run` adds `gpu` on a machine with a GPU; no
# code asks for both, so that build has nothing which this one and the one with all features lack. Clippy is used because it refuses
# warnings without checking the dependencies anew.
check_features() { cargo clippy -p spillway --no-default-features --locked -- -D warnings; }

check_dependencies() {
  local checks=(licenses bans sources)
  # The advisory database is a git repository; some networks cannot reach it.
  if curl --silent --head --fail --location --output /dev/null --max-time 10 https://github.com/RustSec/advisory-db; then
    checks+=(advisories)
    note "checking licenses, bans, sources, advisories"
  else
    note "checking licenses, bans, sources; NOT advisories: their database (github.com/RustSec/advisory-db) cannot be reached from here"
  fi
  cargo deny --locked check --hide-inclusion-graph "${checks[@]}"
}

# `unsafe` stands in the files and folders that scripts/unsafe.txt names, and nowhere else. Texts do not count, nor do names of
# lints.
check_unsafe() {
  local keyword='^[^"]*\bunsafe[[:space:]]*(\{|fn\b|impl\b|extern\b|trait\b|\()'
  git grep -lE "$keyword" -- '*.rs' | awk '
    FNR == NR { if (!/^#/) { named[$1] } next }
    { known = 0; for (name in named) if (index($0, name) == 1) { known = 1; used[name] } }
    !known { print "error: " $0 " has unsafe code: find a safe way, or name it in scripts/unsafe.txt with the reason"; bad = 1 }
    END {
      for (name in named) if (!(name in used)) { print "error: " name " has no unsafe code: remove it from scripts/unsafe.txt"; bad = 1 }
      exit bad
    }' scripts/unsafe.txt - >&2
}

check_scripts() { shellcheck -x scripts/*.sh .ci/run deploy/pipelines/steps/*.sh; }

check_workflows() {
  "$BIN/actionlint" && "$BIN/actionlint" deploy/pipelines/github-actions.yaml || return
  "$BIN/check-jsonschema" --builtin-schema vendor.gitlab-ci --data-transform gitlab-ci deploy/pipelines/gitlab-ci.yaml
}

static_checks() {
  stage "formatting (cargo fmt)" check_formatting
  stage "shell scripts (shellcheck)" check_scripts
  stage "workflows (actionlint, check-jsonschema)" check_workflows
  stage "unsafe code (scripts/unsafe.txt)" check_unsafe
  stage "dependencies (cargo deny)" check_dependencies
  stage "lints (cargo clippy, warnings denied)" check_clippy
  stage "the gateway without gpu, kubernetes and wasm (cargo clippy, warnings denied)" check_features
}
