"""`hack/bench computedomain`: what ComputeDomains cost, on real nodes and at scale."""

import asyncio
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

from bench import computedomain_real, computedomain_scale
from bench.computedomain_cluster import BenchCluster

SIZES = "1,2,4,6"
CASES = "2,18,72,256,1024,200x4"
NEVER_S = "36000"
"""Simulated nodes send no heartbeats: the control plane shall not miss them."""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--nodes", default=SIZES, help=f"real nodes, comma-separated; empty: none (default: {SIZES})")
    parser.add_argument("--runs", type=int, default=3, help="of each number of real nodes")
    parser.add_argument("--keep", action="store_true", help="leave the cluster of real nodes running")
    parser.add_argument("--scale", default=CASES, help=f"nodes, or DOMAINSxNODES, comma-separated (default: {CASES})")
    parser.add_argument("--processes", type=int, default=2, help="that simulate the nodes")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one case")


def run(options: Namespace) -> None:
    if options.nodes:
        _run_real([int(each) for each in options.nodes.split(",")], options.runs, keep=options.keep)
    if options.scale:
        _run_scale(options)


def _run_real(sizes: list[int], runs: int, *, keep: bool) -> None:
    cluster = BenchCluster("bench-nodes")
    try:
        computedomain_real.install(cluster, max(sizes))
        asyncio.run(computedomain_real.run(cluster, sizes, runs))
    finally:
        if not keep:
            cluster.down()


def _run_scale(options: Namespace) -> None:
    cluster = BenchCluster("bench-cd")
    try:
        cluster.up("--nodes", "0", "--node-timeout", NEVER_S)
        cluster.install_rights()
        cases = [parse_case(each) for each in options.scale.split(",")]
        with tempfile.TemporaryDirectory(prefix="bench-cd-", dir="/var/tmp") as base:
            cluster.install_driver(Path(base, "driver"))
            asyncio.run(computedomain_scale.run(cluster, Path(base), cases, options.processes, options.timeout))
    finally:
        cluster.down()


def parse_case(text: str) -> computedomain_scale.Case:
    """`256`: one domain of 256 nodes. `200x4`: 200 domains of 4."""
    first, _, second = text.partition("x")
    if second:
        return computedomain_scale.Case(nodes=int(second), domains=int(first))
    return computedomain_scale.Case(nodes=int(first))
