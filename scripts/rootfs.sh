#!/usr/bin/env bash
# Make a root file system of Debian's busybox-static: one program, and a link for
# each of its applets. usage: rootfs.sh DIR
set -euo pipefail
mkdir -p "$1/bin"
cp "$(command -v busybox)" "$1/bin/busybox"
for applet in $(busybox --list); do
  [ "$applet" = busybox ] || ln -s busybox "$1/bin/$applet"
done
