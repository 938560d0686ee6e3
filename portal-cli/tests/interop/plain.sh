# Bash functions for interoperation with WireGuard that is not ours: a plain peer stands in for an agent, set up by the
# very file that `portal wg-conf` prints, and visitors on another network reach services on its overlay address.
#
# Sourced after common/netns.sh by a script that sets besides: implementation (its first column in the table), interface
# (that of the peer), and defines: peer_up and peer_down (the tunnel and the services behind it), in_peer (runs a command
# line as root on the peer), peer_scripts (where the peer finds this folder), place and place_device (the name of a second
# WireGuard device of the peer's, which answers at port $place_port of its network's loopback, and what makes it), case_up, case_peer_restarted, all_cases, and a direction for its own cases.
#   PORTAL_INTEROP_TABLE=FILE  gets the table's rows as well
table=${PORTAL_INTEROP_TABLE:-}
interop=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
visitor_address=198.51.100.7
transfers=(1 1024 1048576 67108864)
by_name=("${transfers[@]}")
# Who opens the connections that a case is about.
declare -A direction=([before]=in [name]=in [port]=in [proxy]=in [udp]=in [relay-killed]=in [moved]=in
    [peer-restarted]=in [shut]=in [inside]=out [agent]=agent)

# ---------------------------------------------------------------------------------------------------------------------
# The commands under test

portal_relay() {
    spawn relay relay "${unprivileged[@]}" "$portal" relay --config "$tmp/relay.toml" --domain tunnel.test \
        --udp 0.0.0.0:51820 --http 0.0.0.0:80 --https off --ports 20000-20099 --key "$tmp/relay.key" \
        --state-dir "$tmp/state" --admin 127.0.0.1:9090
}
portal_wg_conf() { timeout 10 "$portal" wg-conf "$@"; }

# Both halves for the private key in wg.key, with a lease of each sort.
relay_side() {
    local key
    key=$(wg pubkey <"$tmp/wg.key")
    portal_wg_conf "$key" --relay-side --preshared-key "$tmp/wg.psk" --name web --target-port 8080
    portal_wg_conf "$key" --relay-side --preshared-key "$tmp/wg.psk" --name shut --target-port 9999
    portal_wg_conf "$key" --relay-side --kind tcp --port 20010 --target-port 9000
    portal_wg_conf "$key" --relay-side --kind tcp --port 20011 --target-port 8081 --proxy-header
    portal_wg_conf "$key" --relay-side --kind udp --port 20012 --target-port 5353
}
peer_side() {
    (umask 077 && portal_wg_conf --key "$tmp/wg.key" --relay "$(relay_uri)" --preshared-key "$tmp/wg.psk" --name web \
        --target-port 8080 >"$tmp/$interface.conf")
}
setting() { sed -n "s/^$1 = //p" "$tmp/$interface.conf"; } # NAME
overlay() { setting Address | sed 's,/128,,'; }
relay_overlay() { setting AllowedIPs | sed 's,/128,,'; }

# ---------------------------------------------------------------------------------------------------------------------
# Cases

