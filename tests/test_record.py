import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import StoreError
from keyferry.model import ObjectKey, TokenSet
from keyferry.question import Account
from keyferry.record import Binding, Chain, Claim, Record, Revocation
from keyferry.record_json import decode, dumps, encode, loads
from keyferry.secret import SecretValue

FULL = Record(
    uid="u-1",
    key=ObjectKey("batch", "nightly"),
    origin="here",
    source="/etc/keyferry/a.yaml",
    generation=7,
    revision=9,
    spec_hash="abc",
    binding=Binding("https://issuer.example.org", ("issuer.example.org",), "bot"),
    seed="5eed",
    refresh_token=SecretValue("refresh-secret"),
    refresh_issued_at=1.5,
    refresh_expires_at=100.0,
    refresh_idle=98.5,
    refresh_slides=True,
    session_started_at=1.0,
    session_expires_at=900.5,
    session_notices=1,
    authorized_as=Account("s", "ada@example.org"),
    refresh_ended="",
    claim=Claim("digest", "attempt", 2, "host:1", 5.0, 10.0),
    token=TokenSet(
        SecretValue("access-secret"), "Bearer", 1.5, 61.5, scope="a b", id_token=SecretValue("id-secret"), subject="s"
    ),
    login=TokenSet(SecretValue("login-secret"), "Bearer", 1.5, 61.5),
    api_keys=("0123abcd", "4567cdef"),
    renewal_time=40.25,
    minimum_remaining=5.0,
    revocation=Revocation("Revoke", {"type": "OAuth"}, None, "batch", "TokenProvider"),
    wrong_subject=True,
    previous=Chain(
        "s33d",
        SecretValue("former-secret"),
        1.0,
        None,
        None,
        1.0,
        Binding("i", ("h",), "c"),
        Account("t", name="Grace"),
    ),
    planting="p1ant",
    keepsakes=(("config/batch/ca/pem", SecretValue("kept-secret")),),
    buried_at=70.0,
)


@pytest.mark.parametrize("record", [FULL, Record(uid="u", key=ObjectKey("a", "b"))])
def test_a_record_survives_its_encoding(record: Record) -> None:
    assert loads(dumps(record, 3)) == (record, 3)


def test_a_printed_record_shows_no_secret() -> None:
    assert "secret" not in repr(FULL).replace("SecretValue", "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version": 1}',
        b'{"version": "1", "record": {}}',
        b'{"version": 1, "record": {"schema": 1}}',
        b'{"version": 1, "record": []}',
        b'{"version": 1, "record": {"schema": 1, "uid": "u", "namespace": "a", "name": "b", "claim": {"x": 1}}}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_record_is_told_as_such(data: bytes) -> None:
    with pytest.raises(StoreError, match="damaged"):
        loads(data)


def test_a_record_of_a_newer_version_is_not_guessed_at() -> None:
    data = json.dumps({"version": 1, "record": encode(FULL) | {"schema": 2}}).encode()
    with pytest.raises(StoreError, match="schema 2"):
        loads(data)


@given(cut=st.integers(0, len(dumps(FULL, 3)) - 1))
def test_a_truncated_record_never_passes_and_never_shows_its_content(cut: int) -> None:
    with pytest.raises(StoreError) as caught:
        loads(dumps(FULL, 3)[:cut])
    assert "secret" not in str(caught.value)


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_arbitrary_data_is_refused_without_another_error(data: object) -> None:
    with pytest.raises(StoreError):
        decode(data)


def test_settling_a_claim_changes_nothing_else() -> None:
    assert FULL.without_claim() == replace(FULL, claim=None)
