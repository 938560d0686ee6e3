# Cases of TLS that ends at the agent, and of what targets are told; sourced by run.

# The agents of these cases. Prints a word of the command a line.
https_service() { # NAME
    local -a certificate=(--cert "$tmp/agent.pem" --cert-key "$tmp/agent.key")
    case $1 in
        sealed) printf '%s\n' 8000 --kind https "${certificate[@]}" --name sealed ;;
        sealed2) printf '%s\n' 8081 --kind https --http2 "${certificate[@]}" --name sealed2 ;;
        told-http) printf '%s\n' 127.0.0.1:8080 --proxy --name told ;;
        told-https) printf '%s\n' 127.0.0.1:8080 --proxy --kind https "${certificate[@]}" --name told2 ;;
        told-tcp) printf '%s\n' tcp://127.0.0.1:8080 --proxy ;;
        told-tls) printf '%s\n' tls://127.0.0.1:8444 --proxy --name told3 ;;
        # An address that is not the machine's own to itself, or no proof would be asked for.
        proven) printf '%s\n' https://192.168.77.2:8445 --target-ca "$tmp/ca.pem" "${certificate[@]}" --name proven ;;
        proven-told) printf '%s\n' https://192.168.77.2:8444 --proxy --target-ca "$tmp/ca.pem" "${certificate[@]}" --name proven2 ;;
        unproven) printf '%s\n' https://192.168.77.2:8445 "${certificate[@]}" --name unproven ;;
        misnamed) printf '%s\n' https://127.0.0.1:8445 --target-ca "$tmp/ca.pem" "${certificate[@]}" --name misnamed ;;
        believed) printf '%s\n' https://192.168.77.2:8445 --target-insecure "${certificate[@]}" --name believed ;;
    esac
}
https_agents=(sealed sealed2 told-http told-https told-tcp told-tls proven proven-told unproven misnamed believed)
https_names=(sealed. sealed2. told. told2. told3. proven. proven2. unproven. misnamed. believed.)

https_certificates() {
    local ec=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2)
    openssl req -x509 "${ec[@]}" -subj /CN=agent -addext "subjectAltName=DNS:*.tunnel.test" \
        -keyout "$tmp/agent.key" -out "$tmp/agent.pem" 2>/dev/null
    openssl req -x509 "${ec[@]}" -subj "/CN=authority of the targets" -keyout "$tmp/ca.key" -out "$tmp/ca.pem" 2>/dev/null
    openssl req -x509 "${ec[@]}" -subj /CN=target -CA "$tmp/ca.pem" -CAkey "$tmp/ca.key" \
        -addext "subjectAltName=IP:192.168.77.2,DNS:told3.tunnel.test" -addext basicConstraints=critical,CA:FALSE \
        -keyout "$tmp/target.key" -out "$tmp/target.pem" 2>/dev/null
}

