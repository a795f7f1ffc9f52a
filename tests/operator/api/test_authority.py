"""The operator's own certificate over the years: always good, and always known to whoever read the bundle lately."""

from __future__ import annotations

import datetime as dt
import json
import ssl

import pytest
from cryptography import x509

from keyferry.io.tls import ClientCertificate, TlsSettings, build_context, build_server_context
from keyferry.secret import SecretValue
from keyferry_operator.api.authority import DEFAULT_LIVES, Lives, Pair, Serving, advanced

START = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
HOSTS = ("keyferry-broker.keyferry.svc", "keyferry-broker", "127.0.0.1")
LIVES = Lives(authority=dt.timedelta(days=30), certificate=dt.timedelta(days=6), overlap=dt.timedelta(days=1))


def known(bundle: str, certificate: Pair) -> bool:
    """Whether one of the authorities in a bundle issued the certificate."""
    for authority in x509.load_pem_x509_certificates(bundle.encode()):
        try:
            certificate.x509.verify_directly_issued_by(authority)
        except Exception:  # noqa: BLE001, S112 - not this one
            continue
        return True
    return False


def test_over_the_years_nobody_is_shown_a_certificate_that_he_does_not_know() -> None:
    step, now = dt.timedelta(hours=6), START
    history: list[tuple[dt.datetime, Serving]] = []
    serving: Serving | None = None
    writes = 0
    for _ in range(4 * 120):
        following = advanced(serving, HOSTS, now, LIVES)
        writes += following is not serving
        serving = following
        history.append((now, serving))
        leaf = serving.certificate.x509
        assert leaf.not_valid_before_utc < now < leaf.not_valid_after_utc - LIVES.certificate / 4
        assert len(serving.authorities) <= 3
        for pair in serving.authorities:
            assert pair.x509.not_valid_after_utc > now
        lately = [held for at, held in history if now - at < LIVES.overlap]
        # Who read the bundle up to a day ago knows what is served now; and a replica that still serves what was
        # served then is known by the bundle of now.
        assert all(known(held.bundle, serving.certificate) for held in lately)
        assert all(known(serving.bundle, held.certificate) for held in lately)
        now += step
    assert serving is not None
    first = history[0][1]
    assert first.authorities[0] not in serving.authorities, "authorities are rotated as well"
    assert writes < 120


def test_nothing_changes_where_nothing_is_due() -> None:
    serving = advanced(None, HOSTS, START)
    assert advanced(serving, HOSTS, START + dt.timedelta(days=1)) is serving
    assert advanced(serving, tuple(reversed(HOSTS)), START) is serving


def test_a_new_name_gets_a_new_certificate_of_the_same_authority() -> None:
    serving = advanced(None, HOSTS, START)
    renamed = advanced(serving, (*HOSTS, "broker.example.org"), START)
    assert renamed.authorities == serving.authorities
    names = renamed.certificate.x509.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "broker.example.org" in names.get_values_for_type(x509.DNSName)


def test_after_a_long_sleep_it_begins_anew() -> None:
    serving = advanced(None, HOSTS, START)
    late = START + DEFAULT_LIVES.authority + dt.timedelta(days=1)
    awake = advanced(serving, HOSTS, late)
    assert known(awake.bundle, awake.certificate)
    assert serving.authorities[0] not in awake.authorities


def test_it_is_kept_whole_and_no_key_is_printed() -> None:
    serving = advanced(None, HOSTS, START)
    assert Serving.from_data(serving.to_data()) == serving
    assert "PRIVATE KEY" not in repr(serving)


@pytest.mark.parametrize("damage", ["drop", "swap", "empty", "no list", "not text"])
def test_what_is_damaged_is_told_and_not_shown(damage: str) -> None:
    data = advanced(None, HOSTS, START).to_data()
    other = advanced(None, HOSTS, START).to_data()
    match damage:
        case "drop":
            del data["tls.key"]
        case "swap":
            data["tls.key"] = other["tls.key"]
        case "empty":
            data["authorities"] = "[]"
        case "no list":
            data["authorities"] = json.dumps({"certificate": "x"})
        case _:
            data["authorities"] = "-----BEGIN"
    with pytest.raises(ValueError, match="damaged") as caught:
        Serving.from_data(data)
    assert "BEGIN" not in str(caught.value)


def test_a_client_that_trusts_the_bundle_shakes_hands() -> None:
    serving = advanced(None, HOSTS, dt.datetime.now(dt.UTC))
    pair = serving.certificate
    server = build_server_context(ClientCertificate(pair.certificate, SecretValue(pair.key.reveal())))
    assert server.minimum_version == ssl.TLSVersion.TLSv1_2
    for host in HOSTS:
        client = build_context(TlsSettings(authorities=serving.bundle))
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        here = client.wrap_bio(to_client, to_server, server_hostname=host)
        there = server.wrap_bio(to_server, to_client, server_side=True)
        for _ in range(4):
            for side in (here, there):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        assert here.version() == "TLSv1.3"
