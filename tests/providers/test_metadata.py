from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.client_auth import NoAuthentication, TlsClientAuth
from keyferry.errors import (
    Ambiguous,
    AnswerError,
    ExchangeError,
    KeyferryError,
    Reason,
    Refused,
    ResourceError,
    RetryClass,
)
from keyferry.model import HttpResponse
from keyferry.providers.metadata import (
    ENDPOINT_FIELDS,
    ProviderMetadata,
    discover,
    read_metadata,
    well_known_urls,
    with_overrides,
)
from tests.grants.drive import ISSUER, NOW, answer, finish, page

DOCUMENT = {
    "issuer": ISSUER,
    "token_endpoint": f"{ISSUER}/token",
    "revocation_endpoint": "https://other.example.org:8443/revoke",
    "authorization_endpoint": "https://login.example.org/authorize",
    "device_authorization_endpoint": f"{ISSUER}/device",
    "jwks_uri": "https://keys.example.org/jwks",
    "grant_types_supported": ["client_credentials", 5, "refresh_token"],
    "authorization_response_iss_parameter_supported": True,
    "mtls_endpoint_aliases": {"token_endpoint": "https://mtls.example.org/token"},
    "something_new": {"x": 1},
}


@pytest.mark.parametrize(
    ("issuer", "first", "second"),
    [
        (
            "https://a.example.org",
            "https://a.example.org/.well-known/openid-configuration",
            "https://a.example.org/.well-known/oauth-authorization-server",
        ),
        (
            "https://a.example.org/",
            "https://a.example.org/.well-known/openid-configuration",
            "https://a.example.org/.well-known/oauth-authorization-server",
        ),
        (
            "https://a.example.org:8443/realms/x/",
            "https://a.example.org:8443/realms/x/.well-known/openid-configuration",
            "https://a.example.org:8443/.well-known/oauth-authorization-server/realms/x",
        ),
    ],
)
def test_where_metadata_lie(issuer: str, first: str, second: str) -> None:
    assert well_known_urls(issuer) == (first, second)


def test_openid_connect_discovery() -> None:
    generator = discover(ISSUER)
    request = next(generator)
    assert (request.method, request.body) == ("GET", b"")
    assert "Authorization" not in request.headers
    metadata = finish(discover(ISSUER), answer(DOCUMENT))
    assert metadata.issuer == ISSUER
    assert metadata.token_endpoint == f"{ISSUER}/token"
    assert metadata.introspection_endpoint == ""
    assert metadata.grant_types == ("client_credentials", "refresh_token")
    assert metadata.authorization_response_iss_parameter_supported
    assert not metadata.require_pushed_authorization_requests


@pytest.mark.parametrize("status", [400, 404, 405])
def test_rfc_8414_where_the_first_is_not_there(status: int) -> None:
    generator = discover(ISSUER)
    next(generator)
    assert generator.send(page(status)).url == f"{ISSUER}/.well-known/oauth-authorization-server"
    assert finish(discover(ISSUER), page(status), answer(DOCUMENT)).issuer == ISSUER


def discovery_error(*answers: HttpResponse) -> ExchangeError:
    with pytest.raises(ExchangeError) as raised:
        finish(discover(ISSUER, now=NOW), *answers)
    return raised.value


def test_no_metadata_at_all_names_both_places() -> None:
    error = discovery_error(page(404), page(404))
    assert isinstance(error, Ambiguous)
    assert error.retry is RetryClass.SUSPICIOUS
    assert all(url in error.message for url in well_known_urls(ISSUER))


@pytest.mark.parametrize(
    ("response", "retry"),
    [
        (HttpResponse(500), RetryClass.TRANSIENT),
        (HttpResponse(503), RetryClass.TRANSIENT),
        (HttpResponse(429), RetryClass.TRANSIENT),
        (HttpResponse(403), RetryClass.SUSPICIOUS),
        (HttpResponse(302, {"location": "https://elsewhere.example.net/secret"}), RetryClass.SUSPICIOUS),
        (HttpResponse(200), RetryClass.TRANSIENT),
        (page(200), RetryClass.TRANSIENT),
        (answer([]), RetryClass.TRANSIENT),
    ],
)
def test_an_outage_of_discovery(response: HttpResponse, retry: RetryClass) -> None:
    error = discovery_error(response)
    assert error.retry is retry
    assert "discovery document at auth.example.org" in error.message


