"""What a token endpoint's 200 may look like."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyferry.errors import Ambiguous, KeyferryError, Refused, RetryClass
from keyferry.grants.answer import parse_token_answer
from keyferry.grants.claims import unverified_claims
from keyferry.model import HttpResponse, TokenSet
from tests.grants.drive import ISSUER, NOW, answer, inputs, jwt_of

PLAIN = {"access_token": "at", "token_type": "Bearer", "expires_in": 600}


def parse(document: object, *, one_time: bool = False, **changes: object) -> TokenSet:
    return parse_token_answer(answer(document), inputs(**changes), one_time=one_time)


def test_a_plain_answer() -> None:
    tokens = parse(PLAIN | {"refresh_token": "rt", "scope": "read"})
    assert tokens.access_token.reveal() == "at"
    assert tokens.token_type == "Bearer"
    assert tokens.refresh_token is not None
    assert tokens.refresh_token.reveal() == "rt"
    assert (tokens.issued_at, tokens.expires_at, tokens.lifetime) == (NOW, NOW + 600, 600)
    assert tokens.scope == "read"
    assert tokens.publishable
    assert tokens.problem == ""


@pytest.mark.parametrize("status", [200, 201])
def test_a_token_may_be_ok_or_created(status: int) -> None:
    tokens = parse_token_answer(answer(PLAIN, status), inputs(), one_time=False)
    assert tokens.publishable


@pytest.mark.parametrize(
    ("expires_in", "lifetime"),
    [
        (600, 600.0),
        (900.5, 900.5),
        ("600", 600.0),
        (" 600.0 ", 600.0),
        (1, 1.0),
        (86_401, 86_400.0),
        (10**400, 86_400.0),
        ("9" * 5000, 86_400.0),
        (float("inf"), 86_400.0),
        (float("nan"), 300.0),
        (True, 300.0),
        (False, 300.0),
        (None, 300.0),
        ("soon", 300.0),
        ("", 300.0),
        ("1_000", 300.0),
        ([600], 300.0),
    ],
)
def test_lifetime(expires_in: object, lifetime: float) -> None:
    tokens = parse(PLAIN | {"expires_in": expires_in})
    assert tokens.lifetime == lifetime
    assert tokens.publishable


@pytest.mark.parametrize("expires_in", [0, -1, "0", "-5", -0.5, float("-inf"), -(10**400)])
def test_a_token_that_has_expired_already_is_not_published(expires_in: object) -> None:
    tokens = parse(PLAIN | {"expires_in": expires_in, "refresh_token": "rt"})
    assert not tokens.publishable
    assert "expired already" in tokens.problem
    assert tokens.lifetime == 0
    assert tokens.refresh_token is not None


def test_lifetime_is_the_tokens_own_where_the_answer_has_none() -> None:
    token = jwt_of({"exp": NOW + 120, "sub": "s"})
    assert parse({"access_token": token, "token_type": "Bearer"}).expires_at == NOW + 120
    expired = parse({"access_token": jwt_of({"exp": NOW - 1}), "token_type": "Bearer"})
    assert not expired.publishable


def test_the_resource_sets_the_assumption_and_the_cap() -> None:
    assert parse({"access_token": "at", "token_type": "Bearer"}, assumed_lifetime=60.0).lifetime == 60
    assert parse(PLAIN, maximum_lifetime=90.0).lifetime == 90


@pytest.mark.parametrize("token_type", ["Bearer", "bearer", "BEARER", None])
def test_bearer_in_any_spelling(token_type: str | None) -> None:
    tokens = parse(PLAIN | {"token_type": token_type})
    assert tokens.publishable
    assert tokens.token_type == "Bearer"


@pytest.mark.parametrize("token_type", ["DPoP", "mac", "N_A", 5, ""])
def test_other_types_are_kept_and_not_published(token_type: object) -> None:
    tokens = parse(PLAIN | {"token_type": token_type, "refresh_token": "rt"}, one_time=True)
    assert not tokens.publishable
    assert "not Bearer" in tokens.problem
    assert tokens.refresh_token is not None


@pytest.mark.parametrize("token", ["a\nb", "a\r", "\x00", "tök", "\x7f", "\ud800", "a\tb"])
def test_a_token_with_characters_that_no_token_has_is_not_published(token: str) -> None:
    tokens = parse(PLAIN | {"access_token": token})
    assert not tokens.publishable
    assert "characters" in tokens.problem
    assert not tokens.access_token


@pytest.mark.parametrize("token", [None, "", 5, ["at"]])
def test_a_refresh_token_is_kept_though_there_is_no_access_token(token: object) -> None:
    tokens = parse({"access_token": token, "refresh_token": "rt", "refresh_expires_in": 60}, one_time=True)
    assert not tokens.publishable
    assert "no access token" in tokens.problem
    assert tokens.refresh_token is not None
    assert tokens.refresh_token.reveal() == "rt"
    assert tokens.refresh_expires_at == NOW + 60


@pytest.mark.parametrize("document", [{}, {"access_token": None}, {"access_token": "", "refresh_token": ""}, {"a": 1}])
@pytest.mark.parametrize(("one_time", "retry"), [(False, RetryClass.TRANSIENT), (True, RetryClass.IN_DOUBT)])
def test_nothing_usable_is_ambiguous(document: object, one_time: bool, retry: RetryClass) -> None:  # noqa: FBT001
    with pytest.raises(Ambiguous) as raised:
        parse(document, one_time=one_time)
    assert raised.value.retry is retry
    assert raised.value.code == "malformed"


def test_a_refusal_may_come_with_status_200() -> None:
    with pytest.raises(Refused) as raised:
        parse({"error": "invalid_grant", "error_description": "gone"})
    assert raised.value.code == "invalid_grant"
    assert raised.value.retry is RetryClass.NEEDS_PERSON


@pytest.mark.parametrize("error", ["", None])
def test_an_empty_error_beside_a_token_is_none(error: str | None) -> None:
    assert parse(PLAIN | {"error": error}).publishable


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("read", "read"),
        (["read", "admin"], "read admin"),
        (["read", 5], "read"),
        (None, "read write"),
        ("", "read write"),
        ([], "read write"),
        (5, "read write"),
        ("read\nwrite", "read write"),
    ],
)
def test_scope(scope: object, expected: str) -> None:
    assert parse(PLAIN | {"scope": scope}).scope == expected


def test_absent_scope_after_a_refresh_is_the_previous_one() -> None:
    tokens = parse_token_answer(answer(PLAIN), inputs(), one_time=True, previous_scope="read")
    assert tokens.scope == "read"


@pytest.mark.parametrize(
    ("fields", "expires_at"),
    [
        ({"refresh_expires_in": 1800}, NOW + 1800),
        ({"refresh_expires_in": 0}, None),
        ({"refresh_token_expires_in": 604_800.0}, NOW + 604_800),
        ({"refresh_token_expires_in": "60"}, NOW + 60),
        ({"refresh_expires_in": -1}, None),
        ({"refresh_expires_in": 1e300}, None),
        ({"refresh_expires_in": float("nan")}, None),
        ({}, None),
    ],
)
def test_expiry_of_the_refresh_token(fields: dict[str, object], expires_at: float | None) -> None:
    assert parse(PLAIN | {"refresh_token": "rt"} | fields).refresh_expires_at == expires_at


def test_a_refresh_token_that_cannot_be_sent_is_none() -> None:
    assert parse(PLAIN | {"refresh_token": "\ud800"}).refresh_token is None


ID = {"iss": ISSUER, "aud": "bot", "sub": "42", "email": "a@example.org", "email_verified": True}


def test_the_holder_is_named_by_the_id_token() -> None:
    access = jwt_of({"iss": ISSUER, "sub": "other"})
    tokens = parse(PLAIN | {"id_token": jwt_of(ID), "access_token": access})
    assert (tokens.subject, tokens.email, tokens.issuer) == ("42", "a@example.org", ISSUER)
    assert tokens.id_token is not None


@pytest.mark.parametrize("verified", [False, None, "true", 1])
def test_an_address_that_is_not_verified_is_none(verified: object) -> None:
    tokens = parse(PLAIN | {"id_token": jwt_of(ID | {"email_verified": verified})})
    assert (tokens.subject, tokens.email) == ("42", "")


@pytest.mark.parametrize(
    "change", [{"iss": "https://evil.example.org"}, {"aud": "another"}, {"aud": ["x"]}, {"sub": 5}]
)
def test_an_id_token_that_is_not_for_us_is_not_believed(change: dict[str, object]) -> None:
    access = jwt_of({"iss": ISSUER, "sub": "from-the-access-token"})
    tokens = parse(PLAIN | {"id_token": jwt_of(ID | change), "access_token": access})
    assert (tokens.subject, tokens.email) == ("from-the-access-token", "")


def test_several_audiences_may_include_us() -> None:
    assert parse(PLAIN | {"id_token": jwt_of(ID | {"aud": ["x", "bot"]})}).subject == "42"


def test_an_opaque_token_names_nobody() -> None:
    tokens = parse(PLAIN)
    assert (tokens.subject, tokens.email, tokens.issuer) == ("", "", ISSUER)


@pytest.mark.parametrize(
    "subject",
    ["a\nb", "x" * 256, "", None, {"a": 1}, "right\u202eleft"],
    ids=["line", "long", "empty", "null", "object", "bidi"],
)
def test_a_subject_that_could_not_be_shown_is_none(subject: object) -> None:
    assert parse(PLAIN | {"access_token": jwt_of({"sub": subject})}).subject == ""


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c", "..", "a.!!!.c", "é.é.é", jwt_of({}) + ".x.y", "a.W10.c"])
def test_what_is_no_jwt_has_no_claims(token: str) -> None:
    assert not unverified_claims(token)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        "access_token",
        "refresh_token",
        "id_token",
        "token_type",
        "expires_in",
        "refresh_expires_in",
        "refresh_token_expires_in",
        "scope",
        "error",
        "error_description",
        "issued_token_type",
    ]
)
BODIES = st.binary() | st.dictionaries(FIELDS, JSON).map(lambda document: json.dumps(document).encode())
HEADERS = st.fixed_dictionaries(
    {}, optional={"retry-after": st.text(), "date": st.text(), "location": st.text(), "content-type": st.text()}
)


def outcome(response: HttpResponse, *, one_time: bool) -> TokenSet | KeyferryError:
    try:
        return parse_token_answer(response, inputs(), one_time=one_time)
    except KeyferryError as error:
        return error


@given(status=st.integers(100, 599), headers=HEADERS, body=BODIES, one_time=st.booleans())
@example(status=200, headers={}, body=b"[" * 100_000, one_time=True)
@example(status=400, headers={}, body=b'{"error":' + b"1" * 5000 + b"}", one_time=False)
@example(status=200, headers={}, body=b"\xff\xfe\x00", one_time=False)
@example(status=429, headers={"retry-after": "Mon, 99 Nov 99999 00:00:00 GMT"}, body=b"", one_time=False)
@example(status=302, headers={"location": "https://[::1"}, body=b"", one_time=False)
def test_whatever_the_bytes(status: int, headers: dict[str, str], body: bytes, one_time: bool) -> None:  # noqa: FBT001
    tokens = outcome(HttpResponse(status, headers, body), one_time=one_time)
    if isinstance(tokens, KeyferryError):
        assert tokens.message.isprintable()
        assert one_time or tokens.retry is not RetryClass.IN_DOUBT
    else:
        assert 200 <= status < 300
        assert NOW <= tokens.expires_at <= NOW + 86_400
        assert tokens.publishable == (tokens.problem == "")
        assert not tokens.publishable or tokens.access_token.reveal().isprintable()
        assert tokens.access_token or tokens.refresh_token or not tokens.publishable
        repr(tokens)
        assert tokens == tokens  # noqa: PLR0124 - comparing secrets encodes them
