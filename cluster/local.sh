#!/usr/bin/env bash
# A Ray head on this machine as ctrain wants it: token auth, HAProxy in front, dashboard on loopback.
#
#   cluster/local.sh start            start it, and print what to export
#   eval "$(cluster/local.sh env)"    export it: ray, serve and ctrain then find this cluster
#   cluster/local.sh stop             end it; nothing that it did not start is touched
#
# Ray and Serve read their switches from the environment of this start, and the jobs and actors of the
# cluster inherit it: CTRAIN_ROOT, CTRAIN_NAMESPACE or any RAY_... set here holds for all of them.
# Ray's own ports listen on all interfaces and ask for the token; HAProxy's statistics and metrics ask
# for nothing, so keep them behind a firewall.
set -euo pipefail

# what may be set beforehand
state=${CTRAIN_CLUSTER_DIR:-$HOME/.ctrain-cluster}   # token, process id, log; one folder a cluster
gcs_port=${CTRAIN_GCS_PORT:-6379}
dashboard_port=${CTRAIN_DASHBOARD_PORT:-8265}
client_port=${CTRAIN_CLIENT_PORT:-10001}
agent_port=${CTRAIN_AGENT_PORT:-52365}
worker_ports=${CTRAIN_WORKER_PORTS:-20000-20999}     # beside those of the replicas, below
object_store=${CTRAIN_OBJECT_STORE_BYTES:-1000000000}
export CTRAIN_HTTP_PORT=${CTRAIN_HTTP_PORT:-8000}
export RAY_SERVE_HAPROXY_STATS_PORT=${RAY_SERVE_HAPROXY_STATS_PORT:-8404}
export RAY_SERVE_HAPROXY_METRICS_PORT=${RAY_SERVE_HAPROXY_METRICS_PORT:-9101}
export RAY_SERVE_FALLBACK_PROXY_HTTP_PORT=${RAY_SERVE_FALLBACK_PROXY_HTTP_PORT:-8500}
export RAY_SERVE_FALLBACK_PROXY_GRPC_PORT=${RAY_SERVE_FALLBACK_PROXY_GRPC_PORT:-9500}
export RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT=${RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT:-30000}
export RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT=${RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT:-31000}
export RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT=${RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT:-40000}
export RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT=${RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT:-41000}

# actors ask for fractions of a CPU, but Serve, Train and Data must fit beside each other on a laptop
cpus=${CTRAIN_CPUS:-$(getconf _NPROCESSORS_ONLN)}
if [ "$cpus" -lt 8 ]; then cpus=8; fi

die() { echo "local.sh: $*" >&2; exit 1; }

# folder of the Python environment that has ctrain and ray
find_bin() {
    local here candidate
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    for candidate in "${CTRAIN_VENV:+$CTRAIN_VENV/bin}" "${VIRTUAL_ENV:+$VIRTUAL_ENV/bin}" "$here/.venv/bin" \
        "$(dirname "$(command -v ray || true)")"; do
        if [ -n "$candidate" ] && [ -x "$candidate/ray" ] && [ -x "$candidate/python" ]; then
            echo "$candidate"
            return
        fi
    done
    die "no Python environment with ray. Run make venv, or set CTRAIN_VENV to one"
}

# whether the process of the pid file is still the one that was started
running() {
    [ -f "$state/pid" ] || return 1
    local pid since
    { read -r pid; read -r since; } < "$state/pid"
    [ "$(started "$pid")" = "$since" ]
}

started() { LC_ALL=C ps -o lstart= -p "$1" 2> /dev/null | xargs || true; }

