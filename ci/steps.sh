#!/usr/bin/env bash
# Runs the steps named as arguments, in order, each under its name; ends at the first that fails. A step whose tool is
# missing fails when CI=true; otherwise it is listed at the end as NOT RUN. Reads nothing from stdin.
#
#   ci/steps.sh fmt clippy image deny tests docs release demo peers breaker cache
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

target=${CARGO_TARGET_DIR:-target}
not_run=()
current=

# === The steps ===

fmt() { needs "cargo fmt" && cargo fmt --check; }

clippy() { needs "cargo clippy" && cargo clippy --locked --all-targets -- -D warnings; }

# The crate as the image has it: no simulator, and none of the features that only tests switch on.
image() { needs "cargo clippy" && cargo clippy --locked --lib --bins --no-default-features -- -D warnings; }

deny() { needs "cargo deny" && cargo deny --locked check --hide-inclusion-graph bans licenses sources; }

tests() {
  local profile=default
  [[ ${CI:-} == true ]] && profile=ci
  needs "cargo nextest" && cargo nextest run --locked --profile "$profile"
}

# Full counts: each test names both of its counts.
soak() { needs "cargo nextest" && SEAWALL_SOAK=1 cargo nextest run --locked --profile soak; }

# Units and manifests, by the tools of those who read them.
deploy() {
  needs systemd-analyze && needs "$target/tools/kubernetes/bin/kubectl" &&
    needs "$target/tools/kubernetes/bin/kubernetes-validate" && ci/deploy.sh "$target/tools/kubernetes"
}

# Every order in which the steps on the breaker's state word can run. A package of its own: see loom/Cargo.toml.
loom() { cargo run --locked --release --manifest-path loom/Cargo.toml --target-dir "$target/loom"; }

# `cargo nextest` does not run the examples in the documentation.
docs() { cargo test --locked --doc; }

# With the benchmarks at once, so that all come from one build of the dependencies.
release() { cargo build --locked --release --bin seawall --bench peers --bench breaker --bench cache; }

demo() { needs timeout && timeout 60 "$target/release/seawall" demo; }

# Prints the ratios. The limits are held by `make bench`: a short run beside a build says little.
peers() { cargo bench --locked --bench peers -- --short --report-only; }

breaker() { cargo bench --locked --bench breaker -- --short --report-only; }

cache() { cargo bench --locked --bench cache -- --short; }

bench() {
  cargo bench --locked --bench peers && cargo bench --locked --bench breaker && cargo bench --locked --bench cache
}

# === Running them ===

# Whether a tool is there: `cargo x` as a subcommand, all else as a program.
needs() {
  case $1 in
    "cargo "*) cargo "${1#cargo }" --version >/dev/null 2>&1 && return ;;
    *) command -v "$1" >/dev/null 2>&1 && return ;;
  esac
  if [[ ${CI:-} == true ]]; then
    printf 'FAILED: %s: %s is missing\n' "$current" "$1" >&2
    exit 1
  fi
  not_run+=("$current: $1 is missing")
  return 1
}

summary() {
  local status=$? line
  for line in "${not_run[@]}"; do printf 'NOT RUN: %s\n' "$line"; done
  if ((status)); then
    printf 'FAILED: %s (exit code %d)\n' "$current" "$status"
  elif ((${#not_run[@]} == 0)); then
    printf 'ok: all steps passed\n'
  fi
}
trap summary EXIT

for current in "$@"; do
  printf '\n=== %s\n' "$current"
  started=$SECONDS before=${#not_run[@]}
  # Behind `||` no `set -e` holds: so a step's last command must be the one that can fail.
  "$current" || { status=$?; ((${#not_run[@]} > before)) || exit "$status"; }
  printf -- '--- %s: %d s\n' "$current" $((SECONDS - started))
done
