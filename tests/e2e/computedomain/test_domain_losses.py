"""A running domain loses a worker, a daemon, its network, its controller, the API server: it repairs itself."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

from tests.e2e.computedomain.jobs import CONTROLLER, PATIENCE_S, RETRY_S, Driver, Job, Space, condition
from tests.support.cluster import Cluster, CommandFailed, Object, path, wait_until
from tests.support.computedomain import DOMAINS, UID_LABEL
from tests.support.hardware import Simulator


@pytest.fixture(scope="module")
def declared(shared: Space) -> Job:
    """One for all tests here: a formation takes longer than most of them."""
    return shared.job("train", 2)


@pytest.fixture
def train(declared: Job) -> Job:
    """Two workers on the two nodes of a clique, connected; what a test that failed has left is put right."""
    declared.restore(a="n1", b="n2")
    return declared


def test_a_daemon_that_is_force_deleted_comes_back_as_it_was_and_the_others_are_told(train: Job) -> None:
    indexes, before = train.indexes(), train.daemons()
    victim = before["n1"]["metadata"]
    kept = {uid: count for uid, count in train.restarts().items() if uid != victim["uid"]}
    where = path("v1", "pods", namespace=victim["namespace"], name=victim["name"])
    train.cluster.delete(where, gracePeriodSeconds=0)
    train.cluster.wait(where, "it is made again", lambda pod: pod["metadata"]["uid"] != victim["uid"], PATIENCE_S)
    address = before["n1"]["status"]["podIP"]
    train.wait(
        "the domain is connected by the new address",
        lambda domain: (
            domain["status"]["status"] == "Ready"
            and domain["status"]["readyNodes"] == 2
            and address not in [node["ipAddress"] for node in domain["status"]["nodes"]]
        ),
    )
    train.share_all_ways("a", "b")
    assert train.indexes() == indexes
    after = train.daemons()
    assert after["n2"]["metadata"]["uid"] == before["n2"]["metadata"]["uid"]
    assert train.restarts() == {after["n1"]["metadata"]["uid"]: 0, **kept}, "no daemon was started anew for it"


def test_a_worker_that_is_force_deleted_and_made_again_finds_its_peer(train: Job) -> None:
    space, where = train.space, train.space.where("v1", "pods", "a")
    space.cluster.delete(where, gracePeriodSeconds=0)
    space.cluster.wait_gone(where)
    train.start(a="n1")
    train.wait_running("a")
    train.wait_ready(2)
    train.share_all_ways("a", "b")


@contextmanager
def cut_between(cluster: Cluster, one: str, other: str) -> Iterator[None]:
    """`one` has no way to pods on `other` any more; both reach everybody else."""
    routes = cluster.in_node(one, "ip", "-4", "route", "show")
    address = cluster.get(path("v1", "nodes", name=other))["status"]["addresses"][0]["address"]
    route = next(line for line in routes.splitlines() if f" via {address} " in line)
    network = route.split()[0]
    cluster.in_node(one, "ip", "route", "replace", "blackhole", network)
    try:
        yield
    finally:
        cluster.in_node(one, "ip", "route", "del", "blackhole", network)
        cluster.in_node(one, "ip", "route", "replace", *route.split())


def test_a_cut_between_two_nodes_is_told_while_it_lasts_and_mends_when_it_is_healed(train: Job) -> None:
    daemons = {node: pod["metadata"]["uid"] for node, pod in train.daemons().items()}
    with cut_between(train.cluster, "n1", "n2"):
        train.wait_condition("PeersConnected", "False", "Connecting", "n1")
        message = train.wait_condition("Degraded", "True", "MemberLost")
        assert "not connected to all its peers" in message
        wait_until("the job can see it", lambda: "is not ready: not connected to node" in train.check("a"), PATIENCE_S)
        for worker in ("a", "b"):
            assert train.space.phase(worker) == "Running"
    domain = train.wait_ready(2)
    assert [condition(domain, kind)["status"] for kind in ("PeersConnected", "Degraded")] == ["True", "False"]
    train.share_all_ways("a", "b")
    assert {node: pod["metadata"]["uid"] for node, pod in train.daemons().items()} == daemons


def test_an_imex_daemon_that_refuses_its_peers_degrades_the_domain_and_is_named(train: Job) -> None:
    hardware = Simulator(train.cluster, "n1")
    hardware.inject("imex", "degraded")
    try:
        train.wait_condition("PeersConnected", "False", "Connecting", "n1")
        assert "not connected to all its peers" in train.wait_condition("Degraded", "True", "MemberLost")
        assert condition(train.domain(), "Ready")["reason"] == "MemberLost"
    finally:
        hardware.inject("imex", "degraded", "--off")
    train.wait_condition("Degraded", "False", "AsExpected")
    train.wait_ready(2)
    train.share_all_ways("a", "b")


def test_an_imex_daemon_that_hangs_is_noticed_inside_the_job_and_mended(train: Job) -> None:
    hardware = Simulator(train.cluster, "n2")
    hardware.inject("imex", "hang")
    try:

        def broken() -> bool:
            try:
                train.share("a", "b", wait_s=0)
            except CommandFailed:
                return True
            return False

        wait_until("the ranks lose each other", broken, PATIENCE_S)
    finally:
        hardware.inject("imex", "hang", "--off")
    train.share_all_ways("a", "b")
    train.wait_ready(2)


@pytest.mark.timeout(600)  # the patience of its waits together is more than the default
def test_a_node_that_dies_leaves_when_its_pod_is_given_up_and_may_join_again_when_it_is_back(train: Job) -> None:
    cluster, driver = train.cluster, train.space.driver
    driver.move_controller(away_from="n2")
    starts = driver.plugin_starts("n2")
    cluster.run("poweroff", "n2")
    try:
        train.wait_condition("Degraded", "True", "MemberLost")
        wait_until("no channel is given out on n1", lambda: not is_released(train, "n1"), PATIENCE_S)
        train.start(again="n1")
        train.wait_running("again", patience_s=RETRY_S)  # before anybody has cleaned anything up
        assert "OK" in train.check("again")
        assert set(train.indexes()) == {"n1", "n2"}, "its place is kept for it"
        train.wait_condition("Degraded", "True", "MemberLost", "node n2 is lost")
        train.space.end("again")
        where = train.space.where("v1", "pods", "b")
        cluster.delete(where, gracePeriodSeconds=0)
        train.wait("n1 goes on alone", lambda d: [n["name"] for n in d["status"]["nodes"] if alone(d)] == ["n1"])
        assert "OK" in train.check("a")
    finally:
        cluster.run("poweron", "n2")
    cluster.wait_node("n2")
    wait_until("its plugin is there again", lambda: driver.plugin_starts("n2") > starts, RETRY_S)
    train.start(b="n2")
    train.wait_running("b", patience_s=RETRY_S)
    train.wait_ready(2)
    train.share_all_ways("a", "b")


def is_released(train: Job, node: str) -> bool:
    """What its ComputeDomainClique says of the channel on this node."""
    cliques = path(DOMAINS, "computedomaincliques", namespace=train.space.driver.namespace)
    found = train.cluster.list(cliques, labelSelector=f"{UID_LABEL}={train.uid()}")
    return any(each["released"] for clique in found for each in clique["daemons"] if each["nodeName"] == node)


def alone(domain: Object) -> bool:
    return (domain["status"]["memberNodes"], domain["status"]["readyNodes"]) == (1, 1)


def kill_controller(train: Job) -> None:
    """SIGKILL to the program, found on its node among that node's processes."""
    node = train.space.driver.controllers()[0]["spec"]["nodeName"]
    script = "for p in /proc/[0-9]*; do grep -qs '[p]artita-controller' $p/cmdline && kill -9 ${p#/proc/}; done; true"
    train.cluster.in_node(node, "sh", "-c", script)


