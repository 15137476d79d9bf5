"""What NVIDIA's documentation of ComputeDomains promises, step by step, by the commands that it shows."""

import json
import re
from typing import Any

import pytest
import yaml

from tests.e2e.computedomain.jobs import CLIQUES, PATIENCE_S, Job, Space, condition
from tests.support.cluster import ROOT, Cluster, Object, path, wait_until
from tests.support.computedomain import UID_LABEL

SAMPLES = ROOT / "deployments/samples/compute-domains"
NAME = "nvbandwidth-test"
WORKERS = (f"{NAME}-worker-0", f"{NAME}-worker-1")
GPUS_OF_A_WORKER = 4
MPIJOBS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "mpijobs.kubeflow.org"},
    "spec": {
        "group": "kubeflow.org",
        "names": {"kind": "MPIJob", "plural": "mpijobs", "singular": "mpijob"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v2beta1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def mpi(shared: Space) -> Space:
    """A cluster with MPIJobs, and with the node labels of NVIDIA's GPU Feature Discovery."""
    cluster = shared.cluster
    cluster.apply(MPIJOBS)
    crd = path("apiextensions.k8s.io/v1", "customresourcedefinitions", name="mpijobs.kubeflow.org")
    cluster.wait(crd, "MPIJobs are served", lambda found: condition(found, "Established")["status"] == "True")
    for node, clique in CLIQUES.items():
        cluster.kubectl("label", "node", node, "--overwrite", f"nvidia.com/gpu.clique={clique}")
    return shared


def play_operator(space: Space) -> None:
    """Make the workers' pods of the stored MPIJob, as Kubeflow's operator names and labels them.

    Their program is exchanged: nvbandwidth needs real GPUs, its stand-in the same channel and the same connections.
    """
    job = space.cluster.get(space.where("kubeflow.org/v2beta1", "mpijobs", NAME))
    worker = job["spec"]["mpiReplicaSpecs"]["Worker"]
    for number in range(worker["replicas"]):
        pod: Object = json.loads(json.dumps(worker["template"]))
        labels = {"training.kubeflow.org/job-name": NAME, "training.kubeflow.org/job-role": "worker"}
        pod["metadata"] = {"name": f"{NAME}-worker-{number}", "labels": {**pod["metadata"]["labels"], **labels}}
        exchange_program(pod["spec"])
        space.cluster.create(space.where("v1", "pods"), pod)


def exchange_program(spec: Any) -> None:
    container = spec["containers"][0]
    container["image"] = "docker.io/library/busybox:dev"
    container["command"], container["args"] = ["/tools/fabric-test"], ["serve"]
    container["volumeMounts"] = [{"name": "tools", "mountPath": "/tools"}]
    spec["volumes"] = [{"name": "tools", "hostPath": {"path": "/run/nvidia/driver/usr/bin"}}]
    spec["terminationGracePeriodSeconds"] = 1


def columns(table: str) -> list[dict[str, str]]:
    """What `kubectl get` prints, a dict for each line."""
    head, *lines = table.splitlines()
    names = head.split()
    return [dict(zip(names, re.split(r"\s{2,}", line.strip()), strict=True)) for line in lines]


def test_the_nvbandwidth_job_of_the_documentation_runs_from_apply_to_delete(mpi: Space) -> None:
    cluster = mpi.cluster
    manifest = str(SAMPLES / "mpijob.yaml")
    told = cluster.kubectl("apply", "--namespace", mpi.name, "--filename", manifest)
    assert "computedomain.resource.nvidia.com/nvbandwidth-test-compute-domain created" in told
    job = Job(mpi, f"{NAME}-compute-domain")
    play_operator(mpi)
    job.wait_running(*WORKERS)
    job.wait_ready(2)
    check_tables(mpi, job)
    job.share_all_ways(*WORKERS)
    for worker in WORKERS:
        assert job.channels(worker) == ["channel0"]
        gpus = cluster.in_pod(worker, "nvidia-smi", "-L", namespace=mpi.name)
        assert gpus.count("GB200") == GPUS_OF_A_WORKER
    uid = job.uid()
    cluster.kubectl("delete", "--namespace", mpi.name, "--filename", manifest, "--wait=false")
    mpi.end(*WORKERS)  # the operator deletes its pods with the MPIJob
    cluster.wait_gone(job.place, PATIENCE_S)
    check_nothing_is_left(cluster, uid)


def check_tables(space: Space, job: Job) -> None:
    """What people see: the workers, a daemon for each node in the driver's namespace, and the domain."""
    cluster, driver = space.cluster, space.driver
    workers = columns(cluster.kubectl("get", "pods", "--namespace", space.name))
    assert [(each["NAME"], each["READY"], each["STATUS"]) for each in workers] == [
        (worker, "1/1", "Running") for worker in WORKERS
    ]
    daemons = columns(cluster.kubectl("get", "pods", "--namespace", driver.namespace, "--selector", UID_LABEL))
    assert [(each["READY"], each["STATUS"], each["RESTARTS"]) for each in daemons] == [("1/1", "Running", "0")] * 2
    assert all(re.fullmatch(rf"{job.name}-[a-z0-9]{{5}}-[a-z0-9]+", each["NAME"]) for each in daemons)
    nodes = {cluster.get(space.where("v1", "pods", worker))["spec"]["nodeName"] for worker in WORKERS}
    assert set(job.daemons()) == nodes
    assert len({CLIQUES[node] for node in nodes}) == 1
    domains = columns(cluster.kubectl("get", "computedomains", "--namespace", space.name))
    assert [(each["NAME"], each["STATUS"], each["NODES"], each["REASON"]) for each in domains] == [
        (job.name, "Ready", "2/2", "Connected")
    ]


def check_nothing_is_left(cluster: Cluster, uid: str) -> None:
    kinds = "pods,resourceclaims,resourceclaimtemplates,computedomaincliques.resource.nvidia.com"
    command = ("get", kinds, "--all-namespaces", "--selector", f"{UID_LABEL}={uid}", "--output", "name")
    wait_until("everything is torn down", lambda: cluster.kubectl(*command).strip() == "", PATIENCE_S)


def test_when_a_jobs_pods_have_finished_its_domain_is_idle_and_their_daemons_are_gone(here: Space) -> None:
    """The pods are there still, as Completed; they need not be deleted."""
    here.cluster.kubectl("apply", "--namespace", here.name, "--filename", str(SAMPLES / "job.yaml"))
    job = Job(here, "compute-domain")
    job.wait_ready(2)
    uid = job.uid()
    job.wait_condition("Ready", "False", "Idle")
    # The domain knows from the pods; whoever counts them for the Job may take a second longer.
    here.cluster.wait(
        here.where("batch/v1", "jobs", "compute-domain"),
        "both have succeeded",
        lambda finished: finished["status"].get("succeeded") == 2,
    )
    pods = here.cluster.list(here.where("v1", "pods"), labelSelector="app=compute-domain")
    assert [pod["status"]["phase"] for pod in pods] == ["Succeeded"] * 2
    for pod in pods:
        logs = here.cluster.kubectl("logs", "--namespace", here.name, pod["metadata"]["name"])
        assert re.search(r" channel0$", logs, re.MULTILINE)
    command = ("get", "pods,computedomaincliques", "--all-namespaces", "--output", "name")
    left = (*command, "--selector", f"{UID_LABEL}={uid}")
    wait_until("no daemon is left", lambda: here.cluster.kubectl(*left).strip() == "", PATIENCE_S)


def test_the_samples_are_valid_yaml_of_one_domain_each() -> None:
    for sample in sorted(SAMPLES.glob("*.yaml")):
        kinds = [each["kind"] for each in yaml.safe_load_all(sample.read_text())]
        assert kinds.count("ComputeDomain") == 1
