"""Certificates of IMEX daemons, as TLS libraries take them."""

import base64
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from api.clique import ANY_NODE_NAME, node_name
from controller.computedomain.tls import KEPT, Authorities

Json = dict[str, Any]


@dataclass
class Node:
    """What stays on a node: its key."""

    name: str
    index: int
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def entry(self) -> Json:
        x962, compressed = serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        point = base64.b64encode(self.key.public_key().public_bytes(x962, compressed)).decode()
        return {"nodeName": self.name, "index": self.index, "publicKey": point, "certificate": ""}

    def context(self, clique: Json, folder: Path, *, server: bool) -> ssl.SSLContext:
        """With the certificate that a ComputeDomainClique has for it, and trust in the authorities that that names."""
        (entry,) = [each for each in clique["daemons"] if each["nodeName"] == self.name]
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        key = self.key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        file = folder / f"{self.name}.pem"
        file.write_bytes(entry["certificate"].encode() + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(file)
        context.load_verify_locations(cadata="".join(clique["authorities"]))
        return context


def make_clique(*nodes: Node, **fields: Any) -> Json:
    return {"authorities": [], "daemons": [node.entry for node in nodes], **fields}


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """Mutual TLS in memory. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    for end in ends:
        end.do_handshake()


def test_members_know_each_other_by_name_and_by_the_name_that_all_have(tmp_path: Path) -> None:
    one, two = Node("one", 0), Node("two", 1)
    clique = Authorities().certify("d.f", make_clique(one, two))
    for name in (node_name(1), ANY_NODE_NAME):
        shake_hands(one.context(clique, tmp_path, server=False), two.context(clique, tmp_path, server=True), name)
    with pytest.raises(ssl.SSLError, match="Hostname mismatch"):
        shake_hands(
            one.context(clique, tmp_path, server=False), two.context(clique, tmp_path, server=True), node_name(0)
        )


def test_a_member_of_another_domain_is_refused_with_the_same_key_and_name(tmp_path: Path) -> None:
    one, two = Node("one", 0), Node("two", 1)
    authorities = Authorities()
    ours, theirs = (authorities.certify(name, make_clique(one, two)) for name in ("ours.f", "theirs.f"))
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        shake_hands(one.context(ours, tmp_path, server=False), two.context(theirs, tmp_path, server=True), node_name(1))


def test_after_another_controller_has_signed_for_a_newcomer_all_members_trust_each_other(tmp_path: Path) -> None:
    one, two = Node("one", 0), Node("two", 1)
    before = Authorities().certify("d.f", make_clique(one))
    joined = {**before, "daemons": [*before["daemons"], two.entry]}
    after = Authorities().certify("d.f", joined)
    assert after["daemons"][0] == before["daemons"][0]
    assert after["authorities"][0] == before["authorities"][0] and len(after["authorities"]) == 2
    pair = ((one, two, node_name(1)), (two, one, node_name(0)))
    for client, server, name in pair:
        shake_hands(client.context(after, tmp_path, server=False), server.context(after, tmp_path, server=True), name)


def test_an_authority_whose_members_have_all_left_is_trusted_no_longer() -> None:
    one, two, three = (Node(name, index) for index, name in enumerate(("one", "two", "three")))
    before = Authorities().certify("d.f", make_clique(one))
    other = Authorities()
    both = other.certify("d.f", {**before, "daemons": [*before["daemons"], two.entry]})
    left = {**both, "daemons": [both["daemons"][1], three.entry]}
    assert other.certify("d.f", left)["authorities"] == both["authorities"][1:]


def test_an_authority_is_trusted_no_longer_than_its_last_member_stays_also_when_nothing_is_to_be_signed() -> None:
    one, two = Node("one", 0), Node("two", 1)
    before = Authorities().certify("d.f", make_clique(one))
    other = Authorities()
    both = other.certify("d.f", {**before, "daemons": [*before["daemons"], two.entry]})
    left = {**both, "daemons": both["daemons"][1:]}
    assert other.certify("d.f", left) == {**left, "authorities": both["authorities"][1:]}
    assert other.certify("d.f", {**both, "daemons": []})["authorities"] == []


def test_a_node_whose_clock_is_months_behind_the_controllers_takes_part() -> None:
    clique = Authorities().certify("d.f", make_clique(Node("one", 0)))
    for pem in (clique["daemons"][0]["certificate"], *clique["authorities"]):
        begins = x509.load_pem_x509_certificate(pem.encode()).not_valid_before_utc
        assert begins < datetime.now(UTC) - timedelta(days=180)


def test_what_is_complete_is_not_touched_and_a_node_without_a_key_gets_none() -> None:
    authorities = Authorities()
    keyless = {"nodeName": "none", "index": 1, "publicKey": "", "certificate": ""}
    clique = authorities.certify("d.f", {"authorities": [], "daemons": [Node("one", 0).entry, keyless]})
    assert authorities.certify("d.f", clique) == clique
    assert clique["daemons"][1] == keyless
    without = {"authorities": [], "daemons": [keyless]}
    assert authorities.certify("plain.f", without) == without


@pytest.mark.parametrize("key", ["", "QUJD", "not base64!", base64.b64encode(b"\x05" + b"\xff" * 32).decode()])
def test_a_malformed_key_or_a_spoilt_certificate_is_no_harm_to_the_others(key: str) -> None:
    one = Node("one", 0)
    spoilt = {"nodeName": "bad", "index": 1, "publicKey": key, "certificate": ""}
    torn = {"nodeName": "torn", "index": 2, "publicKey": "k", "certificate": "-----BEGIN CERTIFICATE-----"}
    clique = Authorities().certify("d.f", {"authorities": ["torn"], "daemons": [one.entry, spoilt, torn]})
    first, *others = clique["daemons"]
    (authority,) = clique["authorities"]
    issuer = x509.load_pem_x509_certificate(authority.encode())
    x509.load_pem_x509_certificate(first["certificate"].encode()).verify_directly_issued_by(issuer)
    assert others == [spoilt, torn]


def test_an_authority_that_was_forgotten_is_followed_by_another() -> None:
    one = Node("one", 0)
    authorities = Authorities()
    first = authorities.certify("d.f", make_clique(one))
    assert authorities.certify("d.f", make_clique(one))["authorities"] == first["authorities"]
    for number in range(KEPT):
        authorities.certify(f"{number}.f", make_clique(one))
    assert authorities.certify("d.f", make_clique(one))["authorities"] != first["authorities"]