def controller_starts(driver: Driver) -> int:
    (controller,) = driver.controllers()
    return int(controller["status"]["containerStatuses"][0]["restartCount"])


def test_what_happens_while_the_controller_is_dead_is_made_good_by_the_next(train: Job) -> None:
    driver, daemons = train.space.driver, {node: pod["metadata"]["uid"] for node, pod in train.daemons().items()}
    starts = controller_starts(driver)
    kill_controller(train)
    wait_until("the controller was started again", lambda: controller_starts(driver) > starts, PATIENCE_S)
    train.start(c="n3")
    train.wait_running("c")
    train.wait_ready(3)
    assert {node: train.daemons()[node]["metadata"]["uid"] for node in daemons} == daemons
    train.space.end("c")
    train.wait_ready(2)


def test_a_standby_controller_takes_over_from_a_leader_that_is_deleted(train: Job) -> None:
    driver = train.space.driver
    lease = path("coordination.k8s.io/v1", "leases", namespace=driver.namespace, name=CONTROLLER)
    try:
        driver.scale_controller(2)
        leader = train.cluster.get(lease)["spec"]["holderIdentity"]
        pod = leader.partition("_")[0]
        train.cluster.delete(path("v1", "pods", namespace=driver.namespace, name=pod))
        train.start(c="n4")
        train.wait_running("c")
        train.wait_ready(3)
        assert train.cluster.get(lease)["spec"]["holderIdentity"] != leader
        train.space.end("c")
        train.wait_ready(2)
    finally:
        driver.scale_controller(1)


def find_rank(cluster: Cluster, node: str) -> str:
    """Process of a job's rank, as its node numbers it: without the API server there is no `kubectl exec`."""
    script = "for p in /proc/[0-9]*; do grep -qs '[f]abric-test' $p/cmdline && echo ${p#/proc/} && break; done"
    return cluster.in_node(node, "sh", "-c", script).strip()


def test_a_domain_forms_across_an_outage_of_the_api_server_and_a_running_one_outlives_it(train: Job) -> None:
    cluster = train.cluster
    peer = cluster.get(train.space.where("v1", "pods", "b"))["status"]["podIP"]
    enter = ("nsenter", "-t", find_rank(cluster, "n1"), "-a")
    restarts = train.restarts()
    later = train.space.job(f"later-{uuid4().hex[:4]}", 2)
    hardware = Simulator(cluster, "n3")
    hardware.inject("imex", "slow", "--ms", "600000")
    try:
        later.start(c="n3", d="n4")

        def phases() -> list[str]:
            return [daemon["status"]["phase"] for daemon in later.daemons().values()]

        wait_until("its daemons run", lambda: phases() == ["Running", "Running"], PATIENCE_S)
        assert [train.space.phase(worker) for worker in ("c", "d")] == ["Pending", "Pending"]
        with cluster.without("control-plane", "apiserver"):
            assert "share memory" in cluster.in_node("n1", *enter, "/tools/fabric-test", "connect", peer)
            time.sleep(10.0)  # longer than a controller keeps its lease without renewing it
            hardware.inject("imex", "slow", "--off")
    finally:
        hardware.inject("imex", "slow", "--off")
    later.wait_running("c", "d", patience_s=RETRY_S)
    later.wait_ready(2)
    later.share_all_ways("c", "d")
    train.share_all_ways("a", "b")
    assert train.restarts() == restarts
