"""Who gets nothing, and how they are told."""

import pytest
import yaml

from tests.e2e.computedomain.jobs import PATIENCE_S, Job, Space, namespace
from tests.support.cluster import ApiError, Cluster, CommandFailed, Object, wait_until
from tests.support.manifests import claim, config, pod, request

DRIVER = "compute-domain.nvidia.com"
CHANNEL = {"apiVersion": "resource.nvidia.com/v1beta1", "kind": "ComputeDomainChannelConfig"}
CHANNEL_REQUEST = request("channel", "compute-domain-default-channel.nvidia.com")


def stolen(job: Job) -> Object:
    """A claim with the domain's ID, as somebody else would write it."""
    parameters = {**CHANNEL, "domainID": job.uid()}
    found: Object = claim("stolen", "", CHANNEL_REQUEST, configs=(config(DRIVER, parameters),))
    return found


@pytest.mark.parametrize(
    ("node", "reason"),
    [("n1", "in another namespace"), ("n3", "ForeignComputeDomain: .*of another namespace")],
    ids=["member node", "other node"],
)
def test_a_claim_in_another_namespace_with_the_domains_id_gets_nothing_and_is_told_why(
    here: Space, node: str, reason: str
) -> None:
    job = here.job("train", 1)
    job.run(a="n1")
    job.wait_ready(1)
    before = cdi_files(here.cluster)
    evil = Space(here.driver, f"{here.name}-evil")
    with namespace(here.cluster, evil.name):
        theft = stolen(job)
        theft["metadata"]["namespace"] = evil.name
        here.cluster.create(evil.where("resource.k8s.io/v1", "resourceclaims"), theft)
        here.cluster.create(evil.where("v1", "pods"), pod("thief", evil.name, claims=("stolen",), node=node))
        evil.wait_told("thief", reason)
        assert evil.phase("thief") == "Pending"
        assert cdi_files(here.cluster) == before
        assert set(job.indexes()) == {"n1"}
        assert set(job.daemons()) == {"n1"}
        # Not to wait for the kubelet's call for its claim, which may go on for most of a minute.
        here.cluster.delete(evil.where("v1", "pods", "thief"), gracePeriodSeconds=0)
    assert "OK" in job.check("a")


def cdi_files(cluster: Cluster) -> list[str]:
    script = "ls /var/run/cdi | grep compute-domain; true"
    return [f"{node} {cluster.in_node(node, 'sh', '-c', script)}" for node in ("n1", "n3")]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({**CHANNEL, "domainID": ""}, "domainID must be the uid"),
        ({**CHANNEL, "domainID": "x", "allocationMode": "Some"}, "allocationMode: right would be Single or All"),
        ({**CHANNEL, "domainID": "x", "domain": "y"}, r"unknown field ComputeDomainChannelConfig\.domain"),
        ({**CHANNEL, "kind": "ComputeDomainConfig"}, "kind"),
        ({**CHANNEL, "kind": "ComputeDomainDaemonConfig", "domainID": "x"}, "in the driver's namespace"),
    ],
    ids=["no domain", "unknown mode", "unknown field", "unknown kind", "daemon of a user"],
)
def test_a_malformed_config_is_refused_when_it_is_created(shared: Space, parameters: Object, words: str) -> None:
    body = claim("malformed", shared.name, CHANNEL_REQUEST, configs=(config(DRIVER, parameters),))
    with pytest.raises(ApiError, match=f"denied request: .*{words}"):
        shared.cluster.create(shared.where("resource.k8s.io/v1", "resourceclaims"), body)
    assert not shared.cluster.list(shared.where("resource.k8s.io/v1", "resourceclaims"))


def test_a_claim_without_a_config_is_refused_by_the_node_with_what_would_be_right(shared: Space) -> None:
    """It cannot be refused earlier: that a class has no config of its own is not in the claim."""
    cluster = shared.cluster
    cluster.apply(claim("bare", shared.name, CHANNEL_REQUEST))
    cluster.create(shared.where("v1", "pods"), pod("bare", shared.name, claims=("bare",), node="n2"))
    shared.wait_told("bare", "right would be the ResourceClaimTemplate that the ComputeDomain names")
    assert shared.phase("bare") == "Pending"


def test_a_second_domain_on_a_node_is_told_who_is_there_and_gets_its_turn(here: Space) -> None:
    first, second = here.job("first", 1), here.job("second", 1)
    first.run(a="n1")
    second.start(b="n1")
    here.wait_told("b", f"WaitingForComputeDomain: .*n1 is used by ComputeDomain {here.name}/first")
    assert f"{here.name}/first" in second.wait_condition("Degraded", "True", "NodeOccupied")
    assert "OK" in first.check("a")
    here.end("a")
    second.wait_running("b")
    second.wait_ready(1)
    wait_until("the first has no daemon", lambda: not first.daemons(), PATIENCE_S)


BEYOND_A_DAEMON = {
    "of another account": {"serviceAccountName": "default"},
    "in the network of a node": {"hostNetwork": True},
    "among the processes of a node": {"hostPID": True},
    "in the IPC namespace of a node": {"hostIPC": True},
    "with files of a node": {"volumes": [{"name": "root", "hostPath": {"path": "/"}}]},
    "with a Secret": {"volumes": [{"name": "token", "secret": {"secretName": "token"}}]},
    "with a Secret among others": {
        "volumes": [{"name": "all", "projected": {"sources": [{"secret": {"name": "token"}}]}}]
    },
    "with a Secret as variables": {"containers": [{"envFrom": [{"secretRef": {"name": "token"}}]}]},
    "with a Secret as one variable": {
        "containers": [{"env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "token", "key": "token"}}}]}]
    },
    "privileged": {"containers": [{"securityContext": {"privileged": True}}]},
    "with capabilities": {"containers": [{"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]},
    "privileged at first": {"initContainers": [{"name": "first", "securityContext": {"privileged": True}}]},
}


def test_who_has_the_controllers_rights_makes_daemons_and_no_pod_that_has_the_node(here: Space) -> None:
    job = here.job("train", 2)
    job.run(a="n1", b="n2")
    job.wait_ready(2)
    ours = here.driver.namespace
    (controller,) = {each["spec"]["serviceAccountName"] for each in here.driver.controllers()}
    (daemon,) = {each["spec"]["serviceAccountName"] for each in job.daemons().values()}

    def make(spec: Object) -> str:
        """What the API server says to such a pod; it makes none."""
        container = {"name": "main", "image": "docker.io/library/busybox:dev"}
        full = {"serviceAccountName": daemon, "containers": [{}], **spec}
        for kind in ("containers", "initContainers"):
            if kind in full:
                full[kind] = [{**container, **each} for each in full[kind]]
        thief = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stolen"}, "spec": full}
        account = f"--as=system:serviceaccount:{ours}:{controller}"
        flags = ("--dry-run=server", "--namespace", ours, "--filename", "-")
        try:
            return here.cluster.kubectl("create", account, *flags, text=yaml.safe_dump(thief))
        except CommandFailed as error:
            return str(error)

    assert "pod/stolen created" in make({})
    for what, spec in BEYOND_A_DAEMON.items():
        assert "denied request: the controller may make" in make(spec), what
