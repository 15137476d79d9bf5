"""What the shell shows to the planner: only what belongs to a domain, whatever others write into their labels."""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest

from api.client import Conflict
from api.clique import parse_time
from api.ref import Ref
from controller.apply import PartlyApplied
from controller.computedomain.actions import Delete, WriteStatus
from controller.computedomain.execute import Executor
from controller.computedomain.members import plan_members
from controller.computedomain.reconcile import ComputeDomains
from controller.loop import WorkQueue
from controller.metrics import Metrics
from controller.settings import parse_settings

LABEL = "resource.nvidia.com/computeDomain"
SETTINGS = parse_settings([], {"POD_NAMESPACE": "driver", "IMAGE": "partita:dev"}).domains


@dataclass
class _Nothing:
    """The client is not used while only looking, and nobody reads the Events."""

    def report(self, *_: Any) -> None:
        pass


def _domains() -> ComputeDomains:
    nothing: Any = _Nothing()
    return ComputeDomains(nothing, SETTINGS, nothing, Metrics())


async def _delete(domains: ComputeDomains, ref: Ref, answer: dict[str, Any] | None = None) -> None:
    """Without an answer the API server says that the object with this uid is not there."""

    class Server:
        async def delete(self, *_: Any, **__: Any) -> dict[str, Any]:
            if answer is None:
                raise Conflict("DELETE", 409, {"message": "the UID in the precondition does not match"})
            return answer

    client: Any = Server()
    await Executor(client, domains.caches.record, domains._drop).execute(Delete(ref))


def _metadata(name: str, namespace: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}", "resourceVersion": "1", **more}


def _put(domains: ComputeDomains, kind: str, obj: dict[str, Any]) -> None:
    cache, changed = domains.caches[kind]
    cache.record(obj, changed)


def _put_domain(domains: ComputeDomains, name: str = "train", **metadata: Any) -> str:
    spec = {"channel": {"resourceClaimTemplate": {"name": "channel"}}}
    _put(domains, "ComputeDomain", {"metadata": _metadata(name, "team", generation=1, **metadata), "spec": spec})
    return f"team-{name}"


def _put_clique(domains: ComputeDomains, uid: str, namespace: str, node: str) -> None:
    entry = {"nodeName": node, "ipAddress": "10.0.0.1", "cliqueID": "f.0", "index": 0}
    obj = {
        "metadata": _metadata(f"{uid}.f.0", namespace, labels={LABEL: uid}),
        "domainName": uid,
        "domainNamespace": "elsewhere",
        "daemons": [entry],
    }
    _put(domains, "ComputeDomainClique", obj)


def _put_fabric(domains: ComputeDomains, node: str, clique: str, version: str = "4") -> None:
    device = {"name": "channel-0", "attributes": {"cliqueID": {"string": clique}}}
    spec = {"nodeName": node, "devices": [device]}
    _put(domains, "ResourceSlice", {"metadata": {"name": f"s-{node}", "resourceVersion": version}, "spec": spec})


def _put_claim(
    domains: ComputeDomains, uid: str, node: str, second: int = 0, name: str = "", namespace: str = "team"
) -> None:
    parameters = {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "ComputeDomainChannelConfig",
        "domainID": uid,
    }
    opaque = {"driver": "compute-domain.nvidia.com", "parameters": parameters}
    result = {"request": "r", "driver": "compute-domain.nvidia.com", "pool": node, "device": "channel-0"}
    devices = {"results": [result], "config": [{"source": "FromClaim", "opaque": opaque}]}
    allocation = {"devices": devices, "allocationTimestamp": f"2026-01-01T00:00:{second:02}Z"}
    status = {"allocation": allocation, "reservedFor": [{"resource": "pods", "name": "p", "uid": "p"}]}
    _put(domains, "ResourceClaim", {"metadata": _metadata(name or f"c-{uid}", namespace), "status": status})


def test_a_label_in_a_strangers_namespace_makes_nothing_ours() -> None:
    domains = _domains()
    uid = _put_domain(domains)
    labels = {LABEL: uid}
    claim = _metadata("c", "stranger", labels=labels, annotations={"resource.nvidia.com/node": "n"})
    _put(domains, "ResourceClaim", {"metadata": claim})
    _put(domains, "ResourceClaimTemplate", {"metadata": _metadata("t", "stranger", labels=labels)})
    seen = domains.observe(uid, 0.0)
    assert not seen.daemon_claims and not seen.templates


