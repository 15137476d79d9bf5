"""`hack/bench NAME [options]`."""

import argparse
import asyncio
import os
import shutil
from pathlib import Path

from bench import computedomain, prepare, prepare_amd, repartition
from bench.computedomain_cluster import BenchCluster
from bench.node import Node
from bench.nvidia import NvidiaNode


def main() -> None:
    parser = argparse.ArgumentParser("hack/bench", description=__doc__)
    benches = parser.add_subparsers(dest="bench", required=True)
    one = benches.add_parser("prepare", help="the node plugin: latency, throughput, CPU, memory")
    one.add_argument("--claims", type=int, default=400, help="claims per case")
    one.add_argument("--driver", choices=("gpu.nvidia.com", "gpu.amd.com"), default="gpu.nvidia.com")
    one.add_argument("--soak", type=int, default=0, help="go on to this many claims and show memory again")
    one.add_argument("--kubeconfig", type=Path, help="of a running cluster; default: start one with hack/cluster")
    one.add_argument("--as-user", action="store_true", help="let the plugin use the kubeconfig, not a service account")
    one.add_argument("--plugin", choices=("partita", "nvidia"), default="partita", help="whose plugin is measured")
    domains = benches.add_parser("computedomain", help="ComputeDomains: time to form, API writes, CPU, memory, scale")
    computedomain.add_options(domains)
    nodes = benches.add_parser("repartition", help="a node of eight AMD GPUs: time from one profile to the other")
    nodes.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.bench == "computedomain":
        computedomain.run(arguments)
        return
    if arguments.bench == "repartition":
        repartition.run(arguments.rounds)
        return
    cluster = BenchCluster("bench")
    if arguments.kubeconfig is None:
        cluster.run("up", "--nodes", "0")
    kubeconfig = arguments.kubeconfig or cluster.kubeconfig
    base = Path("/var/tmp/partita-bench")  # short, for socket paths; on a disk, for durable appends
    try:
        plugin = NvidiaNode if arguments.plugin == "nvidia" else Node
        as_pod = _is_root() and not arguments.as_user and plugin is Node
        options = prepare.Options(kubeconfig.resolve(), base, arguments.claims, arguments.soak, as_pod, plugin)
        run = prepare_amd.run if arguments.driver == "gpu.amd.com" else prepare.run
        asyncio.run(run(options))
    finally:
        shutil.rmtree(base, ignore_errors=True)
        if arguments.kubeconfig is None:
            cluster.down()


def _is_root() -> bool:
    return os.geteuid() == 0


if __name__ == "__main__":
    main()
