"""Certificates for tests."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def write_authority(folder: Path, *names: str) -> None:
    """`ca.crt`, `tls.crt`, `tls.key`: a certificate for `names` from an authority of its own."""
    now = datetime.now(UTC)

    def build(subjects: tuple[str, ...], key: ec.EllipticCurvePublicKey, authority: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subjects[0])]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([_general_name(subject) for subject in subjects]), critical=False
            )
        )

    root, leaf = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = build(("authority",), root.public_key(), True).sign(root, hashes.SHA256())
    certificate = build(names, leaf.public_key(), False).sign(root, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(authority.public_bytes(pem))
    (folder / "tls.crt").write_bytes(certificate.public_bytes(pem))
    private = leaf.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "tls.key").write_bytes(private)


def _general_name(subject: str) -> x509.GeneralName:
    if subject.replace(".", "").isdigit():
        return x509.IPAddress(ip_address(subject))
    return x509.DNSName(subject)
