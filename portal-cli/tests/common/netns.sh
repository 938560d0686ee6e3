# Bash functions for tests of the portal binary in network namespaces; sourced, not run.
#
# The script that sources this sets: id (a prefix of its own for namespaces), here (its directory), namespaces, names
# (hosts that every namespace knows as the relay, each with its dot), all_cases. It defines: portal_relay (which starts
# the relay as process "relay"), topology, case_start and a case_NAME for each case. Then, in this order: need_packages,
# choose, set_up, what it has to prepare, run_all.
#   PORTAL_E2E_INSTALL=1  installs missing Debian packages
#   PORTAL_E2E_KEEP=1     keeps the directory with keys and logs
export LC_ALL=C

# ---------------------------------------------------------------------------------------------------------------------
# Processes. Their ids, output and exit codes are files, so that a case (a subshell) and the trap reach them alike.

spawn() { # NAME NAMESPACE COMMAND...
    local name=$1 ns=$2
    shift 2
    rm -f "$proc/$name.pid" "$proc/$name.rc"
    echo "--- $*" >>"$proc/$name.log"
    {
        ip netns exec "$id-$ns" "$@" >"$proc/$name.out" 2>>"$proc/$name.log" </dev/null &
        echo $! >"$proc/$name.pid"
        code=0
        wait $! || code=$?
        echo "$code" >"$proc/$name.rc"
    } >/dev/null 2>&1 </dev/null &
    wait_for 5 test -s "$proc/$name.pid"
}
running() { [[ -s $proc/$1.pid && ! -e $proc/$1.rc ]]; }
stop() { # NAME SIGNAL
    kill -s "$2" "$(<"$proc/$1.pid")"
    wait_for 10 test -s "$proc/$1.rc" || fail "$1 still runs 10 s after SIG$2"
}
# By the microsecond, not $SECONDS: a deadline of one second must not be over at once.
now() { echo "${EPOCHREALTIME/[.,]/}"; }
since() { # MICROSECONDS
    local tenths=$((($(now) - $1) / 100000))
    echo "$((tenths / 10)).$((tenths % 10))"
}
wait_for() { # SECONDS COMMAND...
    local end=$(($(now) + $1 * 1000000))
    shift
    until "$@"; do
        (($(now) < end)) || return 1
        sleep 0.1
    done
}
in_ns() { # NAMESPACE COMMAND...
    local ns=$1
    shift
    ip netns exec "$id-$ns" "$@"
}
fail() {
    [[ -s $tmp/why ]] || echo "$*" >"$tmp/why"
    exit 1
}
# A step has failed that its case does not speak for: what the step said last, and where in the case it stands.
unexpected() {
    local n line=0
    for n in "${!FUNCNAME[@]}"; do
        if [[ ${FUNCNAME[n]} == case_* ]]; then line=$(sed -n "${line}s/^ *//p" "${BASH_SOURCE[n]}"); break; fi
        line=${BASH_LINENO[n]}
    done
    echo "$(grep -v '^$' "$tmp/case.err" | tail -n 1) (in: $line)" >"$tmp/why"
}
figure() { echo "$*" >"$tmp/figure"; }
relay_uri() { grep -Eom1 'portal://\S+' "$proc/relay.out"; }
peak_memory() { awk '/^VmHWM/ {printf "%d MiB", $2 / 1024}' "/proc/$(<"$proc/$1.pid")/status"; }

# ---------------------------------------------------------------------------------------------------------------------
# Cases. Each runs in a subshell with errexit on; what it leaves in "figure" stands behind its name. How each went is a line
# of "results".

run_case() { # NAME
    local start said code=0
    # One crash is one failure, not the end of the run.
    [[ $1 == start ]] || running relay || { portal_relay && wait_for 10 relay_uri >/dev/null; } || true
    touch "$tmp/began"
    rm -f "$tmp/why" "$tmp/figure"
    start=$(now)
    # In the background, so that a signal to this script is acted on at once; and errexit holds inside.
    (
        set -eE
        trap '[[ -s $tmp/why ]] || unexpected' ERR
        "case_${1//-/_}"
        [[ $1 == sigterm ]] || running relay || fail "the relay has ended with $(<"$proc/relay.rc")"
    ) >"$tmp/case.out" 2>"$tmp/case.err" &
    case_pid=$!
    wait "$case_pid" || code=$?
    case_pid=""
    if ((code == 0)); then
        passed=$((passed + 1))
        said=$(cat "$tmp/figure" 2>/dev/null || true)
        echo "ok $1 ($(since "$start")s) $said"
        echo "$1|ok${said:+: ${said//$'\n'/ }}" >>"$tmp/results"
        return
    fi
    failed=$((failed + 1))
    said=$(cat "$tmp/why" 2>/dev/null || echo "ended with $code")
    echo "FAILED $1: $said"
    echo "$1|FAILED: ${said//$'\n'/ }" >>"$tmp/results"
    tails
}
tails() { # the logs that have grown since the case began, and the relay's
    local log
    for log in "$proc"/*.log; do
        if [[ $log -nt $tmp/began || $log == */relay.log ]]; then
            echo "  ${log##*/}:"
            tail -n 12 "$log" | cut -c 1-300 | sed 's/^/    /'
        fi
    done
}
# To be called as it is: in a condition, or on the left of ||, errexit would be off in the cases.
run_all() {
    run_cases
    ((failed == 0))
}
run_cases() { # those that were chosen, for as long as what all of them need went well
    passed=0 failed=0
    local name
    for name in start "${cases[@]}"; do
        run_case "$name"
        if [[ $name == @(start|up) ]] && ((failed)); then break; fi
    done
    echo "$passed passed, $failed failed ($(since "$began") s)"
}

