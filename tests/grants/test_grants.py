"""What each grant sends, byte for byte where it matters, and what it makes of the answer."""

from __future__ import annotations

import pytest

from keyferry.client_auth import ClientSecretPost, NoAuthentication
from keyferry.errors import Ambiguous, CredentialError, Refused, ResourceError, RetryClass
from keyferry.grants import GRANTS, refresh
from keyferry.grants.inputs import GrantInputs, SubjectToken
from keyferry.grants.rfc8693_token_exchange import ACCESS_TOKEN_TYPE, JWT_TYPE, REFRESH_TOKEN_TYPE, TOKEN_EXCHANGE
from keyferry.model import HttpRequest, HttpResponse
from keyferry.secret import SecretValue
from keyferry.spec.grant import GrantType
from tests.grants.drive import ENDPOINT, NOW, answer, finish, form_of, inputs

PLAIN = {"access_token": "at", "token_type": "Bearer", "expires_in": 600}
SUBJECT = SubjectToken(SecretValue("subject.jwt"))
EVERYTHING = inputs(
    username=SecretValue("alice"),
    password=SecretValue("s3cret & more"),
    assertion=SubjectToken(SecretValue("the.assertion")),
    subject=SUBJECT,
    client=NoAuthentication("bot"),
    scopes=(),
)


def request_of(grant: GrantType, given: GrantInputs) -> HttpRequest:
    return next(GRANTS[grant](given))


def test_the_registry_holds_the_grants_that_need_no_person() -> None:
    assert set(GRANTS) == {
        GrantType.CLIENT_CREDENTIALS,
        GrantType.PASSWORD,
        GrantType.JWT_BEARER,
        GrantType.TOKEN_EXCHANGE,
    }


@pytest.mark.parametrize(
    ("grant", "form"),
    [
        (GrantType.CLIENT_CREDENTIALS, [("grant_type", "client_credentials"), ("client_id", "bot")]),
        (
            GrantType.PASSWORD,
            [
                ("grant_type", "password"),
                ("username", "alice"),
                ("password", "s3cret & more"),
                ("client_id", "bot"),
            ],
        ),
        (
            GrantType.JWT_BEARER,
            [
                ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
                ("assertion", "the.assertion"),
                ("client_id", "bot"),
            ],
        ),
        (
            GrantType.TOKEN_EXCHANGE,
            [
                ("grant_type", TOKEN_EXCHANGE),
                ("subject_token", "subject.jwt"),
                ("subject_token_type", ACCESS_TOKEN_TYPE),
                ("client_id", "bot"),
            ],
        ),
    ],
)
def test_what_a_grant_sends(grant: GrantType, form: list[tuple[str, str]]) -> None:
    request = request_of(grant, EVERYTHING)
    assert (request.method, request.url, request.one_time) == ("POST", ENDPOINT, False)
    assert request.headers["Accept"] == "application/json"
    assert request.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert form_of(request) == form


def test_order_and_repetition() -> None:
    given = inputs(
        audiences=("api", "other api"),
        resources=("https://a.example.org", "https://b.example.org"),
        parameters={"acr_values": "2", "x": "é&="},
        client=ClientSecretPost("bot", SecretValue("hush")),
    )
    request = request_of(GrantType.CLIENT_CREDENTIALS, given)
    assert request.body == (
        b"grant_type=client_credentials&scope=read+write&audience=api&audience=other+api"
        b"&resource=https%3A%2F%2Fa.example.org&resource=https%3A%2F%2Fb.example.org"
        b"&acr_values=2&x=%C3%A9%26%3D&client_id=bot&client_secret=hush"
    )


@pytest.mark.parametrize("name", ["grant_type", "client_id", "scope", "resource", "Refresh_Token", "client_assertion"])
def test_a_parameter_of_the_protocol_cannot_be_set(name: str) -> None:
    with pytest.raises(ResourceError, match=name):
        request_of(GrantType.CLIENT_CREDENTIALS, inputs(parameters={name: "x"}))


@pytest.mark.parametrize("grant", [GrantType.PASSWORD, GrantType.JWT_BEARER, GrantType.TOKEN_EXCHANGE])
def test_a_grant_without_its_credential_sends_nothing(grant: GrantType) -> None:
    with pytest.raises(CredentialError):
        request_of(grant, inputs())


def test_a_credential_that_is_no_text_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(CredentialError):
        request_of(GrantType.PASSWORD, inputs(username=SecretValue("a"), password=SecretValue("\udcff")))


def test_a_grant_prints_no_secret() -> None:
    printed = repr(request_of(GrantType.PASSWORD, EVERYTHING)) + repr(EVERYTHING)
    assert "s3cret" not in printed
    assert "subject.jwt" not in printed


@pytest.mark.parametrize("grant", list(GRANTS))
def test_every_grant_returns_what_was_issued(grant: GrantType) -> None:
    tokens = finish(GRANTS[grant](EVERYTHING), answer(PLAIN | {"issued_token_type": ACCESS_TOKEN_TYPE}))
    assert tokens.access_token.reveal() == "at"
    assert tokens.publishable


@pytest.mark.parametrize("grant", list(GRANTS))
def test_every_grant_may_be_repeated_after_an_outage(grant: GrantType) -> None:
    generator = GRANTS[grant](EVERYTHING)
    next(generator)
    with pytest.raises(Ambiguous) as raised:
        generator.send(HttpResponse(502))
    assert raised.value.retry is RetryClass.TRANSIENT


