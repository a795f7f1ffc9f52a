"""TLS: towards providers whom to trust, and which certificate to show, to them and to those whom we serve.

Either the system's authorities are trusted or, where a bundle is given, that bundle alone: whoever names a private
authority means it, and a public one that is tricked cannot then stand in for it.
"""

from __future__ import annotations

import os
import re
import ssl
from asyncio.sslproto import SSLProtocol
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyferry.errors import CredentialError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from keyferry.secret import SecretValue

_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_PRIVATE_KEY: Final = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")
_ENCRYPTED: Final = re.compile(r"-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED")


RECORD: Final = 1 << 14
"""Bytes that a TLS record holds at most."""
LITTLE: Final = 1 << 12
"""Bytes that most requests of sidecars fit in."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """What others know us by, as a client (RFC 8705) or a server: both in PEM, intermediates after the certificate."""

    chain: str
    key: SecretValue


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Everything that makes one TLS context unlike another; hashable, so that callers can keep contexts by it."""

    authorities: str | None = None
    """A PEM bundle that replaces the system's authorities."""
    client: ClientCertificate | None = None


def build_context(settings: TlsSettings) -> ssl.SSLContext:
    """Return a context that verifies certificate and host name and speaks TLS 1.2 or later.

    Loading the system's authorities takes some 20 ms: keep the context. Raises `CredentialError` where a PEM text
    cannot be used.
    """
    # Not create_default_context: that writes session keys to SSLKEYLOGFILE, and its flags vary with the Python.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if settings.authorities is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust_only(context, settings.authorities)
    if settings.client is not None:
        present(context, settings.client)
    return context


def build_server_context(certificate: ClientCertificate) -> ssl.SSLContext:
    """Return a context that serves with ``certificate`` and speaks TLS 1.2 or later. Raises `CredentialError`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    present(context, certificate, what="the serving certificate")
    return context


def use_small_buffers() -> None:
    """Let all TLS connections of this process that are made from now on be read a record at a time.

    A record holds 16 kB at most (RFC 8446 5.1), and asyncio sets a quarter of a megabyte aside for every connection to
    read into: too much where thousands of them wait for something small.
    """
    SSLProtocol.max_size = RECORD


def read_little(transport: asyncio.BaseTransport | None) -> None:
    """Let one connection that is open be read 4 kB at a time, if it speaks TLS, and set no more aside for it.

    For one whose client asks little, and may wait long for the answer. asyncio has no option for it: should its insides
    be others one day, the connection works all the same.
    """
    protocol = getattr(transport, "_ssl_protocol", None)
    if isinstance(protocol, SSLProtocol) and hasattr(protocol, "_ssl_buffer_view"):
        # Nothing is in the old one now: what was read is handed on before anybody is told of it.
        buffer = bytearray(LITTLE)
        vars(protocol).update(max_size=LITTLE, _ssl_buffer=buffer, _ssl_buffer_view=memoryview(buffer))


def _trust_only(context: ssl.SSLContext, bundle: str) -> None:
    # Bundles carry comments in any encoding, which the ssl module refuses.
    for certificate in _certificates(bundle, "the CA bundle"):
        try:
            context.load_verify_locations(cadata=certificate)
        except ssl.SSLError:
            raise CredentialError("the CA bundle is malformed") from None
    # A bundle may hold just the issuing intermediate, or the server's own certificate.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _certificates(text: str, where: str) -> list[str]:
    """Return the PEM certificates of a text without what stands between them."""
    found = _CERTIFICATE.findall(text)
    if not found and _BEGIN not in text:
        raise CredentialError(f"{where} holds no PEM certificate")
    if len(found) != text.count(_BEGIN):
        raise CredentialError(f"{where} is malformed")
    return found


def present(context: ssl.SSLContext, certificate: ClientCertificate, *, what: str = "the client certificate") -> None:
    """Show ``certificate`` on every connection that begins from now on. Raises `CredentialError`, which names ``what``.

    A context whose certificate could not be replaced is not to be used any more.
    """
    key = certificate.key.reveal()
    certificates = "\n".join(_certificates(certificate.chain, what)) + "\n"
    if _ENCRYPTED.search(key):
        raise CredentialError(f"{what}'s key is encrypted; store it without a passphrase")
    if not _PRIVATE_KEY.search(key) or not key.isascii():
        raise CredentialError(f"{what}'s key holds no PEM private key")
    with _memory_file(certificates.encode()) as chain_path, _memory_file(key.encode()) as key_path:
        try:
            context.load_cert_chain(chain_path, key_path, password=_no_passphrase)
        except (ssl.SSLError, ValueError):
            problem = _diagnose(certificates, key, what)
        else:
            return
    raise CredentialError(problem)


def _diagnose(certificates: str, key: str, what: str) -> str:
    """Say which of the two is at fault; OpenSSL tells only of some cases."""
    # Ten megabytes, which a sidecar cannot afford, for words that are seldom needed.
    from cryptography import x509  # noqa: PLC0415
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        leaf = x509.load_pem_x509_certificates(certificates.encode())[0]
    except ValueError:
        return f"{what} is malformed"
    try:
        private = load_pem_private_key(key.encode(), password=None)
    except (ValueError, TypeError):
        return f"{what}'s key is malformed"
    except UnsupportedAlgorithm:
        return f"{what}'s key is of a kind that cannot be used"
    if private.public_key() != leaf.public_key():
        return f"{what} and its key do not belong together"
    return f"{what} or its key cannot be used for TLS (its kind, or too short a key)"


def _no_passphrase() -> str:
    # Without this OpenSSL would ask for a passphrase on the terminal.
    raise ValueError("encrypted")


@contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """Give the ssl module, which reads files only, a file that no file system ever holds (memfd_create(2))."""
    descriptor = os.memfd_create("keyferry", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