# ---------------------------------------------------------------------------------------------------------------------
# Namespaces

make_namespaces() {
    local ns name
    for ns in "${namespaces[@]}"; do
        ip netns add "$id-$ns"
        mkdir -p "/etc/netns/$id-$ns"
        echo "127.0.0.1 localhost" >"/etc/netns/$id-$ns/hosts"
        # No resolver of the host's: a lookup that the hosts file does not answer must fail, not leave.
        echo "nameserver 127.0.0.1" >"/etc/netns/$id-$ns/resolv.conf"
        for name in "${names[@]}"; do
            echo "203.0.113.1 ${name}tunnel.test" >>"/etc/netns/$id-$ns/hosts"
        done
        ip -n "$id-$ns" link set lo up
    done
}
link() { # NS INTERFACE ADDRESS NS INTERFACE ADDRESS
    ip link add "$2" netns "$id-$1" type veth peer name "$5" netns "$id-$4"
    ip -n "$id-$1" addr add "$3" dev "$2"
    ip -n "$id-$4" addr add "$6" dev "$5"
    ip -n "$id-$1" link set "$2" up
    ip -n "$id-$4" link set "$5" up
}
bound() { in_ns "$1" ss -Hln --"$2" "sport = :$3" | grep -q .; } # NAMESPACE udp|tcp PORT

clean_up() {
    local file ns pids
    trap - EXIT
    set +e
    exec 2>/dev/null # bash would report every process killed here
    [[ -n $case_pid ]] && kill -s KILL "$case_pid" 2>/dev/null
    for file in "$proc"/*.pid; do
        [[ -s $file && ! -e ${file%.pid}.rc ]] && kill -s KILL "$(<"$file")" 2>/dev/null
    done
    for ns in "${namespaces[@]}"; do
        # What a case had in the foreground when the run was stopped; only our namespaces' processes are listed.
        pids=$(ip netns pids "$id-$ns" 2>/dev/null)
        # shellcheck disable=SC2086
        [[ -n $pids ]] && kill -s KILL $pids 2>/dev/null
        ip netns del "$id-$ns" 2>/dev/null
        rm -rf "/etc/netns/$id-$ns"
    done
    ((netns_is_ours)) && rmdir --ignore-fail-on-non-empty /etc/netns 2>/dev/null
    if [[ ${PORTAL_E2E_KEEP:-} == 1 ]]; then echo "kept: $tmp"; else rm -rf "$tmp"; fi
}

# ---------------------------------------------------------------------------------------------------------------------
# The run

# Root is for the namespaces; portal itself must do without a single capability.
unprivileged=(setpriv --no-new-privs --bounding-set=-all --inh-caps=-all)

skip() {
    echo "skipped: $*"
    exit 0
}
need_packages() { # lines of a command and its package on stdin
    local command package
    local -a packages=()
    ((EUID == 0)) || skip "not root"
    while read -r command package; do
        command -v "$command" >/dev/null || packages+=("$package")
    done
    ((${#packages[@]})) || return 0
    if [[ ${PORTAL_E2E_INSTALL:-} == 1 ]]; then
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}"; } >&2 ||
            skip "packages cannot be installed: ${packages[*]}"
    else
        skip "missing packages; apt-get install ${packages[*]}, or set PORTAL_E2E_INSTALL=1"
    fi
}
choose() { # [BINARY [CASE...]], the script's own arguments
    local name
    binary=${1:-$(realpath -m "$here/../../../target/release/portal")}
    shift "$(($# > 0))"
    cases=("$@")
    ((${#cases[@]})) || cases=("${all_cases[@]}")
    for name in "${cases[@]}"; do
        [[ " ${all_cases[*]} " == *" $name "* ]] || {
            echo "no case $name; there are: ${all_cases[*]}" >&2
            exit 2
        }
    done
    [[ -f $binary && -x $binary ]] || {
        echo "no binary $binary: build it with cargo build --release, or name it: ${0##*/} BINARY" >&2
        exit 2
    }
}
set_up() { # tmp, proc, python, portal, and the namespaces
    local name
    # The caller's settings for portal must not reach the portal under test.
    for name in "${!PORTAL_@}"; do [[ $name == PORTAL_E2E_* ]] || unset "$name"; done

    case_pid="" netns_is_ours=0
    [[ -d /etc/netns ]] || netns_is_ours=1
    tmp=$(mktemp -d "${TMPDIR:-/tmp}/$id.XXXXXX")
    proc=$tmp/proc
    mkdir "$proc"
    trap clean_up EXIT
    trap 'exit 130' INT TERM HUP

    # Not the name in PATH: a version manager's shim would cost every call a second process.
    python=$(python3 -c 'import sys; print(sys.executable)')
    export PYTHONDONTWRITEBYTECODE=1
    # A copy: without capabilities even root cannot pass a directory that is closed to others, and a build may replace
    # the original.
    portal=$tmp/portal
    install -m 755 "$binary" "$portal"

    # In the background for the same reason as a case: on the left of || errexit is off.
    topology >"$tmp/topology.log" 2>&1 &
    wait $! || skip "no such network namespaces here: $(head -n 1 "$tmp/topology.log")"
    began=$(now)
}