start_nginx() {
    ! running nginx || return 0
    cat >"$tmp/nginx.conf" <<CONF
pid $tmp/nginx.pid;
user root;
worker_processes 1;
daemon off;
error_log stderr;
events {}
http {
    log_format visitor '\$proxy_protocol_addr:\$proxy_protocol_port \$server_port \$status "\$request"';
    access_log $tmp/nginx.log visitor;
    client_body_temp_path $tmp/nginx.body;
    proxy_temp_path $tmp/nginx.proxy;
    ssl_certificate $tmp/target.pem;
    ssl_certificate_key $tmp/target.key;
    server {
        listen 127.0.0.1:8080 proxy_protocol;
        listen 127.0.0.1:8444 ssl proxy_protocol;
        listen 192.168.77.2:8444 ssl proxy_protocol;
        add_header X-Visitor "\$proxy_protocol_addr:\$proxy_protocol_port" always;
        add_header X-Visited "\$proxy_protocol_server_addr:\$proxy_protocol_server_port" always;
        return 200 "told\n";
    }
    server {
        listen 127.0.0.1:8445 ssl;
        listen 192.168.77.2:8445 ssl;
        return 200 "proven\n";
    }
    server { # HTTP/2 without TLS
        listen 127.0.0.1:8081 http2;
        location / { proxy_pass http://127.0.0.1:8000; }
    }
}
CONF
    spawn nginx agent nginx -e stderr -c "$tmp/nginx.conf"
    wait_for 10 bound agent tcp 8445 || fail "nginx does not start"
}

case_relay_cannot_read() { # nothing of what a visitor of an https service says or hears is on the relay's network
    start_nginx
    have web sealed sealed2
    local marker version agent said
    marker=marker-$(head -c 12 /dev/urandom | base64 | tr -d '/+=')
    yes "$marker" | head -c 4000000 >"$www/$marker" || true

    watch_relay
    said=$(speak_of "$marker" http://web.tunnel.test --http1.1)
    [[ $said == "200 1.1 200 1.1" ]] || fail "http: $said"
    watched
    # A check that cannot find it has found nothing.
    grep -aqF "$marker" "$tmp/in.pcap" || fail "the marker is not found in what the relay receives of plain HTTP"
    grep -aqF "$marker" "$tmp/out.pcap" || fail "the marker is not found in what the relay sends of plain HTTP"

    watch_relay
    said=$(speak_of "$marker" https://sealed.tunnel.test --http1.1 --cacert "$tmp/agent.pem")
    [[ $said == "200 1.1 200 1.1" ]] || fail "https with HTTP/1.1: $said"
    said=$(speak_of "$marker" https://sealed.tunnel.test --http1.1 --tls-max 1.2 --cacert "$tmp/agent.pem")
    [[ $said == "200 1.1 200 1.1" ]] || fail "https with HTTP/1.1 and TLS 1.2: $said"
    said=$(speak_of "$marker" https://sealed2.tunnel.test --http2 --cacert "$tmp/agent.pem")
    [[ $said == "200 2 200 2" ]] || fail "https with HTTP/2: $said"
    watched
    for agent in sealed sealed2; do
        grep -aqF "$agent.tunnel.test" "$tmp/in.pcap" || fail "the capture misses the server name $agent.tunnel.test"
    done
    for version in in out; do
        (($(stat -c %s "$tmp/$version.pcap") > 12000000)) || fail "the capture of what goes $version is too small"
        ! grep -aqF "$marker" "$tmp/$version.pcap" || fail "the marker is in what goes $version of the relay"
    done
    figure "HTTP/1.1 and HTTP/2, TLS 1.2 and 1.3: $(($(stat -c %s "$tmp/in.pcap") >> 20)) MiB in and" \
        "$(($(stat -c %s "$tmp/out.pcap") >> 20)) MiB out of the relay without the marker; with http it is in both"
}
# Says the marker in path, query, header and body, and hears it in what comes back.
speak_of() { # MARKER URL [OPTION...]
    local marker=$1 url=$2
    shift 2
    visit "$@" -H "X-Marker: $marker" -o "$tmp/got" -w '%{http_code} %{http_version} ' "$url/$marker?$marker"
    cmp "$tmp/got" "$www/$marker" >&2
    head -c 100000 "$www/$marker" >"$tmp/body"
    visit "$@" -H "X-Marker: $marker" -o "$tmp/got" -w '%{http_code} %{http_version}' --data-binary "@$tmp/body" \
        "$url/$marker?$marker"
    cmp "$tmp/got" "$tmp/body" >&2
}
watch_relay() {
    local way
    for way in in out; do
        spawn "tcpdump-$way" relay tcpdump -Z root -B 65536 -n -s 0 -i any -Q "$way" -w "$tmp/$way.pcap"
        wait_for 5 grep -q 'listening on' "$proc/tcpdump-$way.log" || fail "tcpdump does not start"
    done
}
watched() {
    local way
    sleep 0.5
    for way in in out; do
        stop "tcpdump-$way" TERM
        grep -q '^0 packets dropped by kernel' "$proc/tcpdump-$way.log" || fail "tcpdump has missed packets"
        rm "$proc/tcpdump-$way.log"
    done
}

case_https_manners() { # plain HTTP is sent to https, strangers' TLS is refused, and junk harms nobody
    start_nginx
    have sealed sealed2
    local said download junk
    said=$(visit -o /dev/null -w '%{http_code} %{redirect_url}' 'http://sealed.tunnel.test/a%20b?c=d')
    [[ $said == "308 https://sealed.tunnel.test/a%20b?c=d" ]] || fail "plain HTTP gets $said"
    said=$(visit --data x -o /dev/null -w '%{http_code}' http://sealed.tunnel.test/)
    [[ $said == 308 ]] || fail "a plain POST gets $said"
    said=$(visit -L --cacert "$tmp/agent.pem" -o "$tmp/got" -w '%{http_code}' http://sealed.tunnel.test/blob)
    [[ $said == 200 ]] && cmp -s "$tmp/got" "$www/blob" || fail "who follows gets $said"
    said=$(handshake -servername nope.tunnel.test)
    [[ $said == *"SSL alert number 112"* ]] || fail "no unrecognized_name alert for an unknown name, but $(alert_in "$said")"
    said=$(handshake -servername sealed.tunnel.test -alpn imap)
    [[ $said == *"SSL alert number 120"* ]] || fail "no no_application_protocol alert, but $(alert_in "$said")"
    visit -f --cacert "$tmp/agent.pem" --limit-rate 400k -o "$tmp/got" https://sealed2.tunnel.test/blob &
    download=$!
    junk=$(in_ns visitor timeout 60 "$python" "$here/junk.py" tunnel.test 443 sealed.tunnel.test sealed2.tunnel.test)
    wait "$download" && cmp -s "$tmp/got" "$www/blob" || fail "a download beside the junk did not come through"
    said=$(visit -f --cacert "$tmp/agent.pem" -o /dev/null -w '%{local_port}' https://sealed.tunnel.test/blob)
    wait_for 5 logged sealed "198.51.100.7:$said" || fail "the agent's log does not name the visitor 198.51.100.7:$said"
    running sealed && running sealed2 || fail "an agent has ended"
    figure "308, alerts 112 and 120, $junk"
}

case_told() { # nginx learns from PROXY v2 who the visitor is, and the agent's log says so as well
    start_nginx
    have told-http told-https told-tcp told-tls
    told told-http http://told.tunnel.test/ 203.0.113.1:80
    told told-https https://told2.tunnel.test/ 203.0.113.1:443 --cacert "$tmp/agent.pem"
    told told-tcp "http://tunnel.test:$(port_of told-tcp)/" "203.0.113.1:$(port_of told-tcp)"
    told told-tls https://told3.tunnel.test/ 203.0.113.1:443 --cacert "$tmp/ca.pem"
    have proven-told
    told proven-told https://proven2.tunnel.test/ 203.0.113.1:443 --cacert "$tmp/agent.pem"
    figure "http, https, tcp, tls, and https to a target with TLS of its own"
}
told() { # AGENT URL VISITED [OPTION...]
    local agent=$1 url=$2 visited=$3 status port visitor
    shift 3
    read -r status port < <(visit "$@" -D "$tmp/head" -o /dev/null -w '%{http_code} %{local_port}\n' "$url")
    [[ $status == 200 ]] || fail "$agent: status $status"
    visitor=198.51.100.7:$port
    grep -qix "x-visitor: $visitor"$'\r' "$tmp/head" || fail "$agent: not $visitor: $(grep -i x-visitor "$tmp/head")"
    grep -qix "x-visited: $visited"$'\r' "$tmp/head" || fail "$agent: not $visited: $(grep -i x-visited "$tmp/head")"
    grep -q "^$visitor [0-9]* 200 " "$tmp/nginx.log" || fail "$agent: $visitor is not in nginx's log"
    wait_for 5 logged "$agent" "$visitor" || fail "$agent: $visitor is not in the agent's log"
}
logged() { grep -Eq "^$2: [1-9][0-9]* bytes received, [1-9][0-9]* sent$" "$proc/$1.log"; } # AGENT VISITOR

case_target_tls() { # a target that speaks TLS must prove who it is, or be believed
    local name said
    start_nginx
    have proven believed misnamed
    # The machine's own roots, whatever they are on the machine of this run: others than the target's.
    SSL_CERT_FILE=$tmp/cert.pem SSL_CERT_DIR='' have unproven
    for name in proven believed; do
        said=$(visit --cacert "$tmp/agent.pem" -w '%{http_code}' "https://$name.tunnel.test/")
        [[ $said == $'proven\n200' ]] || fail "$name: $said"
    done
    for name in unproven misnamed; do
        said=$(visit --cacert "$tmp/agent.pem" -o /dev/null -w '%{http_code}' "https://$name.tunnel.test/")
        [[ $said == 502 ]] || fail "$name: status $said"
        wait_for 5 grep -q -- --target-ca "$proc/$name.log" || fail "$name: the agent does not name --target-ca"
    done
    figure "trusted 200, believed 200, unknown 502, another's certificate 502"
}
