"""Certificates for tests: an authority of our own, and the good, expired and self-signed ones that it issues."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ORGANISATION = "Keyferry tests"
DAY = dt.timedelta(days=1)
LOOPBACK_HOSTS = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Validity:
    """When a certificate is valid, in days from now."""

    begins: int = -1
    ends: int = 30


VALID = Validity()
EXPIRED = Validity(begins=-30, ends=-1)
NOT_YET_VALID = Validity(begins=10, ends=30)


@dataclass(frozen=True)
class Certificate:
    """A certificate and its private key, both PEM (the key as unencrypted PKCS #8)."""

    certificate: str
    private_key: str

    @property
    def subject(self) -> str:
        """The subject as RFC 4514 writes it, such as ``CN=broker,O=Keyferry tests``."""
        return x509.load_pem_x509_certificate(self.certificate.encode()).subject.rfc4514_string()

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Write ``name.crt`` and ``name.key`` (mode 0600) into ``directory`` and return both paths."""
        certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
        certificate.write_text(self.certificate)
        key.touch(mode=0o600)
        key.write_text(self.private_key)
        return certificate, key


@dataclass(frozen=True)
class Authority(Certificate):
    """A certificate authority that nobody trusts but the tests."""

    @classmethod
    def create(cls, common_name: str = "Keyferry test authority") -> Authority:
        """Make a new authority, different from every other of the same name."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            _builder(common_name, key, VALID)
            .issuer_name(_name(common_name))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        return cls(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))

    def server(self, hosts: Sequence[str] = LOOPBACK_HOSTS, validity: Validity = VALID) -> Certificate:
        """Issue a server's certificate for the DNS names and IP addresses in ``hosts``."""
        return self._issue(hosts[0], validity, ExtendedKeyUsageOID.SERVER_AUTH, hosts)

    def client(self, common_name: str, validity: Validity = VALID) -> Certificate:
        """Issue a client's certificate, whose subject is ``CN=<common_name>,O=Keyferry tests``."""
        return self._issue(common_name, validity, ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def client_context(self, client: Certificate | None = None, directory: Path | None = None) -> ssl.SSLContext:
        """Return a context that trusts this authority alone; with ``client`` it presents that certificate.

        Python reads a client's certificate from files only: they are written into ``directory``.
        """
        context = ssl.create_default_context(cadata=self.certificate)
        if client is not None:
            if directory is None:
                raise ValueError("a directory is needed for the client's certificate")
            context.load_cert_chain(*client.write(directory, "client"))
        return context

    def _issue(
        self, common_name: str, validity: Validity, usage: x509.ObjectIdentifier, hosts: Sequence[str]
    ) -> Certificate:
        issuer = x509.load_pem_x509_certificate(self.certificate.encode())
        issuer_key = serialization.load_pem_private_key(self.private_key.encode(), None)
        if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
            raise TypeError("an authority's key is an elliptic-curve key")
        key = ec.generate_private_key(ec.SECP256R1())
        authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        builder = (
            _builder(common_name, key, validity)
            .issuer_name(issuer.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(authority_id, critical=False)
        )
        if hosts:
            builder = builder.add_extension(_alternative_names(hosts), critical=False)
        return Certificate(_pem(builder.sign(issuer_key, hashes.SHA256())), _key_pem(key))


def server_context(certificate: Certificate, directory: Path, *, clients: Authority | None = None) -> ssl.SSLContext:
    """Return a server's context; with ``clients`` it takes, but does not insist on, certificates of that authority.

    Python reads a certificate from files only: they are written into ``directory``.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate.write(directory, "server"))
    if clients is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=clients.certificate)
    return context


def self_signed(common_name: str, hosts: Sequence[str] = LOOPBACK_HOSTS, validity: Validity = VALID) -> Certificate:
    """Make a certificate that vouches for itself, for a server or a client that nobody has reason to trust."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(common_name, key, validity)
        .issuer_name(_name(common_name))
        .add_extension(_alternative_names(hosts), critical=False)
    )
    return Certificate(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key))


def _builder(common_name: str, key: ec.EllipticCurvePrivateKey, validity: Validity) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + validity.begins * DAY)
        .not_valid_after(now + validity.ends * DAY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    # RFC 4514 writes the last attribute first: CN=…,O=…
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _alternative_names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return x509.SubjectAlternativeName(names)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
