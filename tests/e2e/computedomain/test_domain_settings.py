"""Settings of the IMEX daemons: domains form by them, and those that have formed keep what they formed with."""

from collections.abc import Iterator

import pytest

from tests.e2e.computedomain.jobs import PATIENCE_S, Driver, Job, Space
from tests.support.cluster import path

IMEX = "resources.computeDomains.imex"


@pytest.fixture
def changeable(driver: Driver) -> Iterator[Driver]:
    """As before afterwards."""
    yield driver
    driver.install()


def encryption(job: Job) -> set[str]:
    """What the daemons tell nvidia-imex of it."""
    said = set()
    for pod in job.daemons().values():
        metadata = pod["metadata"]
        command = ("grep", "IMEX_ENABLE_AUTH_ENCRYPTION", "/imexd/imexd.cfg")
        said.add(job.space.cluster.in_pod(metadata["name"], *command, namespace=metadata["namespace"]).strip())
    return said


def test_a_domain_whose_daemons_list_addresses_is_encrypted_and_shares_memory(changeable: Driver, here: Space) -> None:
    changeable.install(**{f"{IMEX}.nodeList": "addresses"})
    job = here.job("addresses", 2)
    job.run(a="n1", b="n2")
    job.wait_ready(2)
    job.share_all_ways("a", "b")
    assert encryption(job) == {"IMEX_ENABLE_AUTH_ENCRYPTION=1"}
    for pod in job.daemons().values():
        metadata = pod["metadata"]
        told = here.cluster.in_pod(metadata["name"], "cat", "/imexd/nodes.cfg", namespace=metadata["namespace"])
        assert sorted(told.split()) == sorted(each["status"]["podIP"] for each in job.daemons().values())


def test_without_encryption_domains_form_and_one_that_is_encrypted_stays_so(changeable: Driver, here: Space) -> None:
    before = here.job("before", 2)
    before.run(a="n1", b="n2")
    before.wait_ready(2)
    changeable.install(**{f"{IMEX}.tls": "false", f"{IMEX}.nodeList": "addresses"})
    victim = before.daemons()["n1"]["metadata"]
    where = path("v1", "pods", namespace=victim["namespace"], name=victim["name"])
    here.cluster.delete(where, gracePeriodSeconds=0)
    here.cluster.wait(where, "it is made again", lambda pod: pod["metadata"]["uid"] != victim["uid"], PATIENCE_S)
    before.wait(
        "both are connected again",
        lambda domain: (
            domain["status"]["readyNodes"] == 2 and before.daemons()["n1"]["metadata"]["uid"] != victim["uid"]
        ),
    )
    before.share_all_ways("a", "b")
    assert encryption(before) == {"IMEX_ENABLE_AUTH_ENCRYPTION=1"}
    plain = here.job("plain", 2)
    plain.run(c="n3", d="n4")
    plain.wait_ready(2)
    plain.share_all_ways("c", "d")
    assert encryption(plain) == {"IMEX_ENABLE_AUTH_ENCRYPTION=0"}
