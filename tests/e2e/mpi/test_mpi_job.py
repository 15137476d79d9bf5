"""The walk-through of NVIDIA's documentation: the sample, Kubeflow's own operator, ranks that Open MPI starts over SSH.

Only nvbandwidth is another program: one that succeeds where every rank could use the memory of every other rank's GPU.
"""

import re
from collections.abc import Callable

import pytest

from tests.e2e.computedomain.jobs import CLIQUES, PATIENCE_S, Job, Space
from tests.support.cluster import ROOT, Object, path, wait_until
from tests.support.computedomain import UID_LABEL

SAMPLE = (ROOT / "deployments/samples/compute-domains/mpijob.yaml").read_text()
NAME = "nvbandwidth-test"
WORKERS = (f"{NAME}-worker-0", f"{NAME}-worker-1")
RANKS = 8
# Open MPI refuses two ranks on one core, and this machine may have fewer cores than a worker has ranks.
MANIFEST = SAMPLE.replace("--bind-to, core,", "--bind-to, core:overload-allowed,")
LONGER = MANIFEST.replace(" nvbandwidth, ", ' nvbandwidth, --testSamples, "10", ')
HEALING_S = 180.0  # a launcher that fails is started again after 10 s, then 20 s, ...


def start(space: Space, manifest: str) -> Job:
    space.cluster.kubectl("apply", "--namespace", space.name, "--filename", "-", text=manifest)
    job = Job(space, f"{NAME}-compute-domain")
    job.wait_ready(2)
    return job


def test_the_nvbandwidth_job_forms_its_domain_succeeds_and_leaves_nothing(here: Space) -> None:
    job = start(here, MANIFEST)
    uid = job.uid()
    assert len({CLIQUES[node] for node in job.daemons()}) == 1
    wait_succeeded(here)
    check_output(output(here))
    job.wait_condition("Ready", "False", "Idle")
    assert workers(here) == []  # cleanPodPolicy: Running
    daemons = path("v1", "pods", namespace=here.driver.namespace)
    selected = {"labelSelector": f"{UID_LABEL}={uid}"}
    wait_until("the daemons are gone", lambda: not here.cluster.list(daemons, **selected), PATIENCE_S)
    here.cluster.kubectl("delete", "--namespace", here.name, "--filename", "-", text=MANIFEST)
    wait_until("nothing is left of the domain", here.driver.is_clean, PATIENCE_S)


def lose_a_worker(job: Job) -> None:
    job.cluster.delete(job.space.where("v1", "pods", WORKERS[0]), gracePeriodSeconds=0)


def lose_the_daemons(job: Job) -> None:
    for pod in job.daemons().values():
        where = path("v1", "pods", namespace=pod["metadata"]["namespace"], name=pod["metadata"]["name"])
        job.cluster.delete(where, gracePeriodSeconds=0)


@pytest.mark.parametrize("lose", [lose_a_worker, lose_the_daemons])
def test_a_job_that_loses_a_part_while_it_measures_succeeds_all_the_same(
    here: Space, lose: Callable[[Job], None]
) -> None:
    job = start(here, LONGER)
    wait_until("it measures", lambda: "Running multinode" in output(here), PATIENCE_S)
    lose(job)
    wait_succeeded(here, HEALING_S)
    check_output(output(here))


def wait_succeeded(space: Space, patience_s: float = PATIENCE_S) -> None:
    def succeeded(job: Object) -> bool:
        conditions = {each["type"]: each["status"] for each in job.get("status", {}).get("conditions", ())}
        return conditions.get("Succeeded") == "True"

    job = space.where("kubeflow.org/v2beta1", "mpijobs", NAME)
    space.cluster.wait(job, "the MPIJob has succeeded", succeeded, patience_s)


def output(space: Space) -> str:
    """Of the launcher's last start."""
    chosen = ("--tail=-1", "--selector", f"job-name={NAME}-launcher")
    return space.cluster.kubectl("logs", "--namespace", space.name, *chosen)


def workers(space: Space) -> list[Object]:
    selector = f"training.kubeflow.org/job-name={NAME},training.kubeflow.org/job-role=worker"
    return space.cluster.list(space.where("v1", "pods"), labelSelector=selector)


def check_output(said: str) -> None:
    """Four ranks on each worker, each with a GPU of its own; every pair can share memory."""
    processes = re.findall(r"^Process (\d+) \((\S+)\): GPU (\d): .*GB200.* \(UUID: (\S+)\)$", said, re.MULTILINE)
    assert [(rank, host, gpu) for rank, host, gpu, _ in processes] == [
        (str(rank), WORKERS[rank // 4], str(rank % 4)) for rank in range(RANKS)
    ], said
    assert len({uuid for *_, uuid in processes}) == RANKS
    for rank in range(RANKS):
        row = re.search(rf"^ +{rank} ((?: +(?:OK|N/A|FAIL))+)$", said, re.MULTILINE)
        assert row and row[1].split() == ["N/A" if other == rank else "OK" for other in range(RANKS)], said
