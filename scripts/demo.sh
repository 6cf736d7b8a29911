#!/usr/bin/env bash
# Push, delete, collect, restore: the story of Fairway on a real image, with the
# collector and other pushes running at the same time. Everything binds loopback
# and lives in a temporary directory. usage: demo.sh [FAIRWAY]
set -euo pipefail
fairway=$(realpath "${1:-bin/fairway}")
dir=$(mktemp -dt fairway-demo.XXXXXX) # the X are mktemp's
server='' pusher=''

finish() {
  status=$?
  set +e
  [ -n "$pusher" ] && kill "$pusher" 2>/dev/null && wait "$pusher" 2>/dev/null
  [ -n "$server" ] && kill "$server" 2>/dev/null && wait "$server" 2>/dev/null
  if [ $status -ne 0 ]; then
    echo
    echo "The demo failed. The end of the server's log:"
    tail -n 20 "$dir/server.log"
  fi
  rm -rf "$dir"
  exit $status
}
trap finish EXIT

step() { printf '\n%s\n' "$*"; }
show() { printf '  $ %s\n' "$*"; }
fail() { echo "  WRONG: $*"; exit 1; }
size() { numfmt --to=iec-i --suffix=B "$1"; }
onDisk() { find "$dir/data/blobs" -type f -printf '%s\n' 2>/dev/null | awk '{ n += $1 } END { print n + 0 }'; }
copy() { skopeo --insecure-policy copy -q --preserve-digests --dest-tls-verify=false "oci:$dir/$1" "docker://$host/$2"; }
statusOf() { curl -s -o /dev/null -w '%{http_code}' -I "$url/v2/$1"; }