def test_the_template_of_the_wanted_name_is_seen_whoever_made_it() -> None:
    domains = _domains()
    uid = _put_domain(domains)
    _put(domains, "ResourceClaimTemplate", {"metadata": _metadata("channel", "team")})
    assert [template.domain_uid for template in domains.observe(uid, 0.0).templates] == [""]
    assert len(domains.queue) == 1


def _put_two_on_one_node(domains: ComputeDomains) -> tuple[str, str]:
    """The claim of the second has been allocated first."""
    uids = _put_domain(domains), _put_domain(domains, "other")
    for uid, second in zip(uids, (2, 1), strict=True):
        _put_claim(domains, uid, "n1", second)
    _put_fabric(domains, "n1", "f.0")
    return uids


def test_a_node_is_for_the_domain_whose_claim_came_first_unless_the_other_is_there_already() -> None:
    domains = _domains()
    train, other = _put_two_on_one_node(domains)
    members = [plan_members(domains.observe(uid, 0.0), SETTINGS) for uid in (train, other)]
    assert [each.occupied for each in members] == [{"n1": "team/other"}, {}]
    _put_clique(domains, train, "driver", "n1")
    members = [plan_members(domains.observe(uid, 0.0), SETTINGS) for uid in (train, other)]
    assert [each.occupied for each in members] == [{}, {"n1": "team/train"}]


def test_a_daemon_that_leaves_a_node_is_waited_for_and_wakes_those_who_wait() -> None:
    domains = _domains()
    train, _ = _put_two_on_one_node(domains)
    for namespace in ("driver", "stranger"):
        labels, node = {LABEL: "gone"}, {"resource.nvidia.com/node": "n1"}
        claim = {"metadata": _metadata("left", namespace, labels=labels, annotations=node)}
        _put(domains, "ResourceClaim", claim)
    assert domains.observe(train, 0.0).taken == {"n1": "driver/left"}
    domains.queue = WorkQueue()
    claims, changed = domains.caches["ResourceClaim"]
    claims.drop("driver", "left", changed)
    assert len(domains.queue) == 3, "both that want the node, and its own"
    assert domains.observe(train, 0.0).taken == {}


def test_a_membership_that_somebody_forges_keeps_nobody_from_a_node() -> None:
    domains = _domains()
    train, other = _put_two_on_one_node(domains)
    _put_clique(domains, train, "stranger", "n1")
    assert plan_members(domains.observe(other, 0.0), SETTINGS).occupied == {}


def test_a_domain_on_whose_nodes_another_stands_otherwise_is_looked_at() -> None:
    domains = _domains()
    train, other = _put_two_on_one_node(domains)
    domains.queue = WorkQueue()
    domains._plan(other)
    assert len(domains.queue) == 1, "it has come"
    domains.queue = WorkQueue()
    domains._plan(other)
    assert len(domains.queue) == 0, "nothing is new"
    claim, changed = domains.caches["ResourceClaim"]
    claim.drop("team", f"c-{other}", changed)
    domains.queue = WorkQueue()
    domains._plan(other)
    assert len(domains.queue) == 1, "it has left"
    assert plan_members(domains.observe(train, 0.0), SETTINGS).occupied == {}


def test_how_a_rival_stands_follows_its_node_and_its_end_by_force() -> None:
    domains = _domains()
    uid, other = _put_two_on_one_node(domains)
    assert [rival.nodes for rival in domains.observe(uid, 0.0).rivals] == [{"n1"}]
    _put_fabric(domains, "n1", "", version="5")
    assert not domains.observe(uid, 0.0).rivals, "it wants no daemon there"
    _put_fabric(domains, "n1", "f.1", version="6")
    assert [rival.uid for rival in domains.observe(uid, 0.0).rivals] == [other]
    forced = {"resource.nvidia.com/force-delete": "true"}
    deleted = {"deletionTimestamp": "2026-01-02T00:00:00Z", "annotations": forced, "resourceVersion": "7"}
    _put_domain(domains, "other", **deleted)
    assert not domains.observe(uid, 0.0).rivals
    assert [str(claim) for claim in domains.observe(uid, 0.0).leftovers.values()] == [f"team/c-{other}"]


