from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from keyferry.errors import CredentialError, Reason, RetryClass
from keyferry.io.tls import ClientCertificate, TlsSettings, build_context
from keyferry.secret import SecretValue
from tests.support.pki import Authority, server_context

if TYPE_CHECKING:
    from pathlib import Path

GARBAGE = "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n"
GARBAGE_KEY = "-----BEGIN PRIVATE KEY-----\nbm90IGEga2V5\n-----END PRIVATE KEY-----\n"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


def presenting(chain: str, key: str) -> TlsSettings:
    return TlsSettings(client=ClientCertificate(chain, SecretValue(key)))


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Carry out a handshake in memory and return both ends; raise what either raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [ours, theirs]
    while waiting:
        for end in list(waiting):
            try:
                end.do_handshake()
                waiting.remove(end)
            except ssl.SSLWantReadError:
                continue
    return ours, theirs


def _descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - links, not files


def test_the_system_is_trusted_by_default_and_everything_is_verified() -> None:
    context = build_context(TlsSettings())
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.cert_store_stats() == _system_store()


def _system_store() -> dict[str, int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    return dict(context.cert_store_stats())


def test_a_bundle_replaces_the_system(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create("Another authority")
    bundle = f"# Größe: zwei\n{other.certificate}\nsubject=CN = x\n{authority.certificate}"
    context = build_context(TlsSettings(authorities=bundle))
    assert context.cert_store_stats()["x509"] == 2

    server = server_context(authority.server(["auth.example.org"]), tmp_path)
    ours, _ = handshake(context, server, "auth.example.org")
    assert ours.version() in {"TLSv1.2", "TLSv1.3"}
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(context, server, "other.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(build_context(TlsSettings(authorities=other.certificate)), server, "auth.example.org")


def test_the_servers_own_certificate_can_be_the_whole_bundle(authority: Authority, tmp_path: Path) -> None:
    certificate = authority.server(["auth.example.org"])
    context = build_context(TlsSettings(authorities=certificate.certificate))
    handshake(context, server_context(certificate, tmp_path), "auth.example.org")


def test_older_tls_is_not_spoken(authority: Authority, tmp_path: Path) -> None:
    server = server_context(authority.server(["auth.example.org"]), tmp_path)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        server.minimum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        server.maximum_version = ssl.TLSVersion.TLSv1_1
    server.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        handshake(build_context(TlsSettings(authorities=authority.certificate)), server, "auth.example.org")


def test_a_client_certificate_is_shown_and_leaves_no_file(authority: Authority, tmp_path: Path) -> None:
    server = server_context(authority.server(["auth.example.org"]), tmp_path)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(cadata=authority.certificate)
    issued = authority.client("nightly-bot")
    before = _descriptors()
    context = build_context(
        TlsSettings(authority.certificate, ClientCertificate(issued.certificate, SecretValue(issued.private_key)))
    )
    assert _descriptors() == before

    _, theirs = handshake(context, server, "auth.example.org")
    shown = theirs.getpeercert()
    assert shown is not None
    assert ((("commonName", "nightly-bot"),)) in shown["subject"]


def test_what_is_wrong_with_a_bundle_is_said(authority: Authority) -> None:
    for bundle, words in (
        ("", "the CA bundle holds no PEM certificate"),
        ("not PEM", "the CA bundle holds no PEM certificate"),
        (authority.private_key, "the CA bundle holds no PEM certificate"),
        (authority.certificate + GARBAGE, "the CA bundle is malformed"),
        (authority.certificate + authority.certificate[:-30], "the CA bundle is malformed"),
        (authority.certificate.replace("M", "é"), "the CA bundle is malformed"),
    ):
        with pytest.raises(CredentialError) as caught:
            build_context(TlsSettings(authorities=bundle))
        assert caught.value.message == words
        assert caught.value.retry is RetryClass.NEEDS_CONFIGURATION
        assert caught.value.reason is Reason.SECRET_NOT_FOUND


def test_what_is_wrong_with_a_client_certificate_is_said(authority: Authority) -> None:
    good, other = authority.client("a"), authority.client("b")
    key = serialization.load_pem_private_key(good.private_key.encode(), None)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    encrypted = key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"passphrase")).decode()
    traditional = key.private_bytes(
        pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.BestAvailableEncryption(b"passphrase")
    ).decode()
    small = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    rsa_key = small.private_bytes(pem, pkcs8, serialization.NoEncryption()).decode()
    edwards = ed25519.Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, serialization.NoEncryption()).decode()
    for chain, private, words in (
        ("", good.private_key, "the client certificate holds no PEM certificate"),
        (good.private_key, good.private_key, "the client certificate holds no PEM certificate"),
        (good.certificate, "", "the client certificate's key holds no PEM private key"),
        (good.certificate, good.certificate, "the client certificate's key holds no PEM private key"),
        (good.certificate, encrypted, "the client certificate's key is encrypted; store it without a passphrase"),
        (good.certificate, traditional, "the client certificate's key is encrypted; store it without a passphrase"),
        (good.certificate, other.private_key, "the client certificate and its key do not belong together"),
        (good.certificate, rsa_key, "the client certificate and its key do not belong together"),
        (good.certificate, edwards, "the client certificate and its key do not belong together"),
        (GARBAGE, good.private_key, "the client certificate is malformed"),
        (good.certificate, good.private_key + "é", "the client certificate's key holds no PEM private key"),
        (good.certificate, GARBAGE_KEY, "the client certificate's key is malformed"),
        (good.certificate, good.private_key[:-60], "the client certificate's key is malformed"),
    ):
        with pytest.raises(CredentialError) as caught:
            build_context(presenting(chain, private))
        assert caught.value.message == words
        assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_settings_are_a_key_that_does_not_show_the_private_key(authority: Authority) -> None:
    issued = authority.client("a")
    one, same = presenting(issued.certificate, issued.private_key), presenting(issued.certificate, issued.private_key)
    assert one == same
    assert len({one, same, TlsSettings()}) == 2
    assert issued.private_key.splitlines()[1] not in repr(one)


def test_session_keys_are_not_logged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert build_context(TlsSettings()).keylog_filename is None
    assert not (tmp_path / "keys").exists()