check_ports() {
    "$1/python" - "$gcs_port" "$dashboard_port" "$client_port" "$agent_port" "$CTRAIN_HTTP_PORT" \
        "$RAY_SERVE_HAPROXY_STATS_PORT" "$RAY_SERVE_HAPROXY_METRICS_PORT" \
        "$RAY_SERVE_FALLBACK_PROXY_HTTP_PORT" "$RAY_SERVE_FALLBACK_PROXY_GRPC_PORT" "$worker_ports" \
        "$RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT-$RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT" \
        "$RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT-$RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT" << 'PYTHON'
import socket, sys

names = ["CTRAIN_GCS_PORT", "CTRAIN_DASHBOARD_PORT", "CTRAIN_CLIENT_PORT", "CTRAIN_AGENT_PORT", "CTRAIN_HTTP_PORT"]
names += ["RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT"]
names += ["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT"]
ports = dict(zip(names, map(int, sys.argv[1:10])))
ranges = [tuple(map(int, text.split("-"))) for text in sys.argv[10:]]
faults = []
for name, port in ports.items():
    others = [other for other in names if other != name and ports[other] == port]
    if others:
        faults.append(f"{name} {port} is also {others[0]}")
    if any(low <= port <= high for low, high in ranges):
        faults.append(f"{name} {port} lies among the ports of workers or replicas")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            faults.append(f"{name} {port}: {error.strerror}")
(low, high), *replicas = ranges
if any(low <= b and a <= high for a, b in replicas):
    faults.append(f"CTRAIN_WORKER_PORTS {low}-{high} overlaps the ports of the replicas {replicas}")
if faults:
    sys.exit("local.sh: " + "; ".join(faults))
PYTHON
}

# answers once jobs can be submitted
answers() {
    "$1/python" - "$dashboard_port" "$state/token" 2> /dev/null << 'PYTHON'
import pathlib, sys, urllib.request

port, token = sys.argv[1:]
header = {"Authorization": f"Bearer {pathlib.Path(token).read_text()}"}
request = urllib.request.Request(f"http://127.0.0.1:{port}/api/jobs/", headers=header)
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5)
PYTHON
}

start() {
    if running; then
        echo "# runs already, process $(head -1 "$state/pid")" >&2
        cat "$state/env"
        return
    fi
    local bin pid temp
    bin=$(find_bin)
    check_ports "$bin"
    umask 077
    mkdir -p "$state"
    chmod 700 "$state"
    if [ ! -s "$state/token" ]; then
        "$bin/python" -c "import secrets; print(secrets.token_hex(32), end='')" > "$state/token"
    fi
    chmod 600 "$state/token"
    # logs of the session before this one go now, so that they can be read after a stop
    if [ -f "$state/temp" ]; then rm -rf "$(cat "$state/temp")"; fi
    temp=$(mktemp -d /tmp/ctrain-XXXXXX)  # short: the path of a socket has 107 characters at most
    echo "$temp" > "$state/temp"
    mkdir "$temp/haproxy"

    export PATH="$bin:$PATH"              # `ray job submit ... -- python ...` finds this Python
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token"
    export RAY_worker_niceness=0          # workers at the priority of the head, not at nice 15
    export RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1
    # the line after it is an option of HAProxy's own, for which Serve has no switch: wait for the body, since
    # one that was under way in packets when its replica died could not be repeated
    export RAY_SERVE_HAPROXY_RETRY_ON="${RAY_SERVE_HAPROXY_RETRY_ON:-conn-failure empty-response
    option http-buffer-request}"
    export RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP=1
    export RAY_TRAIN_HEALTH_CHECK_INTERVAL_S=0.1
    export RAY_SERVE_HAPROXY_CONFIG_FILE_LOC="$temp/haproxy/haproxy.cfg"
    export RAY_SERVE_HAPROXY_SOCKET_PATH="$temp/haproxy/admin.sock"
    export RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH="$temp/haproxy/metrics.sock"
    export RAY_SERVE_HAPROXY_SERVER_STATE_BASE="$temp/haproxy"
    export RAY_SERVE_HAPROXY_SERVER_STATE_FILE="$temp/haproxy/server-state"
    unset RAY_AUTH_TOKEN RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_JOB_ID

    write_env "$bin"
    cd "$state"
    set -m                                # a process group of its own: Ctrl-C here does not reach it
    "$bin/ray" start --head --block --port="$gcs_port" --temp-dir="$temp" \
        --dashboard-host=127.0.0.1 --dashboard-port="$dashboard_port" \
        --dashboard-agent-listen-port="$agent_port" --ray-client-server-port="$client_port" \
        --min-worker-port="${worker_ports%-*}" --max-worker-port="${worker_ports#*-}" \
        --num-cpus="$cpus" --object-store-memory="$object_store" --disable-usage-stats \
        < /dev/null > "$state/ray.log" 2>&1 &
    pid=$!
    set +m
    printf '%s\n%s\n' "$pid" "$(started "$pid")" > "$state/pid"
    for _ in $(seq 120); do
        if ! running; then
            rm -f "$state/pid"
            tail -20 "$state/ray.log" >&2
            die "ray start ended; its log is $state/ray.log"
        fi
        if answers "$bin"; then
            echo "# Ray runs: process $pid, $cpus logical CPUs, dashboard http://127.0.0.1:$dashboard_port" >&2
            echo "# log $state/ray.log, sessions $temp; export this, or: eval \"\$($0 env)\"" >&2
            cat "$state/env"
            return
        fi
        sleep 0.5
    done
    stop
    die "no answer from http://127.0.0.1:$dashboard_port within a minute; the log is $state/ray.log"
}

