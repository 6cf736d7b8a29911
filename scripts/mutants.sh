#!/usr/bin/env bash
# Changes the code that decides what may be deleted and who is trusted, one place
# at a time, and shows the changes that no test notices. docs/testing.md says how to
# read the result. Usage: mutants.sh [PACKAGE:FILE[,FILE...]]...
set -euo pipefail
cd "$(dirname "$0")/.."

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  targets=(
    internal/registry/gc:judge.go
    internal/registry/meta:claims.go
    internal/agent/evict:judge.go
    internal/agent/piece:remove.go
    internal/agent/mirror:rights.go,rule.go
    internal/agent/swarm:trust.go
  )
fi

for target in "${targets[@]}"; do
  package=${target%%:*} files=,${target##*:},
  exclude=()
  for path in "$package"/*.go; do
    name=${path##*/}
    case $files in
    *",$name,"*) ;;
    *) exclude+=(--exclude-files "(^|/)${name//./\\.}\$") ;;
    esac
  done
  echo "== $target"
  # One at a time: tests that wait for each other's CPU would run out of time,
  # which counts as noticed.
  gremlins unleash "./$package" "${exclude[@]}" --workers 1 --timeout-coefficient 10 \
    --invert-logical --invert-loopctrl --output-statuses lctv
done
