from __future__ import annotations

import pytest

from keyferry.client_auth import ClientSecretBasic, NoAuthentication
from keyferry.errors import Ambiguous, ExchangeError, Reason, Refused, RetryClass
from keyferry.model import HttpResponse
from keyferry.providers.revocation import Revocation, revoke
from keyferry.secret import SecretValue
from tests.grants.drive import NOW, answer, finish, form_of, page

ENDPOINT = "https://auth.example.org/revoke"
TOKEN = SecretValue("the-token")


def revocation() -> Revocation:
    return revoke(ENDPOINT, ClientSecretBasic("bot", SecretValue("hush")), TOKEN, "refresh_token", NOW)


def test_what_is_sent() -> None:
    request = next(revocation())
    assert (request.method, request.url) == ("POST", ENDPOINT)
    assert form_of(request) == [("token", "the-token"), ("token_type_hint", "refresh_token")]
    assert request.headers["Authorization"].startswith("Basic ")
    assert not request.one_time


def test_a_hint_may_be_left_out() -> None:
    request = next(revoke(ENDPOINT, NoAuthentication("bot"), TOKEN, "", NOW))
    assert form_of(request) == [("token", "the-token"), ("client_id", "bot")]


@pytest.mark.parametrize(
    "response",
    [
        HttpResponse(200),
        HttpResponse(204),
        page(200),
        answer({"error": "unsupported_token_type"}, 400),
        answer({"error": "invalid_token"}, 400),
    ],
)
def test_done(response: HttpResponse) -> None:
    finish(revocation(), response)


@pytest.mark.parametrize(
    ("response", "kind", "retry"),
    [
        (HttpResponse(503, {"retry-after": "9"}), Ambiguous, RetryClass.TRANSIENT),
        (HttpResponse(500), Ambiguous, RetryClass.TRANSIENT),
        (page(502), Ambiguous, RetryClass.TRANSIENT),
        (HttpResponse(429, {"retry-after": "9"}), Refused, RetryClass.TRANSIENT),
        (answer({"error": "invalid_client"}, 401), Refused, RetryClass.NEEDS_CONFIGURATION),
        (answer({"error": "unauthorized_client"}, 401), Refused, RetryClass.NEEDS_CONFIGURATION),
        (answer({"error": "invalid_request"}, 400), Refused, RetryClass.NEEDS_CONFIGURATION),
        (answer({"error": "unsupported_token_type"}, 503), Ambiguous, RetryClass.TRANSIENT),
        (HttpResponse(401), Ambiguous, RetryClass.SUSPICIOUS),
        (HttpResponse(302, {"location": "https://x.example.net"}), Ambiguous, RetryClass.SUSPICIOUS),
    ],
)
def test_not_done(response: HttpResponse, kind: type[ExchangeError], retry: RetryClass) -> None:
    with pytest.raises(kind) as raised:
        finish(revocation(), response)
    assert raised.value.retry is retry
    assert "revocation endpoint at auth.example.org" in raised.value.message


def test_a_rejected_client_is_told() -> None:
    with pytest.raises(Refused) as raised:
        finish(revocation(), answer({"error": "invalid_client", "error_description": "the-token? hm"}, 401))
    assert raised.value.reason is Reason.CLIENT_REJECTED
    assert "the-token" not in raised.value.message
