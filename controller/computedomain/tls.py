"""Certificates of IMEX domains: an authority for each, and a certificate for each member's own key.

An authority's key is in this process's memory and nowhere else, a member's key on its node and nowhere else. So a
controller that starts anew brings another authority when it has something to sign; the daemons trust all that their
ComputeDomainClique names.
"""

import base64
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from api.clique import ANY_NODE_NAME, node_name

log = logging.getLogger(__name__)

Json = dict[str, Any]

LIFETIME: Final = timedelta(days=3650)
"""Of authorities and certificates alike. A domain ends them by ending: nobody is told to trust them any more."""
CLOCK_SKEW: Final = timedelta(days=365)
"""Nodes' clocks may be this far behind the controller's. Nothing depends on when a certificate was made."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Of one IMEX domain."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(clique: str, now: datetime) -> Authority:
    """For the IMEX domain of this ComputeDomainClique. Another call makes another one, with a name of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"imex authority of {clique}"[:64]),  # RFC 5280 ub-common-name
            x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{x509.random_serial_number():x}"),
        ]
    )
    certificate = (
        _builder(subject, subject, key.public_key(), now, now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_sign_only(), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def certify(fields: Json, authority: Authority, now: datetime) -> Json:
    """The fields of a ComputeDomainClique, with a certificate for each member that has a key and none."""
    daemons = [_certify_entry(entry, authority, now) for entry in fields["daemons"]]
    own = _pem(authority.certificate)
    known = [each for each in fields["authorities"] if each != own]
    return forget_authorities({**fields, "daemons": daemons, "authorities": [*known, own]})


def forget_authorities(fields: Json) -> Json:
    """The fields of a ComputeDomainClique without the authorities that no member's certificate is from."""
    members = _load(entry["certificate"] for entry in fields["daemons"] if entry["certificate"])
    kept = [pem for pem in fields["authorities"] if any(_has_issued(each, members) for each in _load([pem]))]
    return {**fields, "authorities": kept}


def is_complete(fields: Json) -> bool:
    """Nothing is to be signed."""
    return not any(entry["publicKey"] and not entry["certificate"] for entry in fields["daemons"])


def _certify_entry(entry: Json, authority: Authority, now: datetime) -> Json:
    if entry["certificate"] or not entry["publicKey"]:
        return entry
    try:
        key = read_public_key(entry["publicKey"])
    except ValueError as error:  # its daemon stays alone and says so; the others are none the worse for it
        log.error("public_key_malformed", extra={"node": entry["nodeName"], "error": str(error)})
        return entry
    names = (node_name(entry["index"]), ANY_NODE_NAME, "localhost")
    return {**entry, "certificate": _pem(_make_certificate(names, key, authority, now))}


def read_public_key(text: str) -> ec.EllipticCurvePublicKey:
    """`api.clique.KEY_ATTRIBUTE`. Raises ValueError for anything that is no point of P-256."""
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), base64.b64decode(text, validate=True))


def _make_certificate(
    names: tuple[str, ...], key: ec.EllipticCurvePublicKey, authority: Authority, now: datetime
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    issuer = authority.certificate
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        _builder(subject, issuer.subject, key, now, min(now + LIFETIME, issuer.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )


def _load(stored: Iterable[str]) -> list[x509.Certificate]:
    """What somebody has spoilt is none."""
    loaded = []
    for pem in stored:
        try:
            loaded.append(x509.load_pem_x509_certificate(pem.encode()))
        except ValueError as error:
            log.warning("certificate_malformed", extra={"error": str(error)})
    return loaded


def _has_issued(authority: x509.Certificate, members: Iterable[x509.Certificate]) -> bool:
    for certificate in members:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, InvalidSignature):
            continue
        return True
    return False


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, expires: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(expires)
    )


def _sign_only() -> x509.KeyUsage:
    unused = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **unused)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


KEPT: Final = 4096
"""Authorities that one process remembers: of more IMEX domains than it has seen lately."""


class Authorities:
    """Those that this process has made. One that is forgotten is followed by another: nothing is lost by that."""

    def __init__(self) -> None:
        self._made: dict[str, Authority] = {}

    def certify(self, clique: str, fields: Json) -> Json:
        """`certify` by the authority of this IMEX domain, which is made only when there is something to sign."""
        if is_complete(fields):
            return forget_authorities(fields)
        now = datetime.now(UTC)
        authority = self._made.pop(clique, None) or make_authority(clique, now)
        self._made[clique] = authority  # the last one now
        while len(self._made) > KEPT:
            del self._made[next(iter(self._made))]
        return certify(fields, authority, now)

    def forget(self, clique: str) -> None:
        self._made.pop(clique, None)