def test_discovery_waits_as_told() -> None:
    error = discovery_error(HttpResponse(429, {"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}))
    assert isinstance(error, Refused)
    assert error.retry_after == 30.0


@pytest.mark.parametrize(
    ("issuer", "words"),
    [
        (f"{ISSUER}/", "Write it exactly as the server does"),
        (ISSUER.upper(), "Correct the issuer"),
        ("https://evil.example.org", '"https://evil.example.org"'),
        (None, "names no issuer"),
        (5, "names no issuer"),
    ],
)
def test_the_issuer_must_be_identical(issuer: object, words: str) -> None:
    with pytest.raises(AnswerError, match=words) as raised:
        read_metadata(DOCUMENT | {"issuer": issuer}, ISSUER)
    assert raised.value.retry is RetryClass.NEEDS_CONFIGURATION
    assert raised.value.reason is Reason.INVALID_SPEC


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token_endpoint": 5}, "token_endpoint is not a string"),
        ({"token_endpoint": ["https://x.example.org"]}, "token_endpoint is not a string"),
        ({"token_endpoint": "/token"}, "token_endpoint is not an absolute https URL"),
        ({"token_endpoint": "http://auth.example.org/token"}, "token_endpoint is not an absolute https URL"),
        ({"token_endpoint": "file:///etc/passwd"}, "token_endpoint is not an absolute https URL"),
        ({"token_endpoint": "https://[x/"}, "token_endpoint is not a URL"),
        ({"token_endpoint": "https://a.example.org/#"}, "token_endpoint has a fragment"),
        ({"token_endpoint": "https://u:p@a.example.org/"}, "token_endpoint holds a user name"),
        ({"token_endpoint": "https://a.example.org/\r\nX: y"}, "token_endpoint holds"),
        ({"revocation_endpoint": "https://a.example.org/ b"}, "revocation_endpoint holds"),
        ({"mtls_endpoint_aliases": []}, None),
        ({"mtls_endpoint_aliases": ["x"]}, "mtls_endpoint_aliases is not an object"),
        ({"mtls_endpoint_aliases": {"token_endpoint": "http://x"}}, "token_endpoint is not an absolute https URL"),
        ({"require_pushed_authorization_requests": "yes"}, "is neither true nor false"),
        ({"grant_types_supported": "all"}, None),
        ({"token_endpoint": None}, None),
        ({"token_endpoint": ""}, None),
    ],
)
def test_wrong_types_and_addresses(change: dict[str, object], words: str | None) -> None:
    if words is None:
        assert read_metadata(DOCUMENT | change, ISSUER).issuer == ISSUER
        return
    with pytest.raises(AnswerError, match=words) as raised:
        read_metadata(DOCUMENT | change, ISSUER)
    assert raised.value.message.isprintable()


def test_a_plain_http_issuer_may_have_endpoints_of_its_kind() -> None:
    issuer = "http://127.0.0.1:8080"
    metadata = read_metadata({"issuer": issuer, "token_endpoint": f"{issuer}/token"}, issuer)
    assert metadata.hosts == {"127.0.0.1:8080"}


def test_hosts_are_those_that_credentials_go_to() -> None:
    metadata = read_metadata(DOCUMENT, ISSUER)
    assert metadata.hosts == {"auth.example.org", "other.example.org:8443", "mtls.example.org"}
    assert metadata.for_client(NoAuthentication("x")).hosts == {"auth.example.org", "other.example.org:8443"}
    assert ProviderMetadata().hosts == frozenset()


def test_mtls_aliases_are_for_clients_with_a_certificate() -> None:
    metadata = read_metadata(DOCUMENT, ISSUER)
    assert metadata.for_client(NoAuthentication("bot")).token_endpoint == f"{ISSUER}/token"
    own = metadata.for_client(TlsClientAuth("bot"))
    assert own.token_endpoint == "https://mtls.example.org/token"
    assert own.revocation_endpoint == metadata.revocation_endpoint


def test_configured_endpoints_win() -> None:
    metadata = with_overrides(
        read_metadata(DOCUMENT, ISSUER), {"token": "https://configured.example.org/t", "introspection": ""}
    )
    assert metadata.token_endpoint == "https://configured.example.org/t"
    assert metadata.for_client(TlsClientAuth("bot")).token_endpoint == "https://configured.example.org/t"
    assert metadata.introspection_endpoint == ""


@pytest.mark.parametrize("name", list(ENDPOINT_FIELDS))
def test_every_endpoint_can_be_configured(name: str) -> None:
    url = "http://127.0.0.1:9000/x"
    assert with_overrides(ProviderMetadata(), {name: url}).endpoint(name) == url


def test_a_missing_endpoint_says_which_field_would_help() -> None:
    with pytest.raises(ResourceError, match=r"endpoints\.deviceAuthorization") as raised:
        ProviderMetadata(issuer=ISSUER).endpoint("deviceAuthorization")
    assert raised.value.reason is Reason.GRANT_NOT_SUPPORTED


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"tokens": "https://x.example.org"}, r"endpoints\.tokens: unknown; known are token, "),
        ({"token": "x.example.org"}, r"endpoints\.token: is not an absolute http or https URL"),
        ({"token": "https://x.example.org/#a"}, r"endpoints\.token: has a fragment"),
    ],
)
def test_a_wrong_override_names_its_field(overrides: dict[str, str], words: str) -> None:
    with pytest.raises(ResourceError, match=words):
        with_overrides(ProviderMetadata(), overrides)


VALUES = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=2)
DOCUMENTS = st.dictionaries(
    st.sampled_from([*DOCUMENT, "require_pushed_authorization_requests"]),
    VALUES | st.dictionaries(st.sampled_from(list(ENDPOINT_FIELDS.values())), VALUES, max_size=2),
)


@given(document=DOCUMENTS, status=st.sampled_from([200, 404]), body=st.none() | st.binary())
def test_whatever_a_server_says_of_itself(document: dict[str, object], status: int, body: bytes | None) -> None:
    response = answer({"issuer": ISSUER} | document) if body is None else HttpResponse(status, {}, body)
    generator = discover(ISSUER)
    next(generator)
    outcome: object = None
    try:
        generator.send(response)
    except StopIteration as stopped:
        outcome = stopped.value
    except KeyferryError as raised:
        outcome = raised
    if isinstance(outcome, KeyferryError):
        assert outcome.message.isprintable()
    else:
        # None: it looks at the second place.
        assert status == 404 if outcome is None else isinstance(outcome, ProviderMetadata)
