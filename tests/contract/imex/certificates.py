"""Certificates for tests, as the controller makes them."""

import base64
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kubeletplugin.make_key import make_key

_PEM = serialization.Encoding.PEM


class Authority:
    """The certificate authority of one IMEX domain."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._build(("authority",), self._key.public_key(), is_authority=True)
        self.certificate = certificate.public_bytes(_PEM).decode()

    def sign(self, public: str, *names: str) -> str:
        """PEM for a key as a node publishes it (`api.clique.KEY_ATTRIBUTE`)."""
        point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), base64.b64decode(public))
        return self._build(names, point, is_authority=False).public_bytes(_PEM).decode()

    def _build(self, names: tuple[str, ...], key: ec.EllipticCurvePublicKey, *, is_authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_name(names[0]))
            .issuer_name(_name("authority"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def write_authority(folder: Path, *names: str) -> None:
    """`ca.crt`, `tls.crt`, `tls.key`: a certificate for `names` from an authority of its own."""
    authority, key = Authority(), make_key()
    (folder / "ca.crt").write_text(authority.certificate)
    (folder / "tls.crt").write_text(authority.sign(key["publicKey"], *names))
    (folder / "tls.key").write_text(key["privateKey"])


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(subject: str) -> x509.GeneralName:
    if subject.replace(".", "").isdigit():
        return x509.IPAddress(ip_address(subject))
    return x509.DNSName(subject)