def test_claims_that_name_domains_that_never_were_make_no_rivals_and_one_of_them_is_named() -> None:
    domains = _domains()
    uid, other = _put_two_on_one_node(domains)
    for number in range(3):
        _put_claim(domains, f"invented-{number}", "n1", name=f"c{number}", namespace="stranger")
    seen = domains.observe(uid, 0.0)
    assert [rival.uid for rival in seen.rivals] == [other]
    assert {node: str(claim) for node, claim in seen.leftovers.items()} == {"n1": "stranger/c0"}


def test_a_claim_from_another_namespace_is_no_reason_to_look_around_on_its_node() -> None:
    domains = _domains()
    uid, other = _put_domain(domains), _put_domain(domains, "other")
    for name, namespace in ((uid, "stranger"), (other, "team")):
        _put_claim(domains, name, "n2", namespace=namespace)
    _put_fabric(domains, "n2", "f.0")
    assert not domains.observe(uid, 0.0).rivals


def _foreign(domains: ComputeDomains, number: int) -> None:
    _put_claim(domains, "team-train", "n0", name=f"x{number}", namespace="stranger")


def _invented(domains: ComputeDomains, number: int) -> None:
    _put_claim(domains, f"invented-{number}", "n0", name=f"x{number}", namespace="stranger")


def _own(domains: ComputeDomains, number: int) -> None:
    _put_fabric(domains, f"m{number}", f"f.{number // 16}")
    _put_claim(domains, "team-train", f"m{number}", name=f"x{number}")


def _own_beside_others(domains: ComputeDomains, number: int) -> None:
    """Each of its nodes is wanted by another domain, too."""
    _own(domains, number)
    _put_claim(domains, _put_domain(domains, f"other-{number}"), f"m{number}", name=f"y{number}")


@pytest.mark.parametrize("put", [_foreign, _invented, _own, _own_beside_others])
def test_the_work_of_a_plan_grows_no_faster_than_the_claims_that_anybody_can_make(
    put: Callable[[ComputeDomains, int], None],
) -> None:
    """Every domain that a claim names is planned once, as it is when all have come."""

    def count_calls(claims: int) -> int:
        domains = _domains()
        uid = _put_domain(domains)
        _put_fabric(domains, "n0", "f.0")
        _put_claim(domains, uid, "n0")
        for number in range(claims):
            put(domains, number)
        calls = 0

        def count(*_: object) -> None:
            nonlocal calls
            calls += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            for named in domains.claims.keys("uid"):
                domains._plan(named)
        finally:
            sys.setprofile(before)
        return calls

    assert count_calls(400) < 2.5 * count_calls(200)


def test_a_template_with_the_label_of_a_domain_that_is_gone_is_ours_only_if_that_owns_it() -> None:
    domains = _domains()
    labels = {LABEL: "gone"}
    _put(domains, "ResourceClaimTemplate", {"metadata": _metadata("copied", "stranger", labels=labels)})
    owners = [{"uid": "gone", "kind": "ComputeDomain", "name": "train"}]
    made = _metadata("made", "team", labels=labels, ownerReferences=owners)
    _put(domains, "ResourceClaimTemplate", {"metadata": made})
    assert [template.ref.name for template in domains.observe("gone", 0.0).templates] == ["made"]


def test_a_refused_delete_does_not_hide_the_object_that_has_the_name_now() -> None:
    domains = _domains()
    now = {"metadata": {**_metadata("channel", "team"), "uid": "second"}}
    _put(domains, "ResourceClaimTemplate", now)
    asyncio.run(_delete(domains, Ref("ResourceClaimTemplate", "team", "channel", "first")))
    assert domains.templates.get("team", "channel") is not None
    asyncio.run(_delete(domains, Ref("ResourceClaimTemplate", "team", "channel", "second")))
    assert domains.templates.get("team", "channel") is None


