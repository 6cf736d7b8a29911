#!/usr/bin/env bash
# Installs what is missing for: lint, e2e, node, demo, bench. Debian packages come
# by apt-get and start no service, Go programs go into .tools/bin. Nothing is
# installed twice.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.tools/bin
export PATH=$bin:$PATH:/usr/sbin:/sbin

golangci_lint=github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
crane=github.com/google/go-containerregistry/cmd/crane@v0.22.1
regctl=github.com/regclient/regclient/cmd/regctl@v0.11.7
registry=github.com/distribution/distribution/v3/cmd/registry@v3.1.2
containerd=v2.4.2

# root runs a command with the rights to install.
root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    echo "need root or sudo for: $*" >&2
    return 1
  fi
}

# apt PROGRAM:PACKAGE... installs the packages whose program is not there.
apt() {
  local missing=() pair
  for pair; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
  done
  [ ${#missing[@]} -eq 0 ] && return
  echo "installing ${missing[*]}" >&2
  root apt-get update -qq
  # A runtime or a web server that starts with its installation would be in the
  # way of whatever else this machine does; Debian asks policy-rc.d first.
  local policy=/usr/sbin/policy-rc.d made=''
  if [ ! -e $policy ]; then
    root sh -c "printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy"
    made=yes
  fi
  local status=0
  root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || status=$?
  [ -z "$made" ] || root rm -f $policy
  return $status
}

# gobin MODULE@VERSION installs a Go program, again when the version changed.
gobin() {
  local name=${1%@*}
  name=${name##*/}
  local stamp=$bin/.$name-${1##*@}
  [ -x "$bin/$name" ] && [ -e "$stamp" ] && return
  mkdir -p "$bin"
  echo "installing $1" >&2
  CGO_ENABLED=0 GOFLAGS=-trimpath GOBIN=$bin go install "$1"
  rm -f "$bin/.$name-"*
  : >"$stamp"
}

# containerd2 builds containerd 2.x into a folder of its own, where it does not
# shadow the one of Debian: both are tested.
containerd2() {
  local dir=$PWD/.tools/containerd2 name
  local stamp=$dir/.$containerd
  [ -e "$stamp" ] && return
  mkdir -p "$dir"
  echo "installing containerd $containerd (a few minutes)" >&2
  for name in containerd ctr containerd-shim-runc-v2; do
    CGO_ENABLED=0 GOFLAGS=-trimpath GOBIN=$dir go install "github.com/containerd/containerd/v2/cmd/$name@$containerd"
  done
  : >"$stamp"
}

# debs PACKAGE... fetches Debian packages to make images of.
debs() {
  local dir=$PWD/.tools/debs missing=() name
  mkdir -p "$dir"
  for name; do
    compgen -G "$dir/${name}_*.deb" >/dev/null || missing+=("$name")
  done
  [ ${#missing[@]} -eq 0 ] && return
  echo "fetching ${missing[*]}" >&2
  (cd "$dir" && apt-get download -qq "${missing[@]}" 2>/dev/null) && return
  root apt-get update -qq
  (cd "$dir" && apt-get download -qq "${missing[@]}")
}

case ${1:-} in
lint)
  gobin $golangci_lint
  ;;
e2e)
  apt skopeo:skopeo buildah:buildah umoci:umoci busybox:busybox-static runc:runc curl:curl jq:jq
  debs busybox-static libc6 coreutils bash libacl1 libattr1 libgmp10 libselinux1 libpcre2-8-0 libtinfo6 \
    perl-base libperl5.36 libcrypt1
  gobin $crane
  gobin $regctl
  ;;
node)
  apt containerd:containerd runc:runc podman:podman conmon:conmon skopeo:skopeo umoci:umoci busybox:busybox-static curl:curl jq:jq
  debs busybox-static
  gobin $crane
  containerd2
  ;;
demo)
  apt skopeo:skopeo umoci:umoci busybox:busybox-static curl:curl jq:jq containerd:containerd runc:runc
  ;;
bench)
  apt nginx:nginx-light wrk:wrk
  gobin $registry
  ;;
*)
  echo "usage: $0 lint|e2e|node|demo|bench" >&2
  exit 2
  ;;
esac
