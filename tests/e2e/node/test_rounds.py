"""Many claims one after another and beside each other: what they leave is what was there before."""

import pytest

from tests.support.bench import Bench
from tests.support.cluster import Cluster, Object, path, wait_until
from tests.support.manifests import claim_template, gpu_request, mig_request, pod
from tests.support.plugin import BARE_NODE

ROUNDS = {"small": (84, 4), "half": (20, 1), "whole": (12, 1)}
"""Pods of each kind, and how many of them at once."""
TEMPLATES = {"small": ("small", "twin"), "half": ("half",), "whole": ("whole",)}
"""Of a pod's claims: a second one costs little, and a pod a second."""
PATIENCE_S = 900.0


def rounds(bench: Bench, kind: str) -> Object:
    """A Job whose pods each look at the devices of claims of their own, and end."""
    completions, parallelism = ROUNDS[kind]
    shown, templates = "GPU " if kind == "whole" else "MIG ", TEMPLATES[kind]
    look = f"test $(nvidia-smi -L | grep -c '{shown}') = {len(templates)}"
    template = pod("unused", bench.namespace, templates=templates, node=BARE_NODE, command=look)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": kind, "namespace": bench.namespace},
        "spec": {
            "completions": completions,
            "parallelism": parallelism,
            "backoffLimit": 0,
            "template": {"spec": template["spec"]},
        },
    }


@pytest.mark.timeout(1800)
def test_two_hundred_rounds_leave_everything_as_it_was(cluster: Cluster, bench: Bench) -> None:
    """200 claims, ten at once, slices and full GPUs on both GPUs: hardware, CDI files, checkpoint, claims as before."""
    small = mig_request("1g.10gb")
    requests = {"small": small, "twin": small, "half": mig_request("3g.40gb"), "whole": gpu_request()}
    hardware, slices = bench.simulator.show(), bench.devices()
    assert bench.holdings() == {}
    cluster.apply([claim_template(kind, bench.namespace, each) for kind, each in requests.items()])
    cluster.apply([rounds(bench, kind) for kind in ROUNDS])
    for kind, (completions, _) in ROUNDS.items():
        where = path("batch/v1", "jobs", namespace=bench.namespace, name=kind)

        def ended(job: Object, completions: int = completions) -> bool:
            assert not job["status"].get("failed"), job["status"]
            return bool(job["status"].get("succeeded", 0) == completions)

        cluster.wait(where, f"all pods of {kind} succeeded", ended, PATIENCE_S)
        cluster.delete(where, propagationPolicy="Background")
    wait_until("the pods are gone", lambda: cluster.list(bench.pods()) == [], 180.0)
    wait_until("the claims are gone", lambda: cluster.list(bench.claims()) == [])
    bench.wait_clean()
    assert bench.simulator.show() == hardware
    wait_until("the devices are offered as before", lambda: bench.devices() == slices)
