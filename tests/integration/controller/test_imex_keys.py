"""Keys of IMEX daemons: nodes publish the public halves, the controller signs, and nobody stores the private ones."""

from pathlib import Path

import pytest
from cryptography import x509

from api.clique import ANY_NODE_NAME, node_name
from tests.support.cluster import Cluster, CommandFailed, Object, path, wait_until
from tests.support.computedomain import (
    DOMAINS,
    FABRIC,
    NAMESPACE,
    RELEASE,
    Controller,
    Kubelets,
    build_domain,
    make_public_key,
    publish,
    write_kubeconfig,
)
from tests.support.domain_controller_world import World, controller, kubelets, world

__all__ = ["controller", "kubelets", "world"]


def clique_of(world: World) -> Object:
    (clique,) = world.mine(DOMAINS, "computedomaincliques")
    return clique


def members(clique: Object) -> dict[str, Object]:
    return {entry["nodeName"]: entry for entry in clique["daemons"]}


def verify(clique: Object) -> None:
    """Every member has a certificate by an authority of the ComputeDomainClique, for its own name and that of all."""
    authorities = [x509.load_pem_x509_certificate(pem.encode()) for pem in clique["authorities"]]
    by_name = {authority.subject: authority for authority in authorities}
    for entry in clique["daemons"]:
        certificate = x509.load_pem_x509_certificate(entry["certificate"].encode())
        certificate.verify_directly_issued_by(by_name[certificate.issuer])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert {node_name(entry["index"]), ANY_NODE_NAME} <= set(names.get_values_for_type(x509.DNSName))


def test_members_have_certificates_from_the_first_write_on_and_nobody_has_a_secret(
    world: World, controller: Controller, kubelets: Kubelets, tmp_path: Path
) -> None:
    kubelets.ready = False
    world.create(build_domain("keys", 2))
    world.start_workers("cd-a", "cd-b")
    clique = wait_until("there is a membership", lambda: world.mine(DOMAINS, "computedomaincliques"))[0]
    verify(clique)
    kubelets.ready = True
    world.wait_ready(2)
    verify(clique_of(world))
    assert not world.cluster.list(path("v1", "secrets", namespace=NAMESPACE))
    kubeconfig = tmp_path / "controller.kubeconfig"
    write_kubeconfig(world.cluster, f"{RELEASE}-partita-controller", NAMESPACE, kubeconfig)
    with pytest.raises(CommandFailed, match="Forbidden"):
        where = path("v1", "secrets", namespace=NAMESPACE)
        world.cluster.kubectl("get", "--raw", where, f"--kubeconfig={kubeconfig}")


def test_a_controller_that_starts_anew_signs_with_another_authority_and_both_are_trusted(
    world: World, prepared: Cluster, kubelets: Kubelets, tmp_path: Path
) -> None:
    with Controller(prepared, tmp_path / "first.log").leading():
        world.form("joined", "cd-a")
    before = clique_of(world)
    with Controller(prepared, tmp_path / "second.log").leading():
        world.start_workers("cd-b")
        wait_until("both are connected", lambda: [e["status"] for e in clique_of(world)["daemons"]] == ["Ready"] * 2)
        both = clique_of(world)
        verify(both)
        assert len(both["authorities"]) == 2 and both["authorities"][0] == before["authorities"][0]
        assert members(both)["cd-a"]["certificate"] == members(before)["cd-a"]["certificate"]


def test_a_node_that_publishes_another_key_gets_a_certificate_for_it(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    world.form("renewed", "cd-a", "cd-b")
    before = members(clique_of(world))
    key = make_public_key()
    publish(world.cluster, "cd-b", f"{FABRIC}.0", key=key)
    wait_until("the new key has a certificate", lambda: members(clique_of(world))["cd-b"]["publicKey"] == key)
    verify(clique_of(world))
    after = members(clique_of(world))
    assert after["cd-b"]["certificate"] != before["cd-b"]["certificate"]
    assert after["cd-a"]["certificate"] == before["cd-a"]["certificate"]


def test_a_domain_with_a_node_that_publishes_no_key_says_so_and_goes_on_when_it_does(
    world: World, controller: Controller, kubelets: Kubelets
) -> None:
    publish(world.cluster, "cd-b", f"{FABRIC}.0", key="")
    try:
        kubelets.ready = False
        world.create(build_domain("keyless", 2))
        world.start_workers("cd-a", "cd-b")
        wait_until(
            "the member says what it lacks",
            lambda: [
                entry
                for clique in world.mine(DOMAINS, "computedomaincliques")
                for entry in clique["daemons"]
                if entry["nodeName"] == "cd-b" and "publishes no imexPublicKey" in entry["message"]
            ],
        )
    finally:
        publish(world.cluster, "cd-b", f"{FABRIC}.0")
    kubelets.ready = True
    world.wait_ready(2)
    verify(clique_of(world))