def test_a_wrong_password_needs_a_person() -> None:
    generator = GRANTS[GrantType.PASSWORD](EVERYTHING)
    next(generator)
    with pytest.raises(Refused) as raised:
        generator.send(answer({"error": "invalid_grant"}, 400))
    assert raised.value.retry is RetryClass.NEEDS_PERSON


def test_token_exchange_with_everything() -> None:
    given = inputs(
        subject=SubjectToken(SecretValue("s"), JWT_TYPE),
        actor=SubjectToken(SecretValue("a")),
        requested_token_type=JWT_TYPE,
        scopes=(),
        client=NoAuthentication("bot"),
    )
    assert form_of(request_of(GrantType.TOKEN_EXCHANGE, given)) == [
        ("grant_type", TOKEN_EXCHANGE),
        ("subject_token", "s"),
        ("subject_token_type", JWT_TYPE),
        ("actor_token", "a"),
        ("actor_token_type", ACCESS_TOKEN_TYPE),
        ("requested_token_type", JWT_TYPE),
        ("client_id", "bot"),
    ]


SAML = "urn:ietf:params:oauth:token-type:saml2"


@pytest.mark.parametrize(
    ("issued", "requested", "token_type", "publishable"),
    [
        (ACCESS_TOKEN_TYPE, "", "Bearer", True),
        (JWT_TYPE, "", "Bearer", True),
        (JWT_TYPE, ACCESS_TOKEN_TYPE, "Bearer", True),
        (SAML, SAML, "Bearer", True),
        (SAML, "", "Bearer", False),
        (SAML, SAML, "N_A", False),
        (ACCESS_TOKEN_TYPE, "", "N_A", False),
        (REFRESH_TOKEN_TYPE, REFRESH_TOKEN_TYPE, "Bearer", False),
        (None, "", "Bearer", False),
    ],
)
def test_what_was_issued_must_be_an_access_token(
    issued: str | None,
    requested: str,
    token_type: str,
    publishable: bool,  # noqa: FBT001
) -> None:
    given = inputs(subject=SUBJECT, requested_token_type=requested)
    document = PLAIN | {"issued_token_type": issued, "token_type": token_type, "refresh_token": "rt"}
    tokens = finish(GRANTS[GrantType.TOKEN_EXCHANGE](given), answer(document))
    assert tokens.publishable is publishable
    assert bool(tokens.problem) is not publishable
    assert tokens.refresh_token is not None


OLD = SecretValue("old")


@pytest.mark.parametrize("one_time", [False, True])
def test_a_refresh_asks_for_no_scope(one_time: bool) -> None:  # noqa: FBT001
    given = inputs(resources=("https://api.example.org",), client=NoAuthentication("bot"))
    request = next(refresh(given, OLD, one_time=one_time))
    assert request.one_time is one_time
    assert form_of(request) == [
        ("grant_type", "refresh_token"),
        ("refresh_token", "old"),
        ("resource", "https://api.example.org"),
        ("client_id", "bot"),
    ]


def test_a_new_refresh_token_replaces_the_old() -> None:
    document = PLAIN | {"refresh_token": "new", "refresh_expires_in": 60}
    tokens = finish(refresh(inputs(), OLD, one_time=True, refresh_expires_at=NOW + 5), answer(document))
    assert tokens.refresh_token is not None
    assert tokens.refresh_token.reveal() == "new"
    assert tokens.refresh_expires_at == NOW + 60


def test_a_new_refresh_token_does_not_inherit_the_expiry_of_the_old() -> None:
    tokens = finish(
        refresh(inputs(), OLD, one_time=True, refresh_expires_at=NOW + 5), answer(PLAIN | {"refresh_token": "new"})
    )
    assert tokens.refresh_expires_at is None


@pytest.mark.parametrize(("stated", "expires_at"), [({}, NOW + 5), ({"refresh_expires_in": 60}, NOW + 60)])
def test_without_a_new_refresh_token_the_old_one_stays(stated: dict[str, int], expires_at: float) -> None:
    exchange = refresh(inputs(), OLD, one_time=True, refresh_expires_at=NOW + 5, previous_scope="read")
    tokens = finish(exchange, answer(PLAIN | stated))
    assert tokens.refresh_token == OLD
    assert tokens.refresh_expires_at == expires_at
    assert tokens.scope == "read"


@pytest.mark.parametrize(("one_time", "retry"), [(False, RetryClass.TRANSIENT), (True, RetryClass.IN_DOUBT)])
def test_a_lost_answer_to_a_refresh(one_time: bool, retry: RetryClass) -> None:  # noqa: FBT001
    generator = refresh(inputs(), OLD, one_time=one_time)
    next(generator)
    with pytest.raises(Ambiguous) as raised:
        generator.send(HttpResponse(200, {}, b'{"access_to'))
    assert raised.value.retry is retry


def test_an_echoed_refresh_token_is_not_shown() -> None:
    generator = refresh(inputs(), SecretValue("short-rt"), one_time=True)
    next(generator)
    with pytest.raises(Refused) as raised:
        generator.send(answer({"error": "invalid_grant", "error_description": "short-rt is unknown"}, 400))
    assert "short-rt" not in raised.value.message
