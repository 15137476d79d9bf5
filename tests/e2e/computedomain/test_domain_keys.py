"""Keys of IMEX daemons on real nodes: each is made on its node, serves one domain, and is in no other hands."""

import json

from tests.e2e.computedomain.jobs import PATIENCE_S, PLUGIN, Driver, Job, Space
from tests.support.cluster import path, wait_until
from tests.support.computedomain import DOMAINS, UID_LABEL


def published(driver: Driver) -> dict[str, str]:
    """The public key of each node, as its ResourceSlice has it."""
    found = driver.cluster.list(
        path("resource.k8s.io/v1", "resourceslices"), fieldSelector="spec.driver=compute-domain.nvidia.com"
    )
    return {
        each["spec"]["nodeName"]: device["attributes"]["imexPublicKey"]["string"]
        for each in found
        for device in each["spec"]["devices"]
        if "imexPublicKey" in device["attributes"]
    }


def members(job: Job) -> dict[str, str]:
    """The public keys for which the domain's members have certificates."""
    where = path(DOMAINS, "computedomaincliques", namespace=job.space.driver.namespace)
    cliques = job.cluster.list(where, labelSelector=f"{UID_LABEL}={job.uid()}")
    return {each["nodeName"]: each["publicKey"] for clique in cliques for each in clique["daemons"]}


def test_a_key_is_on_its_node_alone_and_no_job_sees_it(here: Space) -> None:
    job = here.job("keys", 2)
    job.run(a="n1", b="n2")
    job.wait_ready(2)
    job.share_all_ways("a", "b")
    assert members(job) == {node: key for node, key in published(here.driver).items() if node in ("n1", "n2")}
    # Whatever the API server has of the domain and in the driver's namespace.
    kinds = "computedomaincliques,pods,secrets,configmaps,resourceclaims"
    stored = here.cluster.kubectl("get", kinds, "--namespace", here.driver.namespace, "--output", "json")
    assert "BEGIN CERTIFICATE" in stored and "PRIVATE KEY" not in stored
    assert {each["type"] for each in json.loads(stored)["items"] if each["kind"] == "Secret"} == {"helm.sh/release.v1"}
    files = f"find {PLUGIN} -type f -exec grep -l 'PRIVATE KEY' {{}} + | xargs stat -c '%a %U %n'"
    for node in ("n1", "n2"):
        found = here.cluster.in_node(node, "sh", "-c", files).splitlines()
        assert found and all(line.startswith("600 root ") for line in found), found
    seen = "find /run/partita /dev/nvidia-caps-imex-channels | sort"
    in_job = here.cluster.in_pod("a", "sh", "-c", seen, namespace=here.name).split()
    assert [each for each in in_job if each.startswith("/run/partita/compute-domain/")] == [
        "/run/partita/compute-domain/status.json"
    ]


def test_a_node_has_another_key_after_each_domain(here: Space) -> None:
    first, second = here.job("first", 2), here.job("second", 2)
    before = published(here.driver)
    first.run(a="n1", b="n2")
    first.wait_ready(2)
    served = members(first)
    assert served == {node: before[node] for node in ("n1", "n2")}
    here.end("a", "b")
    second.run(c="n1", d="n2")  # at once: whether the new keys are published by then or not
    second.wait_ready(2)
    second.share_all_ways("c", "d")
    renewed = members(second)
    assert set(renewed.values()).isdisjoint(served.values())
    assert renewed == {node: key for node, key in published(here.driver).items() if node in renewed}


def test_a_node_plugin_that_is_killed_as_a_domain_ends_makes_another_key_all_the_same(here: Space) -> None:
    job = here.job("killed", 1)
    job.run(a="n1")
    job.wait_ready(1)
    served = members(job)["n1"]
    here.cluster.delete(here.where("v1", "pods", "a"), gracePeriodSeconds=1)
    wait_until("the daemon is to end", lambda: is_ending(job), PATIENCE_S)
    script = (
        "for p in /proc/[0-9]*; do grep -qs '[p]artita-kubelet-plugin' $p/cmdline && kill -9 ${p#/proc/}; done; true"
    )
    here.cluster.in_node("n1", "sh", "-c", script)
    wait_until("the node has another key", lambda: published(here.driver).get("n1", served) != served, PATIENCE_S)


def is_ending(job: Job) -> bool:
    return all("deletionTimestamp" in pod["metadata"] for pod in job.daemons().values())


def test_who_joins_after_the_controller_was_started_anew_shares_memory_with_those_before(here: Space) -> None:
    """The authority of before was in the memory of the one that is gone."""
    job = here.job("grown")
    job.run(a="n1")
    job.wait_ready(1)
    here.driver.scale_controller(0)
    here.driver.scale_controller(1)
    job.run(b="n2")
    job.wait_ready(2)
    job.share_all_ways("a", "b")
    assert set(job.restarts().values()) == {0}
