#!/usr/bin/env bash
# The story of the swarm: four agents pull one image at once, each with a link of
# 10 MB/s, and one copy leaves the registry. Everything binds loopback, lives in a
# temporary directory and ends with the script. usage: demo-swarm.sh [FAIRWAY]
set -euo pipefail
fairway=$(realpath "${1:-bin/fairway}")
dir=$(mktemp -dt fairway-demo.XXXXXX) # the X are mktemp's
pids=()

finish() {
  status=$?
  set +e
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null && wait "$p" 2>/dev/null; done
  if [ $status -ne 0 ]; then
    echo
    echo "The demo failed. The end of the logs:"
    tail -n 5 "$dir"/*.log
  fi
  rm -rf "$dir"
  exit $status
}
trap finish EXIT

step() { printf '\n%s\n' "$*"; }
show() { printf '  $ %s\n' "$*"; }
fail() { echo "  WRONG: $*"; exit 1; }
port=$(( 20000 + RANDOM % 12000 )) # below those that connections are given
address() {
  port=$((port + 1))
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
}
await() {
  local what=$1
  shift
  for _ in $(seq 400); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.05
  done
  fail "waited in vain: $what"
}
# metric URL NAME LABELS is the value of a metric, 0 if there is none.
metric() { curl -s "$1/metrics" | awk -v k="$2$3" '$1 == k { v = $2 } END { printf "%.0f\n", v }'; }
sha() { echo "sha256:$(sha256sum "$1" | cut -d' ' -f1)"; }
mb() { awk -v n="$1" 'BEGIN { printf "%6.1f", n / 1e6 }'; }

step "1. Start a registry, and push an image with a layer of 40 MB."
address; host=127.0.0.1:$port url=http://127.0.0.1:$port
"$fairway" serve --data "$dir/registry" --listen "$host" >"$dir/registry.log" 2>&1 &
pids+=($!)
await "the registry is ready" curl -sf "$url/readyz"
head -c 40000000 /dev/urandom >"$dir/layer"
echo '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["'"$(sha "$dir/layer")"'"]}}' >"$dir/config"
push() {
  local location
  location=$(curl -sf -X POST -D - -o /dev/null "$url/v2/demo/app/blobs/uploads/" | tr -d '\r' | awk 'tolower($1) == "location:" { print $2 }')
  case $location in *\?*) location+="&" ;; *) location+="?" ;; esac
  curl -sf -o /dev/null -T "$1" "$url${location#"$url"}digest=$(sha "$1")"
}
push "$dir/layer"
push "$dir/config"
cat >"$dir/manifest" <<EOF
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
 "config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"$(sha "$dir/config")","size":$(stat -c %s "$dir/config")},
 "layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"$(sha "$dir/layer")","size":40000000}]}
EOF
curl -sf -o /dev/null -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary "@$dir/manifest" "$url/v2/demo/app/manifests/1"
echo "  pushed demo/app:1, $(sha "$dir/layer" | cut -c1-19)..."

step "2. Start four agents that know a secret, each with a link of 10 MB/s."
head -c 32 /dev/urandom | base64 >"$dir/secret"
chmod 600 "$dir/secret"
first='' nodes=()
for i in 1 2 3 4; do
  address; mirror=127.0.0.1:$port
  address; gossip=127.0.0.1:$port
  address
  "$fairway" node --registry "$url" --name "node-$i" --data "$dir/node-$i" --listen "$mirror" --runtime none --floor 0 \
    --swarm-secret "$dir/secret" --swarm-listen "127.0.0.1:$port" --swarm-gossip "$gossip" ${first:+--swarm-join "$first"} \
    --swarm-upload 10MB --swarm-download 10MB >"$dir/node-$i.log" 2>&1 &
  pids+=($!)
  [ -n "$first" ] && first+=",$gossip" || first=$gossip
  nodes+=("http://$mirror")
  await "node-$i is ready" curl -sf "http://$mirror/healthz"
done
show "fairway node --registry $url --swarm-secret FILE --swarm-join HOST:PORT --swarm-upload 10MB --swarm-download 10MB ..."
together() { for n in "${nodes[@]}"; do [ "$(metric "$n" fairway_node_swarm_members '')" = 4 ] || return 1; done; }
await "the four find each other" together
echo "  four members, encrypted with the secret"

step "3. All four pull the image at once."
pull() {
  local got
  curl -sf "$1/v2/demo/app/manifests/1?ns=$host" -H 'Accept: application/vnd.oci.image.manifest.v1+json' | cmp -s - "$dir/manifest" || return 1
  for blob in config layer; do
    got=$(curl -sf "$1/v2/demo/app/blobs/$(sha "$dir/$blob")?ns=$host" | sha256sum | cut -d' ' -f1)
    [ "sha256:$got" = "$(sha "$dir/$blob")" ] || return 1
  done
}
began=$(date +%s%N)
waits=()
for n in "${nodes[@]}"; do
  pull "$n" &
  waits+=($!)
done
for w in "${waits[@]}"; do wait "$w" || fail "a pull did not give the right bytes"; done
ms=$(( ($(date +%s%N) - began) / 1000000 ))
echo "  $ms ms until the last had it, every digest checked; a link of 10 MB/s takes 4000 ms for one copy,"
echo "  and a registry with such a link would take 16000 ms for four"

step "4. Where did each byte come from?"
printf '  %-8s %12s %12s %12s\n' MB 'registry' 'other nodes' 'sent'
sumOrigin=0 sumPeer=0
for i in 1 2 3 4; do
  n=${nodes[$((i - 1))]}
  origin=$(metric "$n" fairway_node_swarm_received_bytes_total '{source="origin",use="content"}')
  peer=$(metric "$n" fairway_node_swarm_received_bytes_total '{source="peer",use="content"}')
  printf '  %-8s %12s %12s %12s\n' "node-$i" "$(mb "$origin")" "$(mb "$peer")" "$(mb "$(metric "$n" fairway_node_swarm_sent_bytes_total '')")"
  [ $((origin + peer)) -eq 40000000 ] || fail "node-$i accounts for $((origin + peer)) bytes of 40000000"
  sumOrigin=$((sumOrigin + origin)) sumPeer=$((sumPeer + peer))
done
printf '  %-8s %12s %12s\n' all "$(mb $sumOrigin)" "$(mb $sumPeer)"
[ $sumOrigin -le 44000000 ] || fail "more than one copy left the registry"
awk -v o=$sumOrigin 'BEGIN { printf "  %.2f copies left the registry for four nodes\n", o / 40e6 }'
