"""Tiled's answers as a real server (0.2.20) gives them; `test_tiled_server` asks such a server itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from keyferry.grants.rfc8628_device_code import Decision, decision
from keyferry.model import HttpRequest, HttpResponse
from keyferry.providers import tiled
from keyferry.secret import SecretValue
from tests.grants.drive import NOW, answer, finish, form_of, jwt_of, page

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

API = "https://tiled.example.org/api/v1/"
TOY = {"provider": "toy", "mode": "internal", "links": {"auth_endpoint": f"{API}auth/provider/toy/token"}}
SSO = {"provider": "orcid", "mode": "external", "links": {"auth_endpoint": f"{API}auth/provider/orcid/authorize"}}
LINKS = {
    "whoami": f"{API}auth/whoami",
    "apikey": f"{API}auth/apikey",
    "refresh_session": f"{API}auth/session/refresh",
    "revoke_session": f"{API}auth/session/revoke/{{session_id}}",
    "logout": f"{API}auth/logout",
}
RT = SecretValue("rt-1")
AT = SecretValue(jwt_of({"sub": "0123456789abcdef", "exp": NOW + 900}))


def about(*providers: dict[str, Any], links: object = LINKS) -> HttpResponse:
    return answer({"authentication": {"required": True, "providers": list(providers), "links": links}})


def metadata(*providers: dict[str, Any], authenticator: str = "", links: object = LINKS) -> tiled.TiledMetadata:
    generator = tiled.discover("https://tiled.example.org", authenticator)
    return finish(generator, about(*(providers or (TOY,)), links=links))


def detail(text: object, status: int) -> HttpResponse:
    return answer({"detail": text}, status)


def error_of(generator: Generator[HttpRequest, HttpResponse, object], response: HttpResponse) -> ExchangeError:
    with pytest.raises(ExchangeError) as raised:
        finish(generator, response)
    return raised.value


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.org", "https://example.org/api/v1/"),
        ("https://example.org/", "https://example.org/api/v1/"),
        ("https://example.org/api", "https://example.org/api/v1/"),
        ("https://example.org/api/", "https://example.org/api/v1/"),
        ("https://example.org/api/v1", "https://example.org/api/v1/"),
        ("https://example.org/api/v1/", "https://example.org/api/v1/"),
        ("https://example.org/api/v1/metadata/a/b", "https://example.org/api/v1/"),
        ("https://example.org/tiled", "https://example.org/tiled/api/v1/"),
        ("HTTPS://Example.ORG:443/api/v1?x=1#y", "https://example.org/api/v1/"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/api/v1/"),
        ("http://[::1]:80/api/v1", "http://[::1]/api/v1/"),
    ],
)
def test_api_uri(url: str, expected: str) -> None:
    assert tiled.api_uri(url) == expected
    assert tiled.api_uri(expected) == expected


def test_token_directory_name() -> None:
    assert tiled.token_directory_name("https://Example.org:443") == "https%3A%2F%2Fexample.org%2Fapi%2Fv1%2F"


@pytest.mark.parametrize(
    "url", ["", "example.org", "ftp://example.org", "https://u:p@example.org", "https://[x", "https:///x"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ResourceError, match=r"^tiled\.url: "):
        tiled.api_uri(url)


def test_discovery() -> None:
    assert next(tiled.discover("https://tiled.example.org")).url == API
    assert metadata() == tiled.TiledMetadata(
        api_url=API,
        authenticator="toy",
        login_endpoint=f"{API}auth/provider/toy/token",
        refresh_endpoint=f"{API}auth/session/refresh",
        revoke_endpoint=f"{API}auth/session/revoke",
        api_key_endpoint=f"{API}auth/apikey",
        whoami_endpoint=f"{API}auth/whoami",
        device_problem=f"No authenticator of the Tiled server at {API} logs people in through a browser: log in with a"
        " password (grant Password).",
    )
    assert metadata().hosts == {"tiled.example.org"}


def test_an_older_server_calls_it_password() -> None:
    assert metadata(TOY | {"mode": "password"}).authenticator == "toy"


def test_the_one_that_takes_passwords_is_chosen() -> None:
    assert metadata(SSO, TOY).authenticator == "toy"
    assert metadata(TOY, TOY | {"provider": "ldap"}, authenticator="ldap").authenticator == "ldap"


@pytest.mark.parametrize(
    ("providers", "words"),
    [
        ((TOY, TOY | {"provider": "ldap", "links": {}}), "one of ldap, toy"),
        ((SSO,), "grant RefreshToken"),
        ((), "single user"),
    ],
)
def test_no_login_without_a_choice(providers: tuple[dict[str, Any], ...], words: str) -> None:
    found = finish(tiled.discover(API), about(*providers))
    assert found.refresh_endpoint == f"{API}auth/session/refresh"
    with pytest.raises(ResourceError, match=words) as raised:
        next(tiled.login(found, SecretValue("alice"), SecretValue("secret1"), NOW))
    assert raised.value.reason is Reason.GRANT_NOT_SUPPORTED


def test_a_wrong_choice_is_told() -> None:
    with pytest.raises(ResourceError, match="no authenticator ldap; it has: orcid, toy"):
        metadata(TOY, SSO, authenticator="ldap")
    assert "orcid at https://tiled.example.org/api/v1/ is none that takes passwords; those that do: toy" in (
        metadata(TOY, SSO, authenticator="orcid").login_problem
    )
    assert "toy at https://tiled.example.org/api/v1/ is none that logs people in through a browser" in (
        metadata(TOY, SSO, authenticator="toy").device_problem
    )


@pytest.mark.parametrize(
    "link",
    [
        "https://evil.example.net/auth/session/refresh",
        "http://tiled.example.org/api/v1/auth/session/refresh",
        "https://tiled.example.org:8443/auth/session/refresh",
        "https://x@tiled.example.org/auth/session/refresh",
        "https://tiled.example.org/{x}",
        "https://[tiled",
        "/auth/session/refresh",
        "",
        None,
        5,
    ],
)
def test_links_to_other_origins_are_not_used(link: object) -> None:
    other = {**LINKS, "refresh_session": link, "apikey": link, "whoami": link}
    found = metadata(TOY | {"links": {"auth_endpoint": link}}, links=other)
    assert found == metadata()


def test_links_of_the_own_origin_are_used() -> None:
    link = "https://TILED.example.org:443/elsewhere/refresh"
    assert metadata(links={"refresh_session": link}).refresh_endpoint == link


@pytest.mark.parametrize("document", [{}, {"authentication": None}, {"authentication": []}])
def test_another_server_is_not_tiled(document: dict[str, object]) -> None:
    with pytest.raises(AnswerError, match="not Tiled"):
        finish(tiled.discover(API), answer(document))


@pytest.mark.parametrize(
    ("response", "retry"),
    [(HttpResponse(502), RetryClass.TRANSIENT), (page(404), RetryClass.SUSPICIOUS), (page(200), RetryClass.TRANSIENT)],
)
def test_discovery_fails(response: HttpResponse, retry: RetryClass) -> None:
    assert error_of(tiled.discover(API), response).retry is retry


TOKENS = {
    "access_token": AT.reveal(),
    "expires_in": 900.0,
    "refresh_token": "rt-2",
    "refresh_token_expires_in": 604_800.0,
    "token_type": "bearer",
}


def login() -> Generator[HttpRequest, HttpResponse, Any]:
    return tiled.login(metadata(), SecretValue("alice"), SecretValue("s 1"), NOW)


def refresh() -> Generator[HttpRequest, HttpResponse, Any]:
    return tiled.refresh(metadata(), RT, NOW)


def test_login() -> None:
    request = next(login())
    assert request.url == f"{API}auth/provider/toy/token"
    assert form_of(request) == [("grant_type", "password"), ("username", "alice"), ("password", "s 1")]
    tokens = finish(login(), answer(TOKENS | {"identity": {"id": "alice", "provider": "toy"}, "principal": "0123"}))
    assert (tokens.token_type, tokens.lifetime, tokens.refresh_expires_at) == ("Bearer", 900, NOW + 604_800)
    assert (tokens.subject, tokens.issuer) == ("alice", API)
    assert tokens.publishable


def test_refresh() -> None:
    request = next(refresh())
    assert (request.url, request.one_time) == (f"{API}auth/session/refresh", False)
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.body) == {"refresh_token": "rt-1"}
    tokens = finish(refresh(), answer(TOKENS))
    assert tokens.refresh_token == SecretValue("rt-2")
    assert tokens.subject == "", "only a login says whose it is"


def test_a_refresh_token_stays_where_none_is_given() -> None:
    assert finish(refresh(), answer({"access_token": "at", "token_type": "bearer"})).refresh_token == RT


PERSON, CONFIGURATION = RetryClass.NEEDS_PERSON, RetryClass.NEEDS_CONFIGURATION
LIMIT = "This Principal already has 200 {} which is greater than or equal to the maximum number allowed, 200. Some …"


@pytest.mark.parametrize(
    ("attempt", "response", "code", "retry"),
    [
        (login, detail("Incorrect username or password", 401), "invalid_grant", PERSON),
        (login, detail(LIMIT.format("sessions"), 400), "session_limit", CONFIGURATION),
        (login, detail([{"loc": ["body", "password"], "msg": "Field required"}], 422), "http_422", CONFIGURATION),
        (login, page(401), "html", RetryClass.SUSPICIOUS),
        (login, page(400), "html", RetryClass.SUSPICIOUS),
        (login, HttpResponse(500), "http_500", RetryClass.TRANSIENT),
        (refresh, detail("Could not validate credentials", 401), "session_ended", PERSON),
        (refresh, detail("Session has expired. Please re-authenticate.", 401), "session_ended", PERSON),
        (refresh, HttpResponse(500, {}, b"Internal Server Error"), "http_500", RetryClass.TRANSIENT),
        (refresh, detail([{"msg": "x"}], 422), "http_422", CONFIGURATION),
        (refresh, HttpResponse(401), "http_401", RetryClass.SUSPICIOUS),
        (refresh, HttpResponse(200, {}, b'{"acc'), "malformed", RetryClass.TRANSIENT),
        (refresh, HttpResponse(429, {"retry-after": "3"}), "too_many_requests", RetryClass.TRANSIENT),
    ],
)
def test_errors_of_a_session(
    attempt: Callable[[], Generator[HttpRequest, HttpResponse, Any]],
    response: HttpResponse,
    code: str,
    retry: RetryClass,
) -> None:
    error = error_of(attempt(), response)
    assert (error.code, error.retry) == (code, retry)
    assert "tiled.example.org" in error.message
    assert isinstance(error, Refused) == (code not in {"html", "http_500", "http_401", "malformed"})


def revoke(*, expired: bool = False) -> Generator[HttpRequest, HttpResponse, None]:
    return tiled.revoke_session(metadata(), RT, expired=expired)


def test_revoking_a_session() -> None:
    request = next(revoke())
    assert (request.method, request.url) == ("POST", f"{API}auth/session/revoke")
    assert json.loads(request.body) == {"refresh_token": "rt-1"}
    for response in (
        HttpResponse(204),
        detail("Could not validate credentials", 401),
        detail("No session 0123", 409),
    ):
        finish(revoke(), response)


def test_a_500_is_done_only_for_a_lapsed_token() -> None:
    finish(revoke(expired=True), HttpResponse(500))
    assert error_of(revoke(), HttpResponse(500)).retry is RetryClass.TRANSIENT
    assert error_of(revoke(expired=True), HttpResponse(503)).retry is RetryClass.TRANSIENT


SECRET = "0123456789abcdef" * 4 + "01234567"
MINTED = {
    "first_eight": "01234567",
    "expiration_time": "2027-01-15T09:00:00+00:00",
    "note": "nightly",
    "scopes": ["read:metadata"],
    "access_tags": None,
    "latest_activity": None,
    "secret": SECRET,
}


def mint(**changes: Any) -> Generator[HttpRequest, HttpResponse, tiled.ApiKey]:
    wish: dict[str, Any] = {"scopes": ["read:metadata"], "expires_in": 3600, "note": "nightly"}
    return tiled.mint_api_key(metadata(), AT, **(wish | changes))


def test_minting() -> None:
    request = next(mint(access_tags=["public"]))
    assert request.url == f"{API}auth/apikey"
    assert request.headers["Authorization"] == f"Bearer {AT.reveal()}"
    assert json.loads(request.body) == {
        "expires_in": 3600,
        "scopes": ["read:metadata"],
        "note": "nightly",
        "access_tags": ["public"],
    }
    key = finish(mint(), answer(MINTED))
    assert key == tiled.ApiKey(SecretValue(SECRET), "01234567", NOW + 3600, ("read:metadata",), "nightly")
    assert SECRET not in repr(key)


def test_minting_without_wishes() -> None:
    request = next(tiled.mint_api_key(metadata(), AT, expires_in=None))
    assert json.loads(request.body) == {"expires_in": None, "scopes": None}
    key = finish(mint(), answer(MINTED | {"expiration_time": None}))
    assert key.expires_at is None


@pytest.mark.parametrize("document", [{}, MINTED | {"secret": None}, MINTED | {"secret": "not hex\n"}, None])
def test_a_key_that_is_none(document: object) -> None:
    assert error_of(mint(), answer(document)).code == "malformed"


EXPIRED = detail("Access token has expired. Refresh token.", 401)
NOT_ENOUGH = detail("Not enough permissions. Requires scopes ['create:apikeys']. Request had scopes ['read']", 401)
FOREIGN = detail("Could not validate credentials", 401)


@pytest.mark.parametrize(
    ("response", "code", "retry"),
    [
        (EXPIRED, "access_token_expired", RetryClass.TRANSIENT),
        (NOT_ENOUGH, "insufficient_scope", CONFIGURATION),
        (FOREIGN, "invalid_token", PERSON),
        (detail("Requested scopes ['admin'] must be a subset of …", 403), "insufficient_scope", CONFIGURATION),
        (detail(LIMIT.format("API keys"), 400), "api_key_limit", CONFIGURATION),
        (detail("bad", 400), "http_400", CONFIGURATION),
        (detail([{"msg": "Input should be a valid integer"}], 422), "http_422", CONFIGURATION),
        (detail("Not Found", 404), "http_404", CONFIGURATION),
        (page(401), "html", RetryClass.SUSPICIOUS),
        (page(403), "html", RetryClass.SUSPICIOUS),
        (HttpResponse(500), "http_500", RetryClass.TRANSIENT),
    ],
)
def test_minting_fails(response: HttpResponse, code: str, retry: RetryClass) -> None:
    error = error_of(mint(), response)
    assert (error.code, error.retry) == (code, retry)
    assert AT.reveal() not in error.message


PRINCIPAL = {
    "uuid": "6f1c3b2a-0000-4000-8000-000000000000",
    "type": "user",
    "identities": [{"id": "alice", "provider": "toy", "latest_login": None}, "x"],
    "api_keys": [{"first_eight": "01234567", "note": None, "expiration_time": "2027-01-15T09:00:00"}],
    "sessions": [{"uuid": "5e55", "expiration_time": "2027-01-15T10:00:00+01:00", "revoked": True}, {"revoked": "no"}],
}


def test_whoami() -> None:
    request = next(tiled.whoami(metadata(), AT))
    assert (request.method, request.url) == ("GET", f"{API}auth/whoami")
    principal = finish(tiled.whoami(metadata(), AT), answer(PRINCIPAL))
    assert principal.uuid == PRINCIPAL["uuid"]
    assert principal.identities == (("toy", "alice"),)
    assert principal.api_keys == (tiled.ApiKeyInfo("01234567", "", NOW + 3600),)
    assert principal.sessions == (
        tiled.SessionInfo("5e55", NOW + 3600, revoked=True),
        tiled.SessionInfo("", None, revoked=False),
    )


def test_whoami_of_nobody() -> None:
    with pytest.raises(AnswerError, match="nobody's"):
        finish(tiled.whoami(metadata(), AT), answer(None))


@pytest.mark.parametrize("response", [answer({}), answer([]), page(200)])
def test_whoami_of_something_else(response: HttpResponse) -> None:
    assert isinstance(error_of(tiled.whoami(metadata(), AT), response), Ambiguous)


def delete() -> Generator[HttpRequest, HttpResponse, None]:
    return tiled.delete_api_key(metadata(), AT, "0123&567")


def test_deleting_a_key() -> None:
    request = next(delete())
    assert (request.method, request.url) == ("DELETE", f"{API}auth/apikey?first_eight=0123%26567")
    finish(delete(), HttpResponse(204))
    finish(delete(), detail("The currently-authenticated user has no such API key.", 404))
    assert error_of(delete(), EXPIRED).code == "access_token_expired"
    assert error_of(delete(), HttpResponse(503)).retry is RetryClass.TRANSIENT


CODE = "5f" * 32
DEVICE_ANSWER = {
    "authorization_uri": "https://orcid.example.org/oauth/authorize?client_id=tiled&response_type=code",
    "verification_uri": "https://elsewhere.example.net/poll",
    "interval": 5,
    "device_code": CODE,
    "expires_in": 900.0,
    "user_code": "8D3F-2EF3",
}


def poll_device() -> Generator[HttpRequest, HttpResponse, Any]:
    return tiled.poll_device(metadata(SSO), SecretValue(CODE), NOW)


def test_a_device_code_of_tileds_own() -> None:
    request = next(tiled.authorize_device(metadata(SSO), NOW))
    assert (request.method, request.url, request.body) == ("POST", f"{API}auth/provider/orcid/authorize", b"")
    given = finish(tiled.authorize_device(metadata(SSO), NOW), answer(DEVICE_ANSWER))
    assert (given.verification_uri, given.user_code) == (DEVICE_ANSWER["authorization_uri"], "8D3F-2EF3")
    assert (given.expires_at, given.interval, given.verification_uri_complete) == (NOW + 900, 5, "")
    poll = next(poll_device())
    assert poll.url == f"{API}auth/provider/orcid/token", "wherever the answer says to poll"
    assert json.loads(poll.body) == {
        "device_code": CODE,
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
    }
    tokens = finish(poll_device(), answer(TOKENS | {"identity": {"id": "0000-0001-2345-6789", "provider": "orcid"}}))
    assert tokens.subject == "0000-0001-2345-6789"


@pytest.mark.parametrize(
    "changes",
    [
        {"device_code": "not hex"},
        {"device_code": None},
        {"authorization_uri": "javascript:alert(1)"},
        {"user_code": ""},
        {"expires_in": 0},
    ],
)
def test_a_device_code_that_nobody_could_use(changes: dict[str, object]) -> None:
    response = answer(DEVICE_ANSWER | changes)
    assert error_of(tiled.authorize_device(metadata(SSO), NOW), response).code == "malformed"


@pytest.mark.parametrize(
    ("response", "code", "means"),
    [
        (detail({"error": "authorization_pending"}, 400), "authorization_pending", Decision.PENDING),
        (detail("No such device_code. The pending request may have expired.", 404), "expired_token", Decision.LAPSED),
        (detail("Invalid device code", 401), "expired_token", Decision.LAPSED),
        (detail("Not Found", 404), "http_404", Decision.UNKNOWN),
        (detail([{"msg": "Field required"}], 422), "http_422", Decision.UNKNOWN),
        (page(404), "html", Decision.UNKNOWN),
        (HttpResponse(503), "http_503", Decision.UNKNOWN),
        (answer({"access": "denied"}), "malformed", Decision.UNKNOWN),
    ],
)
def test_a_poll_that_brings_no_tokens(response: HttpResponse, code: str, means: Decision) -> None:
    error = error_of(poll_device(), response)
    assert (error.code, decision(error)) == (code, means)


def test_no_device_code_without_such_a_login() -> None:
    with pytest.raises(ResourceError, match="logs people in through a browser") as raised:
        next(tiled.authorize_device(metadata(TOY), NOW))
    assert raised.value.reason is Reason.GRANT_NOT_SUPPORTED


IDP = "https://auth.example.org/realms/tiled/protocol/openid-connect"
PROXIED_LINKS = {
    "auth_endpoint": f"{IDP}/auth/device",
    "authorize_endpoint": f"{API}auth/provider/institute/authorize",
    "client_id": "tiled-device",
    "token_endpoint": f"{IDP}/token",
}
PROXIED = {"provider": "institute", "mode": "external", "links": PROXIED_LINKS, "extra_scopes": ["tiled"]}


def test_an_identity_provider_issues_the_tokens() -> None:
    found = metadata(PROXIED, links=LINKS | {"refresh_session": f"{IDP}/token"})
    assert found.identity_provider == tiled.IdentityProvider(
        client_id="tiled-device",
        token_endpoint=f"{IDP}/token",
        device_authorization_endpoint=f"{IDP}/auth/device",
        scopes=("openid", "offline_access", "tiled"),
    )
    assert found.hosts == {"tiled.example.org", "auth.example.org"}
    assert found.refresh_endpoint == f"{API}auth/session/refresh"


@pytest.mark.parametrize("endpoint", ["http://auth.example.org/token", "/token", None, "https://a@b/token"])
def test_an_identity_provider_that_must_not_be_asked(endpoint: str | None) -> None:
    with pytest.raises(AnswerError, match="whose token_endpoint "):
        metadata(PROXIED | {"links": PROXIED_LINKS | {"token_endpoint": endpoint}})


NAMES = (
    "authentication", "providers", "provider", "mode", "links", "detail", "uuid", "api_keys", "secret", "device_code",
    "user_code", "authorization_uri", "expires_in", "client_id", "identity",
)  # fmt: skip
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(document=ANY_JSON, status=st.sampled_from([200, 204, 302, 400, 401, 403, 404, 409, 422, 429, 500]))
def test_whatever_a_server_answers(document: object, status: int) -> None:
    for generator in (
        tiled.discover(API),
        login(),
        refresh(),
        revoke(),
        mint(),
        tiled.whoami(metadata(), AT),
        delete(),
        tiled.authorize_device(metadata(SSO), NOW),
        poll_device(),
    ):
        next(generator)
        error: KeyferryError | None = None
        try:
            generator.send(answer(document, status))
        except StopIteration:
            assert status != 500
        except KeyferryError as raised:
            error = raised
        assert error is None or error.message.isprintable()
