"""The controller is killed in the middle of its work, again and again: what is half done is always finished."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.computedomain.jobs import RETRY_S, Driver, Job, Space
from tests.support.cluster import Object, path, wait_until
from tests.support.computedomain import DOMAINS, UID_LABEL, Controller

LOOK_S = 0.005

Steps = dict[str, Callable[[], bool]]


@pytest.fixture
def stopped(driver: Driver) -> Iterator[Driver]:
    """No controller runs in the cluster."""
    driver.scale_controller(0)
    yield driver
    driver.scale_controller(1)


class Mortal:
    """A controller that is killed as soon as a step of its work can be seen, and starts again under the same name."""

    def __init__(self, driver: Driver, log: Path) -> None:
        options = {"POD_NAME": "mortal", "IMAGE": "partita:dev"}
        self.controller = Controller(driver.cluster, log, namespace=driver.namespace, options=options)
        self.killed_at: list[str] = []

    def live_through(self, steps: Steps) -> None:
        """Die after each step, and live on after the last."""
        for name, seen in steps.items():
            if seen():
                continue  # taken in the same breath as the step before
            deadline = time.monotonic() + RETRY_S
            while not seen():
                assert time.monotonic() < deadline, f"step {name} is never taken"
                time.sleep(LOOK_S)
            self.controller.stop(signal.SIGKILL)
            self.killed_at.append(name)
            self.controller.start()


class View:
    """What the API server has for one domain."""

    def __init__(self, job: Job, uid: str) -> None:
        self.job, self.uid, self.cluster = job, uid, job.cluster

    def has(self, api: str, plural: str, namespace: str, holds: Callable[[Object], object] = bool) -> bool:
        found = self.cluster.list(path(api, plural, namespace=namespace), labelSelector=f"{UID_LABEL}={self.uid}")
        return any(holds(each) for each in found)

    def forming(self, namespace: str) -> Steps:
        def members(holds: Callable[[Object], object]) -> bool:
            return self.has(DOMAINS, "computedomaincliques", namespace, lambda c: any(map(holds, c["daemons"])))

        mine = self.job.space.name
        return {
            "finalizer": lambda: bool(self.job.domain()["metadata"].get("finalizers")),
            "template": lambda: self.has("resource.k8s.io/v1", "resourceclaimtemplates", mine),
            "membership": lambda: members(bool),
            "daemon claim": lambda: self.has("resource.k8s.io/v1", "resourceclaims", namespace),
            "daemon": lambda: self.has("v1", "pods", namespace),
            "address": lambda: members(lambda member: member["ipAddress"]),
            "release": lambda: members(lambda member: member["released"]),
            "status": lambda: self.job.domain().get("status", {}).get("status") == "Ready",
        }

    def ending(self, namespace: str) -> Steps:
        def member(node: str) -> bool:
            def holds(clique: Object) -> bool:
                return node in [each["nodeName"] for each in clique["daemons"]]

            return self.has(DOMAINS, "computedomaincliques", namespace, holds)

        return {
            "one is told to go": lambda: not (member("n1") and member("n2")),
            "daemons go": lambda: (
                not self.has("v1", "pods", namespace, lambda p: not p["metadata"].get("deletionTimestamp"))
            ),
            "membership gone": lambda: not self.has(DOMAINS, "computedomaincliques", namespace),
            "idle": lambda: self.job.domain()["status"].get("memberNodes") == 0,
        }


def test_a_controller_that_dies_after_each_step_still_forms_the_domain_and_takes_it_down(
    stopped: Driver, here: Space, tmp_path: Path
) -> None:
    job = here.declare("train", 2)
    mortal, view = Mortal(stopped, tmp_path / "controller.log"), View(job, job.uid())
    try:
        job.start(a="n1", b="n2")
        mortal.controller.start()
        mortal.live_through(view.forming(stopped.namespace))
        job.wait_running("a", "b", patience_s=RETRY_S)
        job.wait_ready(2)
        job.share_all_ways("a", "b")
        assert sorted(job.indexes().values()) == [0, 1]
        assert set(job.daemons()) == {"n1", "n2"}
        formed = len(mortal.killed_at)
        for pod in ("a", "b"):
            here.cluster.delete(here.where("v1", "pods", pod))
        mortal.live_through(view.ending(stopped.namespace))
        wait_until("no daemon is left", lambda: not job.daemons(), RETRY_S)
        assert formed >= 4, mortal.killed_at
        assert len(mortal.killed_at) > formed, mortal.killed_at
        job.delete()
        here.cluster.wait_gone(job.place, RETRY_S)
        wait_until("nothing is left", stopped.is_clean, RETRY_S)
    finally:
        mortal.controller.stop()