# verify REPO TAG pulls an image and checks the digest of every byte of it.
verify() {
  rm -rf "$dir/pulled"
  skopeo --insecure-policy copy -q --preserve-digests --src-tls-verify=false "docker://$host/$1:$2" "oci:$dir/pulled:1"
  local blob n=0
  for blob in "$dir"/pulled/blobs/sha256/*; do
    [ "$(sha256sum <"$blob" | cut -d' ' -f1)" = "$(basename "$blob")" ] || fail "$blob does not have its digest"
    n=$((n + 1))
  done
  [ "$(jq -r '.manifests[0].digest' "$dir/pulled/index.json")" = "$digest" ] || fail "$1:$2 is not what was pushed"
  echo "  pulled $1:$2 and verified: $n of $n digests match"
}

step "1. Start a registry on an empty directory, with no configuration."
port=$(( 20000 + RANDOM % 12000 )) # below those that connections are given
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
host=127.0.0.1:$port url=http://127.0.0.1:$port
export FAIRWAY_SERVER=$url
show "fairway serve --data $dir/data --listen $host"
"$fairway" serve --data "$dir/data" --listen "$host" >"$dir/server.log" 2>&1 &
server=$!
for _ in $(seq 100); do
  curl -sfo /dev/null "$url/readyz" && break
  kill -0 "$server" 2>/dev/null || fail "the server ended"
  sleep 0.05
done
curl -sfo /dev/null "$url/readyz" || fail "the server is not ready"
echo "  ready at $host"

step "2. Build an image out of Debian's busybox-static and push it."
"$(dirname "$0")/rootfs.sh" "$dir/rootfs"
umoci init --layout "$dir/image"
umoci new --image "$dir/image:1"
umoci insert --rootless --image "$dir/image:1" "$dir/rootfs" /
umoci config --image "$dir/image:1" --config.cmd /bin/sh --os linux
umoci gc --layout "$dir/image"
copy image:1 demo/busybox:1
digest=$(jq -r '.manifests[0].digest' "$dir/image/index.json")
show "skopeo copy oci:image docker://$host/demo/busybox:1"
echo "  pushed $digest; $(size "$(onDisk)") on disk"

step "3. Keep pushing other images in the background, from now to the end."
mkdir -p "$dir/other"
: >"$dir/pushed"
(
  n=0
  while :; do
    n=$((n + 1))
    cp -r "$dir/image" "$dir/next"
    head -c 65536 /dev/urandom >"$dir/other/noise"
    umoci insert --rootless --image "$dir/next:1" "$dir/other" /other >/dev/null
    if copy next:1 "others/image-$n:1" 2>>"$dir/refused.log"; then echo "$n" >>"$dir/pushed"; else echo "$n" >>"$dir/refused"; fi
    rm -rf "$dir/next"
  done
) &
pusher=$!
pushes() { wc -l <"$dir/pushed"; }
more() { local want=$(( $(pushes) + $1 )); for _ in $(seq 400); do [ "$(pushes)" -ge $want ] && return; sleep 0.05; done; fail "the pushes do not go on"; }
more 1
echo "  $(pushes) pushed so far"

step "4. Delete the image and collect. It goes to the trash first, so nothing is lost."
show "skopeo delete docker://$host/demo/busybox:1"
skopeo --insecure-policy delete --tls-verify=false "docker://$host/demo/busybox:1"
[ "$(statusOf "demo/busybox/manifests/$digest")" = 404 ] || fail "it is still served"
echo "  (what a client was told is here stays for a window: 2h by default, 3s in this demo)"
sleep 3
show "fairway gc run --window 3s"
"$fairway" gc run --window 3s --json >"$dir/run1.json" || fail "the collection failed"
jq -r '"  examined \(.examined), collected \(.collected), failed \(.failed), freed \(.freed_bytes) bytes"' "$dir/run1.json"
show "fairway trash ls"
"$fairway" trash ls | sed 's/^/  /'
"$fairway" trash ls --json | grep -q "$digest" || fail "it is not in the trash"

step "5. It was a mistake. Restore it, with its tag, and pull it again."
show "fairway trash restore demo/busybox@${digest:0:19}..."
"$fairway" trash restore "demo/busybox@$digest" | sed 's/^/  /'
verify demo/busybox 1
echo "  restored"

step "6. What keeps it now? Ask."
show "fairway explain demo/busybox:1"
"$fairway" explain demo/busybox:1 | sed 's/^/  /'

step "7. Push something big, delete it for good, and see the bytes go."
cp -r "$dir/image" "$dir/big"
mkdir -p "$dir/heavy"
head -c 20000000 /dev/urandom >"$dir/heavy/noise"
umoci insert --rootless --image "$dir/big:1" "$dir/heavy" /big
copy big:1 demo/big:1
skopeo --insecure-policy delete --tls-verify=false "docker://$host/demo/big:1"
sleep 3
show "fairway gc run --window 3s --trash 0 --dry-run"
"$fairway" gc run --dry-run --window 3s --trash 0 --json | jq -r '"  it would collect \(.collected) items and keep \([.kept[]] | add // 0)"'
show "fairway gc run --window 3s --trash 0"
"$fairway" gc run --window 3s --trash 0 --json >"$dir/run2.json" || fail "the collection failed"
jq -r '"  examined \(.examined), collected \(.collected), failed \(.failed), freed \(.freed_bytes) bytes"' "$dir/run2.json"
[ "$(jq .freed_bytes "$dir/run2.json")" -ge 20000000 ] || fail "20 MB were to be freed"
[ "$(jq .failed "$dir/run1.json")$(jq .failed "$dir/run2.json")" = 00 ] || fail "something could not be collected"
echo "  freed $(size "$(jq .freed_bytes "$dir/run2.json")"); $(size "$(onDisk)") on disk"

step "8. Meanwhile the others went on."
more 1
[ ! -e "$dir/refused" ] || { cat "$dir/refused.log"; fail "$(wc -l <"$dir/refused") pushes were refused"; }
verify demo/busybox 1
echo "  $(pushes) images pushed while this ran, none refused"