visit() { in_ns visitor timeout 150 curl --noproxy '*' -sS -f --max-time 140 "$@"; }
status_of() { visit --no-fail -o /dev/null -w '%{http_code}' "$@"; }
talk() { # CASE [OPTION...]
    local case=$1
    shift
    in_ns visitor timeout 600 "$python" "$interop/../e2e/visitor.py" "$case" tunnel.test 20010 "$@"
}
served() { visit --max-time 2 -o /dev/null http://web.tunnel.test/1 2>/dev/null; }
says() { grep -qF "$1" "$proc/relay.log"; } # TEXT, ever
counter() { # NAME, of the relay
    in_ns relay timeout 5 curl --noproxy '*' -sS -f http://127.0.0.1:9090/metrics |
        awk -v name="portal_relay_$1" '$1 == name || $1 == name "_total" {print $2}'
}
# What the service sends for /N, from the same generator.
expected() { "$python" -c 'import sys; sys.path.insert(0, sys.argv[1]); from service import blocks
for block in blocks(int(sys.argv[2]), int(sys.argv[2])): sys.stdout.buffer.write(block)' "$interop/../e2e" "$1"; }

case_start() { # wg's own keys, the relay's half and the peer's half
    (umask 077 && wg genkey >"$tmp/wg.key" && wg genpsk >"$tmp/wg.psk")
    relay_side >"$tmp/relay.toml"
    portal_relay
    wait_for 10 relay_uri >/dev/null || fail "the relay prints no URI in 10 s"
    peer_side
    wg-quick strip "$tmp/$interface.conf" >"$tmp/stripped" || fail "wg-quick cannot read the file"
    figure "$(wg pubkey <"$tmp/wg.key")"
}

case_before() { # a visitor who comes before the peer waits 10 s and is told
    local start status
    start=$(now)
    status=$(status_of http://web.tunnel.test/1)
    [[ $status == 502 ]] || fail "status $status"
    figure "502 after $(since "$start") s"
}

case_name() { # by Host header, both ways
    local size got
    for size in "${by_name[@]}"; do transfer_by_name "$size"; done
    got=$(status_of http://nope.tunnel.test/)
    [[ $got == 404 ]] || fail "an unknown host gets $got"
    figure "${by_name[*]} bytes down and up"
}
transfer_by_name() { # SIZE
    local got
    expected "$1" >"$tmp/blob"
    visit -o "$tmp/got" "http://web.tunnel.test/$1"
    cmp -s "$tmp/got" "$tmp/blob" || fail "$1 bytes down differ"
    got=$(visit -T "$tmp/blob" "http://web.tunnel.test/up")
    [[ $got == "$(sha256sum "$tmp/blob" | cut -d ' ' -f 1)" ]] || fail "$1 bytes up: $got"
}

case_port() { # by port, both ways
    local size down up
    for size in "${transfers[@]}"; do
        down=$(talk down --size "$size")
        up=$(talk up --size "$size")
    done
    talk half-close >/dev/null
    talk reset >/dev/null
    figure "${transfers[*]} bytes: down $down, up $up; FIN and RST kept; relay's peak memory $(peak_memory relay)"
}

case_shut() { # where no service listens the peer's RST ends the visit at once
    local start status
    start=$(now)
    status=$(status_of http://shut.tunnel.test/)
    [[ $status == 502 ]] || fail "status $status"
    (($(now) - start < 3000000)) || fail "only after $(since "$start") s"
    figure "502 after $(since "$start") s"
}

case_proxy() { # the PROXY header names the visitor
    local said
    said=$(visit http://tunnel.test:20011/)
    [[ $said == "$visitor_address 203.0.113.1:20011" ]] || fail "the service saw: $said"
    figure "$said"
}

case_udp() { # datagrams of several sizes from several ports
    in_ns visitor timeout 60 "$python" - <<'CODE' >"$tmp/figure"
import os, socket
target = (socket.gethostbyname("tunnel.test"), 20012)
count = 0
for size in (0, 1, 15, 16, 17, 512, 1200, 1232):
    for _ in range(5):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.connect(target)
            for _ in range(5):
                payload = os.urandom(size)
                sock.send(payload)
                got = sock.recv(4096)
                assert got == payload, f"{size} bytes sent, {len(got)} came back"
                count += 1
print(f"{count} datagrams of 0 to 1232 bytes")
CODE
}

case_inside() { # what the peer opens by itself leads nowhere, and is counted
    local closed junk foreign plain said
    closed=$(counter refused_closed_port)
    junk=$(counter drop_inner_packet)
    foreign=$(counter drop_inner_source)
    plain=$(counter refused_plain_key)
    in_peer "ip -6 addr add fd00::bad/128 dev $interface"
    said=$(in_peer "python3 $peer_scripts/knock.py $(relay_overlay) $(overlay) fd00::bad" 2>&1) || fail "$said"
    in_peer "ip -6 addr del fd00::bad/128 dev $interface"
    (($(counter refused_closed_port) == closed + 6)) || fail "refusals: $closed before, $(counter refused_closed_port) after"
    (($(counter drop_inner_packet) >= junk + 5)) || fail "junk: $junk before, $(counter drop_inner_packet) after"
    (($(counter drop_inner_source) > foreign)) || fail "another's address: $foreign before, $(counter drop_inner_source) after"
    (($(counter refused_plain_key) == plain + 1)) || fail "hellos: $plain before, $(counter refused_plain_key) after"
    served || fail "not served afterwards"
    figure "$said"
}

case_relay_killed() { # the relay calls the peer, which would need minutes by itself
    local start
    served || fail "not served before"
    stop relay KILL
    start=$(now)
    portal_relay
    wait_for 20 served || fail "not served 20 s after the relay's restart"
    figure "served after $(since "$start") s"
}

case_peer_restarted() {
    local start up
    peer_down
    start=$(now)
    peer_up
    up=$(since "$start")
    wait_for 20 served || fail "not served 20 s after the peer's restart"
    figure "it is up again after $up s and served after $(since "$start") s"
}

case_agent() { # in a relay's place: an agent of ours calls, and it connects to the service that the agent offers
    local uri agent relay said
    (umask 077 && wg genkey >"$tmp/place.key" && timeout 10 "$portal" key new "$tmp/agent.key" >/dev/null)
    uri=portal://$(wg pubkey <"$tmp/place.key" | tr -d = | tr +/ -_)@127.0.0.1:$place_port
    (umask 077 && portal_wg_conf --key "$tmp/agent.key" --relay "$uri" --name web --target-port 80 >"$tmp/place.conf")
    agent=$(sed -n 's,^Address = \(.*\)/128$,\1,p' "$tmp/place.conf")
    relay=$(sed -n 's,^AllowedIPs = \(.*\)/128$,\1,p' "$tmp/place.conf")
    place_device
    in_peer "wg set $place private-key <(echo $(<"$tmp/place.key")) listen-port $place_port \
        peer $(timeout 10 "$portal" key show "$tmp/agent.key") allowed-ips $agent/128 &&
        ip addr add $relay/128 dev $place nodad && ip link set mtu 1280 up dev $place &&
        ip -6 route add $agent/128 dev $place"
    spawn echo peer "$python" "$interop/echo.py" 9001
    wait_for 10 grep -q listening "$proc/echo.out" || fail "the service does not start"
    in_peer "setsid python3 $peer_scripts/in_relays_place.py $relay $agent ${transfers[*]} >/tmp/$place.said 2>&1 </dev/null &"
    spawn agent peer "$portal" expose tcp://127.0.0.1:9001 --relay "$uri" --key "$tmp/agent.key"
    wait_for 60 in_peer "grep -q -e ^all -e ^failed /tmp/$place.said" || fail "nothing comes back: $(in_peer "cat /tmp/$place.said")"
    said=$(in_peer "tail -n 1 /tmp/$place.said; rm /tmp/$place.said")
    stop agent TERM
    stop echo KILL
    in_peer "ip link del $place"
    [[ $said == all* ]] || fail "$said"
    figure "${transfers[*]} bytes there and back, ${said#all in }"
}
place_port=51900

case_sigterm() {
    stop relay TERM
    [[ $(<"$proc/relay.rc") == 0 ]] || fail "the relay ends with $(<"$proc/relay.rc")"
}

# ---------------------------------------------------------------------------------------------------------------------
# The run
#
#   peer 192.0.2.2 --- net --- 203.0.113.1 relay
#                       |
#                  198.51.100.7 visitor

plain_topology() {
    make_namespaces
    link relay eth0 203.0.113.1/24 net to-relay 203.0.113.254/24
    link visitor eth0 "$visitor_address/24" net to-visitor 198.51.100.254/24
    link peer eth0 192.0.2.2/24 net to-peer 192.0.2.254/24
    ip -n "$id-relay" route add default via 203.0.113.254
    ip -n "$id-visitor" route add default via 198.51.100.254
    ip -n "$id-peer" route add default via 192.0.2.254
    in_ns net sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
    in_ns relay sh -c 'echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start'
}

run_and_tell() { # the cases, and then a row of the table for each
    local name result
    run_cases
    while IFS='|' read -r name result; do
        printf '%-14s  %-15s  %-15s  %s\n' "$implementation" "${way[${direction[$name]:-none}]}" "$name" "$result"
    done <"$tmp/results" >"$tmp/table"
    echo
    table_head | cat - "$tmp/table"
    [[ -z $table ]] || {
        [[ -s $table ]] || table_head >>"$table"
        cat "$tmp/table" >>"$table"
    }
    ((failed == 0))
}
declare -A way=([in]="relay to peer" [out]="peer to relay" [agent]="peer to agent" [both]="both" [none]="-")
table_head() { printf '%-14s  %-15s  %-15s  %s\n' implementation direction case result; }
