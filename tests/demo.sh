#!/usr/bin/env bash
# Three nodes, an underlay switch and six pods, all network namespaces of their
# own: starts a router on each node and proves that every pod reaches every other.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

keep=0
prefix=vddemo
run=/run/viaduct-demo
pins=/sys/fs/bpf/viaduct-demo
viaduct=${VIADUCT_BIN:-target/release/viaduct}
nodes=(a b c)
declare -A number=([a]=1 [b]=2 [c]=3)
pids=()

inside() { # NAMESPACE COMMAND...: `ip netns exec` would hide the BPF filesystem
    local namespace=$1
    shift
    nsenter --net="/run/netns/$prefix-$namespace" -- "$@"
}

remove() {
    local pid namespace
    if [ -d "$run" ]; then
        for file in "$run"/*.pid; do
            [ -e "$file" ] || continue
            pid=$(cat "$file")
            # Only what this script started: the pid must still be a router of ours.
            grep -qza -- "$run" "/proc/$pid/cmdline" 2>/dev/null || continue
            kill -TERM "$pid" 2>/dev/null || true
            for _ in $(seq 50); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
            kill -KILL "$pid" 2>/dev/null || true
        done
    fi
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for namespace in $(ip netns list | cut -d' ' -f1 | grep "^$prefix-" || true); do
        ip netns delete "$namespace"
    done
    rm -rf "$run"
    if [ -d "$pins" ]; then
        find "$pins" -type f -delete
        find "$pins" -depth -type d -delete
    fi
}

fail() {
    echo "demo: FAILED: $*" >&2
    for log in "$run"/*.log; do
        [ -e "$log" ] && { echo "--- $log"; tail -n 15 "$log"; } >&2
    done
    exit 1
}

case "${1:-}" in
--keep) keep=1 ;;
--stop)
    remove
    echo "demo: removed"
    exit 0
    ;;
"") ;;
*)
    echo "usage: demo.sh [--keep|--stop]" >&2
    exit 2
    ;;
esac

if ip netns list | grep -q "^$prefix-"; then
    echo "demo: one is there already; ./dev demo --stop removes it" >&2
    exit 1
fi
finish() {
    local code=$?
    if [ "$keep" = 0 ] || [ $code != 0 ]; then remove; fi
    exit $code
}
trap finish EXIT
trap 'exit 130' INT TERM

settings() { # NAMESPACE KEY=VALUE...
    local namespace=$1
    shift
    inside "$namespace" sysctl -qw "$@"
}

make_node() { # LETTER
    local node=$1 n=${number[$1]}
    ip netns add "$prefix-$node"
    settings "$node" net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
    inside "$node" ip link set lo up
    ip link add "$prefix-u$n" netns "$prefix-switch" type veth peer name eth0 netns "$prefix-$node"
    inside switch ip link set "$prefix-u$n" master switch up
    inside "$node" ip address add "192.0.2.$n/24" dev eth0
    inside "$node" ip link set eth0 up
    make_pod "$node" web 2
    make_pod "$node" dns 3
}

make_pod() { # NODE NAME HOST-PART
    local node=$1 name=$2 host=$3 n=${number[$1]} pod=$1-$2
    ip netns add "$prefix-$pod"
    settings "$pod" net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
        net.ipv6.conf.default.accept_ra=0
    ip link add "veth-$name" mtu 1450 netns "$prefix-$node" type veth peer name eth0 mtu 1450 netns "$prefix-$pod"
    inside "$node" ip link set "veth-$name" up
    inside "$pod" ip link set lo up
    inside "$pod" ip address add "10.244.$n.$host/32" dev eth0
    inside "$pod" ip address add "fd00:10:244:$n::$host/128" dev eth0 nodad
    inside "$pod" ip link set eth0 up
    inside "$pod" ip route add 169.254.1.1 dev eth0 scope link
    inside "$pod" ip route add default via 169.254.1.1
    inside "$pod" ip -6 route add default via fe80::1 dev eth0
}

start_router() { # LETTER
    local node=$1 log=$run/$1.log
    # No function call here: the pid has to be the router's own.
    nsenter --net="/run/netns/$prefix-$node" -- "$viaduct" run --config "examples/three-nodes/node-$node.toml" \
        --directory "$run" --bpffs "$pins" >"$run/$node.out" 2>"$log" &
    echo $! >"$run/$node.pid"
    for _ in $(seq 100); do
        grep -q '^ready$' "$run/$node.out" && return
        [ -d "/proc/$(cat "$run/$node.pid")" ] || fail "the router of node $node did not start"
        sleep 0.1
    done
    fail "the router of node $node was not ready in 10 s"
}

knows_all() { # LETTER
    local count=0
    for _ in $(seq 100); do
        count=$("$viaduct" routes --json --directory "$run" --node "demo-$1" |
            jq '[.routes[] | select(.state == "resolved")] | length')
        [ "$count" = 4 ] && return
        sleep 0.1
    done
    fail "node $1 knows $count ways of 4 after 10 s"
}

carried() { # Packets that all hooks have carried and all workers have received, all nodes together
    local node hooks=0 workers=0 counts
    for node in "${nodes[@]}"; do
        read -ra counts < <("$viaduct" ports --json --directory "$run" --node "demo-$node" |
            jq -r '[[.ports[].hooks.rx_packets], [.ports[].rx_packets]] | map(add) | join(" ")')
        hooks=$((hooks + counts[0]))
        workers=$((workers + counts[1]))
    done
    echo "$hooks $workers"
}

since() { # The same since an earlier count
    local now
    read -ra now < <(carried)
    echo "$((now[0] - $1)) $((now[1] - $2))"
}

echo "demo: three nodes on a switch, two pods on each, in namespaces $prefix-*"
mkdir -p "$run"
(umask 077 && head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$run/gossip.key")
ip netns add "$prefix-switch"
inside switch ip link add switch type bridge
inside switch ip link set switch up
for node in "${nodes[@]}"; do make_node "$node"; done
echo "demo: starting a router on each node"
for node in "${nodes[@]}"; do start_router "$node"; done
echo "demo: waiting until they have learned of each other (each was told of one)"
for node in "${nodes[@]}"; do knows_all "$node"; done
echo
"$viaduct" peers --directory "$run" --node demo-a
echo

echo "demo: every pod pings every other (5 packets each way, IPv4 and IPv6)"
printf '\n%-8s %-8s %-6s %-10s %9s %10s\n' FROM TO FAMILY RESULT "BY HOOKS" "BY WORKERS"
bad=0
for from in "${nodes[@]}"; do
    for name in web dns; do
        for to in "${nodes[@]}"; do
            for other in 2 3; do
                [ "$from" = "$to" ] && { [ "$name" = web ] && [ $other = 2 ] || { [ "$name" = dns ] && [ $other = 3 ]; }; } && continue
                n=${number[$to]}
                for address in "10.244.$n.$other" "fd00:10:244:$n::$other"; do
                    read -ra before < <(carried)
                    result=ok
                    inside "$from-$name" ping -q -l 5 -c 5 -i 1 -W 1 "$address" >/dev/null || result=LOST
                    read -ra counts < <(since "${before[@]}")
                    # Each way is by one hook or worker on the same node, by two else.
                    least=10
                    [ "$from" = "$to" ] || least=20
                    [ $((counts[0] + counts[1])) -ge "$least" ] || result="$result, BY THE KERNEL"
                    [ "$result" = ok ] || bad=1
                    family=IPv4
                    [[ $address == *:* ]] && family=IPv6
                    target=web
                    [ $other = 3 ] && target=dns
                    printf '%-8s %-8s %-6s %-10s %9d %10d\n' "$from-$name" "$to-$target" "$family" "$result" "${counts[@]}"
                done
            done
        done
    done
done

echo
echo "demo: TCP from a-web to b-web for 3 seconds"
nsenter --net="/run/netns/$prefix-b-web" -- iperf3 -s -1 -B 10.244.2.2 >/dev/null 2>&1 &
pids+=($!)
sleep 0.5
read -ra before < <(carried)
rate=$(inside a-web timeout 20 iperf3 -J -t 3 -c 10.244.2.2 | jq '.end.sum_received.bits_per_second / 1e6 | floor') ||
    fail "no TCP from a-web to b-web"
read -ra counts < <(since "${before[@]}")
printf 'a-web -> b-web  %d Mbit/s, %d packets by hooks, %d by workers\n' "$rate" "${counts[@]}"

[ "$bad" = 0 ] || fail "not every pod reached every other through hooks and workers"
echo "demo: every pod reached every other through hooks and workers"
if [ "$keep" = 1 ]; then
    cat <<EOF

It goes on running. Look around:
  $viaduct status --directory $run --node demo-a      (also: ports, routes, drops, peers)
  nsenter --net=/run/netns/$prefix-a-web ping 10.244.2.2
  nsenter --net=/run/netns/$prefix-switch tcpdump -ni switch udp port 8472
  ./dev demo --stop
EOF
fi
