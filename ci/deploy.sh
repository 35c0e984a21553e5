#!/usr/bin/env bash
# Holds deploy/ to the tools of those who read it: systemd's own checks, kustomize, and the schemas of Kubernetes.
#
#   ci/deploy.sh FOLDER       FOLDER/bin has kubectl and kubernetes-validate (see ci/tools.sh)
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

bin=$1/bin
# The first with native sidecars on by default, and the newest that the validator knows.
readonly VERSIONS=(1.29 1.33 1.37)
# systemd's measure of what a service could do, in tenths: 100 is everything.
readonly EXPOSURE=20

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# === systemd ===

# The program stands in for Seawall, which is not installed here; tests/it/deploy.rs holds the words behind it to Seawall.
for file in seawall.service seawall.service.d/credentials.conf; do
  mkdir -p "$(dirname "$work/$file")"
  sed "s#/usr/bin/seawall#$(command -v true)#" "deploy/systemd/$file" >"$work/$file"
done
# It ends with 0 after most complaints, so it must say nothing.
complaints=$(systemd-analyze verify --man=no "$work/seawall.service" 2>&1) || true
if [[ -n $complaints ]]; then
  printf '%s\n' "$complaints" >&2
  exit 1
fi
if ! systemd-analyze security --no-pager --offline=true --threshold="$EXPOSURE" "$work/seawall.service" >"$work/exposure"; then
  grep -v '✓' "$work/exposure" >&2
  exit 1
fi
grep Overall "$work/exposure"

# === Kubernetes ===

for overlay in deploy/k8s/overlays/*/; do
  name=$(basename "$overlay")
  "$bin/kubectl" kustomize "$overlay" >"$work/$name.yaml"
  for version in "${VERSIONS[@]}"; do
    "$bin/kubernetes-validate" --strict --quiet -k "$version" "$work/$name.yaml"
  done
  printf '%s: %d resources, by the schemas of %s\n' "$name" "$(grep -c '^kind:' "$work/$name.yaml")" "${VERSIONS[*]}"
done
