# Stages that need no running program (sourced by lint.sh and test.sh, after lib.sh).
# shellcheck shell=bash

check_formatting() { cargo fmt --all --check; }

check_clippy() { cargo clippy --workspace --all-targets --locked -- -D warnings; }

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

check_scripts() { shellcheck -x scripts/*.sh .ci/run; }

static_checks() {
  stage "formatting (cargo fmt)" check_formatting
  stage "shell scripts (shellcheck)" check_scripts
  stage "dependencies (cargo deny)" check_dependencies
  stage "lints (cargo clippy, warnings denied)" check_clippy
}
