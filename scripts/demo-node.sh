#!/usr/bin/env bash
# The story of the node: a real containerd runs a container from an image that it
# pulled through `fairway node`; the cache of 50 MB is filled past its quota, and
# what runs stays. Everything lives in a temporary directory and ends with the
# script. It needs root, as containerd does. usage: demo-node.sh [FAIRWAY]
set -euo pipefail
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "containerd needs root: run this as root" >&2; exit 1; }
  exec sudo env "PATH=$PATH" "TMPDIR=${TMPDIR:-}" "$0" "$@"
fi
fairway=$(realpath "${1:-bin/fairway}")
dir=$(mktemp -dt fairway-demo.XXXXXX) # the X are mktemp's
space=demo-${dir##*.} # containerd's namespace; runc keeps names by it
registry='' containerd='' node=''

finish() {
  status=$?
  set +e
  if [ -n "$containerd" ]; then
    for c in $(ctr c ls -q 2>/dev/null); do
      ctr t rm -f "$c"
      ctr c rm "$c"
    done >/dev/null 2>&1
  fi
  for p in $node $containerd $registry; do
    kill "$p" 2>/dev/null && wait "$p" 2>/dev/null
  done
  if [ $status -ne 0 ]; then
    echo
    echo "The demo failed. The end of the logs:"
    tail -n 10 "$dir"/*.log
  fi
  awk -v d="$dir/" 'index($2, d) == 1 { print $2 }' /proc/self/mounts | tac | xargs -r umount -l
  rm -rf "$dir"
  exit $status
}
trap finish EXIT

step() { printf '\n%s\n' "$*"; }
show() { printf '  $ %s\n' "$*"; }
fail() { echo "  WRONG: $*"; exit 1; }
size() { numfmt --to=iec-i --suffix=B "$1"; }
ctr() { command ctr --address "$dir/containerd.sock" -n "$space" "$@"; }
port=$(( 20000 + RANDOM % 12000 )) # below those that connections are given
address() {
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  echo "127.0.0.1:$port"
}
await() {
  local what=$1
  shift
  for _ in $(seq 300); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.05
  done
  fail "waited in vain: $what"
}
used() { "$fairway" node status --json | jq .cache.used_bytes; }
# held DIGEST... counts how many of the blobs the cache has, whole.
held() {
  local d n=0
  "$fairway" cache ls --json >"$dir/ls.json"
  for d; do
    jq -e --arg d "$d" 'any(.items[]; .digest == $d and .state == "complete")' "$dir/ls.json" >/dev/null && n=$((n + 1))
  done
  echo $n
}
gone() { [ "$(held "$@")" = 0 ]; }
# image NAME MEGABYTES BASE pushes an image with a layer of noise on a base.
image() {
  cp -r "$dir/$3" "$dir/$1"
  rm -rf "$dir/noise" && mkdir "$dir/noise"
  head -c "$(($2 * 1000000))" /dev/urandom >"$dir/noise/noise-$1"
  umoci insert --rootless --image "$dir/$1:1" "$dir/noise" /noise
  skopeo --insecure-policy copy -q --preserve-digests --dest-tls-verify=false "oci:$dir/$1:1" "docker://$host/demo/$1:1"
}
# blobs NAME lists the digests of an image.
blobs() {
  local m
  m=$(jq -r '.manifests[0].digest' "$dir/$1/index.json")
  echo "$m"
  jq -r '.config.digest, .layers[].digest' "$dir/$1/blobs/sha256/${m#sha256:}"
}

step "1. Start a registry, a containerd, and a node with a cache of 50 MB beside it."
host=$(address)
"$fairway" serve --data "$dir/registry" --listen "$host" >"$dir/registry.log" 2>&1 &
registry=$!
await "the registry" curl -sf "http://$host/readyz"
cat >"$dir/containerd.toml" <<T
version = 2
root = "$dir/containerd/root"
state = "$dir/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$dir/containerd.sock"
T
containerd --config "$dir/containerd.toml" >"$dir/containerd.log" 2>&1 &
containerd=$!
await "containerd" ctr version
port=$((port + 1))
listen=$(address)
export FAIRWAY_NODE=http://$listen FAIRWAY_SERVER=http://$host
show "fairway node --registry http://$host --quota 50MB --runtime containerd://$dir/containerd.sock"
"$fairway" node --registry "http://$host" --name demo --data "$dir/node" --listen "$listen" --quota 50MB --warm 0s \
  --runtime "containerd://$dir/containerd.sock" >"$dir/node.log" 2>&1 &
node=$!
await "the node" curl -sf "http://$listen/readyz"
mkdir -p "$dir/certs.d/$host"
cat >"$dir/certs.d/$host/hosts.toml" <<T
server = "http://$host"
[host."http://$listen"]
  capabilities = ["pull", "resolve"]
T
echo "  $(ctr version | awk '/Server/ { s = 1 } s && /Version/ { print "containerd " $2 }'), the node at $listen is its mirror for $host"

step "2. Run BusyBox from an image that containerd pulls through the node."
"$(dirname "$0")/rootfs.sh" "$dir/rootfs"
umoci init --layout "$dir/empty"
umoci new --image "$dir/empty:1"
umoci config --image "$dir/empty:1" --config.env PATH=/bin --os linux
cp -r "$dir/empty" "$dir/base"
umoci insert --rootless --image "$dir/base:1" "$dir/rootfs" /
image busybox 8 base
show "ctr image pull --hosts-dir … $host/demo/busybox:1; ctr run -d … busybox"
ctr i pull --hosts-dir "$dir/certs.d" "$host/demo/busybox:1" >/dev/null
ctr run -d "$host/demo/busybox:1" busybox /bin/sleep 1000000
mapfile -t running < <(blobs busybox)
[ "$(held "${running[@]}")" = ${#running[@]} ] || fail "the image is not in the cache"
echo "  it runs; the cache has the ${#running[@]} blobs of its image, $(size "$(used)")"

step "3. Pull eight other images of 10 MB, one after the other: far past the quota."
for n in 1 2 3 4 5 6 7 8; do
  image "other-$n" 10 empty
  ctr i pull --hosts-dir "$dir/certs.d" "$host/demo/other-$n:1" >/dev/null
  ctr i rm --sync "$host/demo/other-$n:1" >/dev/null
  echo "  pulled other-$n; the cache holds $(size "$(used)"), BusyBox $(held "${running[@]}") of ${#running[@]} blobs"
  [ "$(used)" -le 50000000 ] || fail "the cache is over its quota"
  [ "$(held "${running[@]}")" = ${#running[@]} ] || fail "data of a running container was evicted"
done

step "4. What stayed, what went?"
show "fairway cache ls      (its layers; there are manifests and configs besides)"
"$fairway" cache ls | awk -F '\t' '$2 > 1000000 { printf "  %s  %10d  %-6s  %s  %s\n", substr($1, 1, 19), $2, $3, $6, $7 }'
went=0
for n in $(seq 8); do
  mapfile -t other < <(blobs "other-$n")
  if gone "${other[2]}"; then went=$((went + 1)); fi
done
# Eight of 10 MB and BusyBox are 89 MB, and the quota is 50.
[ "$went" -ge 4 ] || fail "only $went of the eight others went"
echo "  $went of the eight others, which nobody uses any more, went instead"
show "fairway cache explain ${running[2]:0:19}..."
"$fairway" cache explain "${running[2]}" | sed 's/^/  /'

step "5. Delete the running image at the registry, and collect without window and trash."
skopeo --insecure-policy delete --tls-verify=false "docker://$host/demo/busybox:1"
show "fairway gc run --window 0 --trash 0"
"$fairway" gc run --window 0 --trash 0 --json | jq -r '"  examined \(.examined), collected \(.collected), freed \(.freed_bytes) bytes"'
show "fairway explain ${running[2]:0:19}..."
"$fairway" explain "${running[2]}" | sed 's/^/  /; s/\(sha256:[0-9a-f]\{12\}\)[0-9a-f]*/\1/g'
"$fairway" explain "${running[2]}" | grep -q "running on node demo" || fail "the registry does not know that it runs"

step "6. The container stops. Only now its data may go, here and at the registry."
ctr t rm -f busybox >/dev/null 2>&1
ctr c rm busybox
ctr i rm --sync "$host/demo/busybox:1" >/dev/null
show "fairway cache limits --quota 1MB"
"$fairway" cache limits --quota 1MB >/dev/null
await "BusyBox leaves the cache" gone "${running[@]:2}"
echo "  it has left the cache, which holds $(size "$(used)")"
collected() { [ "$("$fairway" gc run --window 0 --trash 0 --json | jq .freed_bytes)" -ge 8000000 ]; }
await "the registry collects it" collected
echo "  and the registry has freed its bytes"
