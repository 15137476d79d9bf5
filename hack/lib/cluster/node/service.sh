#!/usr/bin/env bash
# Runs in a node.
#   service.sh start SERVICE            containerd, kubelet, kube-proxy or kube-router
#   service.sh signal SERVICE SIGNAL
#   service.sh import ARCHIVE           an OCI archive into containerd, unless it is there already
set -eu
set -a
# shellcheck source=/dev/null
. /etc/kubernetes/environment
set +a

start() {
    local service="$1" command=()
    case "$service" in
    containerd) command=(containerd) ;;
    kubelet)
        command=(kubelet --config=/etc/kubernetes/kubelet.json --kubeconfig=/etc/kubernetes/kubelet.kubeconfig
            --hostname-override="$NODE" --node-ip="$ADDRESS" --root-dir=/var/lib/kubelet)
        ;;
    kube-proxy) command=(kube-proxy --config=/etc/kubernetes/kube-proxy.json --hostname-override="$NODE") ;;
    kube-router) # it gives up where its Node is not there yet
        # shellcheck disable=SC2016 # for the shell that is started
        command=(bash -c 'until kubectl --kubeconfig=/etc/kubernetes/kubelet.kubeconfig get "node/$NODE"; do sleep 0.5; done
            exec "$@"' kube-router
            env PATH="$KUBE_ROUTER_PATH:$PATH" LD_LIBRARY_PATH="$KUBE_ROUTER_LIBRARIES"
            XTABLES_LIBDIR="$KUBE_ROUTER_LIBRARIES/xtables" "$KUBE_ROUTER"
            --run-firewall=true --run-router=false --run-service-proxy=false --run-loadbalancer=false
            --kubeconfig=/etc/kubernetes/kube-router.kubeconfig --hostname-override="$NODE")
        ;;
    *) echo "no service $service" >&2 && exit 2 ;;
    esac
    if kill -0 "$(cat "/run/partita/$service.pid" 2>/dev/null)" 2>/dev/null; then
        return 0
    fi
    setsid "${command[@]}" >>"/var/log/$service.log" 2>&1 </dev/null &
    echo $! >"/run/partita/$service.pid"
    [[ "$service" != containerd ]] || wait_for_containerd
}

wait_for_containerd() {
    for _ in $(seq 600); do
        if ctr version >/dev/null 2>&1; then
            return 0
        fi
        sleep 0.05
    done
    echo "containerd did not come up: $(tail -1 /var/log/containerd.log)" >&2
    exit 1
}

signal() {
    local pid
    pid="$(cat "/run/partita/$1.pid")"
    kill "-$2" "$pid"
    # Until it is gone: a start that follows at once would take it for running still.
    while [[ "$2" == KILL ]] && kill -0 "$pid" 2>/dev/null; do
        sleep 0.02
    done
}

import() {
    local archive="$1" marker
    marker="/var/lib/containerd/imported-$(basename "$archive")-$(stat -c %Y-%s-%i "$archive")"
    [[ ! -e "$marker" ]] || return 0
    ctr --namespace k8s.io images import --local "$archive" >/dev/null
    touch "$marker"
}

case "$1" in
start) start "$2" ;;
signal) signal "$2" "$3" ;;
import) import "$2" ;;
esac