def test_what_somebody_else_has_deleted_meanwhile_is_gone() -> None:
    """The API server answers with what it was about to store then: as terminating, and without a version."""
    domains = _domains()
    uid = _put_domain(domains)
    labels, annotations = {LABEL: uid}, {"resource.nvidia.com/node": "n0"}
    metadata = _metadata("daemon", SETTINGS.namespace, labels=labels, annotations=annotations)
    _put(domains, "ResourceClaim", {"metadata": metadata})
    assert domains.observe(uid, 0.0).daemon_claims
    unstored = {name: value for name, value in metadata.items() if name != "resourceVersion"}
    answer = {"metadata": {**unstored, "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    asyncio.run(_delete(domains, Ref("ResourceClaim", SETTINGS.namespace, "daemon", metadata["uid"]), answer))
    assert not domains.observe(uid, 0.0).daemon_claims


def test_what_was_refused_and_need_not_be_done_any_more_is_forgotten() -> None:
    domains = _domains()
    domains._failures["gone"] = (0.0, ("exceeded quota",))
    assert domains.observe("gone", 0.0).failures
    asyncio.run(domains.reconcile("gone"))
    assert not domains.observe("gone", 0.0).failures


def test_a_daemon_that_ends_gets_its_time_by_our_own_count_whatever_our_clock_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    domains = _domains()
    metadata = _metadata("p", "driver", labels={LABEL: "gone"}, annotations={"resource.nvidia.com/node": "n"})
    ends = {"deletionTimestamp": "2026-01-01T00:00:10Z", "deletionGracePeriodSeconds": 10}
    _put(domains, "Pod", {"metadata": {**metadata, **ends}})
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    found = []
    # What has no ComputeDomain is kept for three seconds more.
    for passed_s, clock in ((0, "2026-01-01"), (39, "2036-01-01"), (1, "2016-01-01"), (3, "2016-01-01")):
        now += passed_s
        at = parse_time(f"{clock}T00:00:00Z")
        monkeypatch.setattr(time, "time", lambda at=at: at)
        found.append(domains._plan("gone").actions)
    assert found == [(), (), (), (Delete(Ref("Pod", "driver", "p", "driver-p"), at_once=True),)]


def test_a_clock_that_is_set_back_makes_no_write_wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    domains = _domains()
    uid = _put_domain(domains, finalizers=[LABEL])
    made = _metadata("channel", "team", labels={LABEL: uid}, ownerReferences=[{"uid": uid}])
    _put(domains, "ResourceClaimTemplate", {"metadata": made})
    assert not domains._plan(uid).actions, "the first status waits for pods"
    now = time.monotonic() + 1.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert [type(action) for action in domains._plan(uid).actions] == [WriteStatus]


def test_a_node_that_publishes_another_clique_wakes_the_domains_that_use_it() -> None:
    domains = _domains()
    uid = _put_domain(domains)
    _put_claim(domains, uid, "n1")
    domains.queue = WorkQueue()
    _put_fabric(domains, "n1", "f.3")
    assert domains.observe(uid, 0.0).fabric == {"n1": "f.3"}
    assert len(domains.queue) == 1


class OneWhoseDeletesChangeNothing:
    """An API server that answers a delete with the object, which somebody's finalizer holds."""

    def __init__(self, pod: dict[str, Any], domain: dict[str, Any]) -> None:
        self.pod, self.domain = pod, domain

    async def delete(self, *_: Any, **__: Any) -> dict[str, Any]:
        return self.pod

    async def patch(self, path: str, body: dict[str, Any], *_: Any) -> dict[str, Any]:
        assert path.endswith("/computedomains/train/status")
        metadata = {**self.domain["metadata"], "resourceVersion": "2"}
        self.domain = {**self.domain, "metadata": metadata, "status": body["status"]}
        return self.domain


def test_a_daemon_pod_that_somebody_holds_is_told_in_the_status_instead_of_stopping_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metadata = _metadata("train", "team", generation=1, finalizers=[LABEL])
    spec = {"channel": {"resourceClaimTemplate": {"name": "channel"}}}
    theirs = _metadata("p", "driver", labels={LABEL: "team-train"}, annotations={"resource.nvidia.com/node": "n"})
    pod = {"metadata": {**theirs, "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["example.com/x"]}}
    server: Any = OneWhoseDeletesChangeNothing(pod, {"metadata": metadata, "spec": spec})
    domains = ComputeDomains(server, SETTINGS, cast(Any, _Nothing()), Metrics())
    _put(domains, "ComputeDomain", server.domain)
    _put(domains, "Pod", pod)
    labels, owners = {LABEL: "team-train"}, [{"uid": "team-train"}]
    _put(
        domains,
        "ResourceClaimTemplate",
        {"metadata": _metadata("channel", "team", labels=labels, ownerReferences=owners)},
    )
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    domains._plan("team-train")
    for _ in range(2):
        now += 60.0
        with pytest.raises(PartlyApplied, match="is still to be done"):
            asyncio.run(domains.reconcile("team-train"))
    (degraded,) = [each for each in server.domain["status"]["conditions"] if each["type"] == "Degraded"]
    assert degraded["reason"] == "ActionFailed"
    assert "Pod driver/p" in degraded["message"]