write_env() {
    {
        echo "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$(printf %q "$state/token")"
        echo "export RAY_ADDRESS=127.0.0.1:$gcs_port"
        echo "export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard_port"
        echo "export RAY_DASHBOARD_ADDRESS=http://127.0.0.1:$dashboard_port"
        echo "export CTRAIN_HTTP_PORT=$CTRAIN_HTTP_PORT CTRAIN_URL=http://127.0.0.1:$CTRAIN_HTTP_PORT"
        for name in CTRAIN_ROOT CTRAIN_STORE CTRAIN_NAMESPACE CTRAIN_JOURNAL; do
            if [ -n "${!name:-}" ]; then echo "export $name=$(printf %q "${!name}")"; fi
        done
        # expands where it is read, and only once
        # shellcheck disable=SC2016
        printf 'case ":$PATH:" in *:%q:*) ;; *) export PATH=%q:"$PATH" ;; esac\n' "$1" "$1"
    } > "$state/env"
}

stop() {
    if ! running; then
        rm -f "$state/pid"
        sweep
        echo "# nothing runs that was started from $state" >&2
        return
    fi
    local pid all one
    pid=$(head -1 "$state/pid")
    all=$(descendants "$pid")
    kill -TERM "$pid"
    for _ in $(seq 120); do
        running || break
        sleep 0.5
    done
    # whatever outlived its parent, unless the number belongs to another process by now
    while read -r one since; do
        if [ -n "$one" ] && [ "$(started "$one")" = "$since" ]; then kill -KILL "$one" 2> /dev/null || true; fi
    done <<< "$all"
    rm -f "$state/pid"
    sweep
    echo "# stopped; logs stay in $(cat "$state/temp") until the next start" >&2
}

# what is left of a head that was killed: HAProxy, say, whose command names our session's own folder
sweep() {
    local temp one
    temp=$(cat "$state/temp" 2> /dev/null || true)
    [ -n "$temp" ] || return 0
    for one in $(ps -A -ww -o pid=,args= | awk -v folder="$temp/" -v self="$$" \
        'index($0, folder) && $1 != self && $2 !~ /awk$/ { print $1 }'); do
        kill -KILL "$one" 2> /dev/null || true
    done
}

# the process and all below it, with the time each began
descendants() {
    LC_ALL=C ps -A -o pid=,ppid=,lstart= | awk -v root="$1" '
        { parent[$1] = $2; pid[NR] = $1; $2 = ""; $0 = $0; since = $2; for (i = 3; i <= NF; i++) since = since " " $i
          began[$1] = since }
        END { for (n in pid) { for (p = pid[n]; p in parent && p != root; p = parent[p]); if (p == root) print pid[n], began[pid[n]] } }'
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    env) if [ -f "$state/env" ]; then cat "$state/env"; else die "not started yet: $0 start"; fi ;;
    *)
        echo "usage: $0 start|stop|env" >&2
        exit 2
        ;;
esac
