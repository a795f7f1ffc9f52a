"""A certificate authority of the installation's own, and what it issues. Pure: it decides, signs and stores nothing.

An authority is trusted for a while before anything is issued by it, and for a while after, so that nobody who read the
bundle some time ago refuses what is served now.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keyferry.secret import SecretValue

if TYPE_CHECKING:
    from collections.abc import Sequence

SKEW: Final = dt.timedelta(hours=1)
"""By how much clocks may differ: certificates are valid that long before they are made."""
DAMAGED: Final = "what is kept of the serving certificate is damaged"


@dataclass(frozen=True, slots=True)
class Lives:
    """How long things are good for. The defaults are right for clusters."""

    authority: dt.timedelta = dt.timedelta(days=730)
    certificate: dt.timedelta = dt.timedelta(days=30)
    overlap: dt.timedelta = dt.timedelta(days=2)
    """For which an authority is trusted before it issues anything, and after it issued its last."""


DEFAULT_LIVES: Final = Lives()


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate with its private key, both PEM."""

    certificate: str
    key: SecretValue = field(repr=False)

    @property
    def x509(self) -> x509.Certificate:
        """The certificate, parsed. Raises ValueError."""
        return x509.load_pem_x509_certificate(self.certificate.encode())


@dataclass(frozen=True, slots=True)
class Serving:
    """All that replicas share: the authorities, oldest first, and the certificate that they serve with."""

    authorities: tuple[Pair, ...]
    certificate: Pair

    @property
    def bundle(self) -> str:
        """The certificates of all authorities to trust, in PEM."""
        return "".join(pair.certificate for pair in self.authorities)

    def to_data(self) -> dict[str, str]:
        """Return it as the entries of a Secret of type ``kubernetes.io/tls``; two of them hold private keys."""
        pairs = [{"certificate": pair.certificate, "key": pair.key.reveal()} for pair in self.authorities]
        return {
            "tls.crt": self.certificate.certificate,
            "tls.key": self.certificate.key.reveal(),
            "ca.crt": self.bundle,
            "authorities": json.dumps(pairs),
        }

    @staticmethod
    def from_data(data: dict[str, str]) -> Serving:
        """Return what ``to_data`` made. Raises ValueError, which repeats none of it."""
        try:
            parsed: list[dict[str, Any]] = json.loads(data["authorities"])
            pairs = tuple(Pair(str(each["certificate"]), SecretValue(str(each["key"]))) for each in parsed)
            found = Serving(pairs, Pair(data["tls.crt"], SecretValue(data["tls.key"])))
            whole = pairs and all(_belong_together(pair) for pair in (*found.authorities, found.certificate))
        except (KeyError, TypeError, ValueError, UnicodeError):
            raise ValueError(DAMAGED) from None
        if not whole:
            raise ValueError(DAMAGED)
        return found


def advanced(serving: Serving | None, hosts: Sequence[str], now: dt.datetime, lives: Lives = DEFAULT_LIVES) -> Serving:
    """Return what is to be kept and served at ``now``: ``serving`` itself, where there is nothing to do.

    ``hosts`` are the names and addresses that the certificate is to be good for; the first is its common name.
    """
    if serving is None or not any(_left(pair, now) > dt.timedelta() for pair in serving.authorities):
        first = new_authority(now, lives)
        return Serving((first,), issue(first, hosts, now, lives))
    authorities = serving.authorities
    if _left(authorities[-1], now) < lives.authority / 3:
        authorities = (*authorities, new_authority(now, lives))
    signer = _signer(authorities, now, lives)
    certificate = serving.certificate
    # Its issuer may be one whose key was lost with a Secret that somebody wrote over.
    issued = _is_issued_by(certificate, signer)
    if not issued or _hosts_of(certificate) != set(hosts) or _left(certificate, now) < lives.certificate / 3:
        certificate = issue(signer, hosts, now, lives)
    settled = _age(certificate, now) > lives.overlap and _is_issued_by(certificate, signer)
    kept = tuple(
        pair
        for index, pair in enumerate(authorities)
        if _left(pair, now) > dt.timedelta() and not (settled and index < authorities.index(signer))
    )
    if (kept, certificate) == (serving.authorities, serving.certificate):
        return serving
    return replace(serving, authorities=kept, certificate=certificate)


def new_authority(now: dt.datetime, lives: Lives) -> Pair:
    """Make an authority, which issues nothing but servers' certificates."""
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # No two of one name: a client that trusts both looks an issuer up by its name.
    name = _name(f"Keyferry authority {serial:040x}"[:59])
    usage = x509.KeyUsage(
        digital_signature=False,
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
        _builder(name, name, key, now, lives.authority)
        .serial_number(serial)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Pair, hosts: Sequence[str], now: dt.datetime, lives: Lives) -> Pair:
    """Issue a server's certificate for the names and addresses in ``hosts``."""
    issuer = authority.x509
    issuer_key = load_pem_private_key(authority.key.reveal().encode(), None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise TypeError("the authority's key is of a kind that is not ours")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(hosts[0][:64]), issuer.subject, key, now, lives.certificate)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


def _belong_together(pair: Pair) -> bool:
    return load_pem_private_key(pair.key.reveal().encode(), None).public_key() == pair.x509.public_key()


def _signer(authorities: Sequence[Pair], now: dt.datetime, lives: Lives) -> Pair:
    """Return the newest authority that everybody knows by now, or else the oldest that is still good."""
    good = [pair for pair in authorities if _left(pair, now) > dt.timedelta()]
    known = [pair for pair in good if _age(pair, now) > lives.overlap]
    return known[-1] if known else good[0]


def _is_issued_by(certificate: Pair, authority: Pair) -> bool:
    try:
        certificate.x509.verify_directly_issued_by(authority.x509)
    except Exception:  # noqa: BLE001 - whatever it says, it is not the one
        return False
    return True


def _hosts_of(certificate: Pair) -> set[str]:
    try:
        names = certificate.x509.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {str(name.value) for name in names}


def _left(pair: Pair, now: dt.datetime) -> dt.timedelta:
    return pair.x509.not_valid_after_utc - now


def _age(pair: Pair, now: dt.datetime) -> dt.timedelta:
    return now - pair.x509.not_valid_before_utc - SKEW


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime, life: dt.timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Pair(certificate.public_bytes(Encoding.PEM).decode(), SecretValue(private.decode()))


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
