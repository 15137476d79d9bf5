"""Certificates of IMEX daemons."""

import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509

from controller.computedomain.tls import make_certificates

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_renewed_certificate_is_of_the_same_authority_and_names_every_daemon(tmp_path: Any) -> None:
    made = make_certificates("domain", ["compute-domain-daemon-0000"], NOW, None)
    renewed = make_certificates("domain", ["compute-domain-daemon-0000"], NOW + timedelta(days=300), made.authority)
    assert renewed.authority == made.authority and renewed.key != made.key
    issuer = x509.load_pem_x509_certificate(made.authority.certificate)
    for certificates in (made, renewed):
        certificate = x509.load_pem_x509_certificate(certificates.certificate)
        certificate.verify_directly_issued_by(issuer)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["compute-domain-daemon-0000"]
        assert NOW < certificates.renew_at < certificate.not_valid_after_utc


def test_two_domains_do_not_trust_each_other() -> None:
    one = make_certificates("one", ["a"], NOW, None)
    other = make_certificates("other", ["a"], NOW, None)
    with pytest.raises(ValueError, match="Issuer"):
        x509.load_pem_x509_certificate(one.certificate).verify_directly_issued_by(
            x509.load_pem_x509_certificate(other.authority.certificate)
        )


def test_the_files_are_what_tls_libraries_load(tmp_path: Any) -> None:
    made = make_certificates("domain", ["localhost"], datetime.now(UTC), None)
    for name, content in made.files.items():
        (tmp_path / name).write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    context.load_verify_locations(tmp_path / "ca.crt")
    assert len(context.get_ca_certs()) == 1
