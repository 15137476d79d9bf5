"""Certificates of one IMEX domain: an authority of its own, and one certificate that its daemons share.

Whoever holds the certificate's key is a member of that IMEX domain and of no other. The authority's key stays in the
Secret and is mounted nowhere, so that a certificate can be renewed without the members losing each other.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME: Final = timedelta(days=3650)
CERTIFICATE_LIFETIME: Final = timedelta(days=365)
RENEW_BEFORE: Final = timedelta(days=120)
CLOCK_SKEW: Final = timedelta(minutes=10)
"""Nodes' clocks may be this far behind."""


@dataclass(frozen=True, slots=True)
class Authority:
    """PEM of a certificate authority."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files of one Secret, and when to renew them."""

    authority: Authority
    certificate: bytes
    key: bytes
    renew_at: datetime

    @property
    def files(self) -> dict[str, bytes]:
        return {
            "ca.crt": self.authority.certificate,
            "ca.key": self.authority.key,
            "tls.crt": self.certificate,
            "tls.key": self.key,
        }


def make_certificates(domain: str, names: list[str], now: datetime, authority: Authority | None) -> Certificates:
    """Make (or, with an authority, renew) the certificate for daemons that are known by these DNS names."""
    authority = authority or _make_authority(domain, now)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signer = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    expires = min(now + CERTIFICATE_LIFETIME, issuer.not_valid_after_utc)
    certificate = (
        _builder(f"imex daemon of {domain}", issuer.subject, key, now, expires)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return Certificates(authority, pem, _pem(key), (expires - RENEW_BEFORE).astimezone(UTC))


def _make_authority(domain: str, now: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = f"imex authority of {domain}"
    certificate = (
        _builder(subject, _name(subject), key, now, now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_sign_only(), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate.public_bytes(serialization.Encoding.PEM), _pem(key))


def _builder(
    subject: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, expires: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(expires)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # 64: RFC 5280 ub-common-name


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


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
