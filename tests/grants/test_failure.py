"""Both tables of errors: what came, what was sent, what follows."""

from __future__ import annotations

import pytest

from keyferry.errors import Ambiguous, ExchangeError, Reason, Refused, RetryClass
from keyferry.grants.answer import parse_token_answer
from keyferry.grants.document import host_of, shown
from keyferry.grants.failure import Asked, failure
from keyferry.grants.retry_after import retry_after
from keyferry.model import HttpResponse
from keyferry.secret import SecretValue
from tests.grants.drive import ENDPOINT, NOW, answer, inputs, page

TRANSIENT, SUSPICIOUS, IN_DOUBT = RetryClass.TRANSIENT, RetryClass.SUSPICIOUS, RetryClass.IN_DOUBT
PERSON, CONFIGURATION = RetryClass.NEEDS_PERSON, RetryClass.NEEDS_CONFIGURATION


def error_of(response: HttpResponse, *, one_time: bool) -> ExchangeError:
    with pytest.raises(ExchangeError) as raised:
        parse_token_answer(response, inputs(), one_time=one_time)
    return raised.value


@pytest.mark.parametrize("one_time", [False, True])
@pytest.mark.parametrize(
    ("status", "code", "retry", "reason"),
    [
        (400, "invalid_grant", PERSON, Reason.GRANT_REJECTED),
        (401, "invalid_grant", PERSON, Reason.GRANT_REJECTED),
        (500, "invalid_grant", PERSON, Reason.GRANT_REJECTED),
        (401, "invalid_client", CONFIGURATION, Reason.CLIENT_REJECTED),
        (400, "invalid_client", CONFIGURATION, Reason.CLIENT_REJECTED),
        (401, "unauthorized_client", CONFIGURATION, Reason.CLIENT_REJECTED),
        (400, "unauthorized_client", CONFIGURATION, Reason.GRANT_NOT_SUPPORTED),
        (400, "unsupported_grant_type", CONFIGURATION, Reason.GRANT_NOT_SUPPORTED),
        (400, "invalid_scope", CONFIGURATION, Reason.GRANT_REJECTED),
        (400, "invalid_target", CONFIGURATION, Reason.GRANT_REJECTED),
        (400, "invalid_request", CONFIGURATION, Reason.GRANT_REJECTED),
        (403, "access_denied", CONFIGURATION, Reason.GRANT_REJECTED),
        (400, "interaction_required", PERSON, Reason.APPROVAL_REQUIRED),
        (400, "consent_required", PERSON, Reason.APPROVAL_REQUIRED),
        (400, "login_required", PERSON, Reason.APPROVAL_REQUIRED),
        (400, "temporarily_unavailable", TRANSIENT, Reason.RETRYING),
        (503, "temporarily_unavailable", TRANSIENT, Reason.RETRYING),
        (500, "server_error", TRANSIENT, Reason.RETRYING),
        (400, "authorization_pending", TRANSIENT, Reason.APPROVAL_REQUIRED),
        (400, "slow_down", TRANSIENT, Reason.APPROVAL_REQUIRED),
        (400, "expired_token", PERSON, Reason.APPROVAL_REQUIRED),
        (404, "Realm does not exist", CONFIGURATION, Reason.GRANT_REJECTED),
    ],
)
def test_a_well_formed_refusal(status: int, code: str, retry: RetryClass, reason: Reason, one_time: bool) -> None:  # noqa: FBT001
    error = error_of(answer({"error": code, "error_description": "because"}, status), one_time=one_time)
    assert isinstance(error, Refused)
    assert (error.code, error.retry, error.reason) == (code, retry, reason)
    assert error.message.startswith(f"The token endpoint at auth.example.org refused: {code} (because). ")


@pytest.mark.parametrize(
    ("response", "repeatable"),
    [
        (HttpResponse(500), TRANSIENT),
        (HttpResponse(502), TRANSIENT),
        (HttpResponse(503), TRANSIENT),
        (HttpResponse(504), TRANSIENT),
        (HttpResponse(408), TRANSIENT),
        (page(502), TRANSIENT),
        (answer({"error": "unknown_error"}, 500), TRANSIENT),
        (answer({"message": "boom"}, 500), TRANSIENT),
        (HttpResponse(200), TRANSIENT),
        (HttpResponse(204), TRANSIENT),
        (HttpResponse(200, {}, b'{"access_token": "at", "expi'), TRANSIENT),
        (HttpResponse(200, {}, b"[" * 100_000), TRANSIENT),
        (answer(["at"]), TRANSIENT),
        (answer({"error": {"code": 5}}), TRANSIENT),
        (answer({"error": "bad\ncode"}), TRANSIENT),
        (page(200), SUSPICIOUS),
        (HttpResponse(200, {}, b"  <html>"), SUSPICIOUS),
        (page(401), SUSPICIOUS),
        (page(403), SUSPICIOUS),
        (page(404), SUSPICIOUS),
        (HttpResponse(401), SUSPICIOUS),
        (HttpResponse(403, {}, b"blocked"), SUSPICIOUS),
        (answer({"message": "forbidden"}, 403), SUSPICIOUS),
        (answer({"error": {"status": 404}}, 404), SUSPICIOUS),
        (HttpResponse(302, {"location": "https://login.example.net/"}), SUSPICIOUS),
        (HttpResponse(307), SUSPICIOUS),
    ],
)
@pytest.mark.parametrize("one_time", [False, True])
def test_what_is_no_answer_leaves_a_one_time_credential_in_doubt(
    response: HttpResponse,
    repeatable: RetryClass,
    one_time: bool,  # noqa: FBT001
) -> None:
    error = error_of(response, one_time=one_time)
    assert isinstance(error, Ambiguous)
    assert error.retry is (IN_DOUBT if one_time else repeatable)
    assert error.reason is (Reason.REFRESH_IN_DOUBT if one_time else Reason.RETRYING)


@pytest.mark.parametrize("one_time", [False, True])
def test_too_many_requests_waits_as_told(one_time: bool) -> None:  # noqa: FBT001
    error = error_of(answer({"error": "slow_down"}, 429, retry_after="17"), one_time=one_time)
    assert isinstance(error, Refused)
    assert (error.retry, error.retry_after, error.code) == (TRANSIENT, 17.0, "too_many_requests")


def test_a_503_waits_as_told_and_stays_in_doubt() -> None:
    response = HttpResponse(503, {"retry-after": "30"})
    repeatable, once = error_of(response, one_time=False), error_of(response, one_time=True)
    assert (repeatable.retry, repeatable.retry_after) == (TRANSIENT, 30.0)
    assert isinstance(once, Ambiguous)
    assert (once.retry, once.retry_after) == (IN_DOUBT, 30.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": " 5 "}, 5.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "9" * 400}, 3600.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 15 Jan 2100 08:00:00 GMT"}, 3600.0),
        ({"retry-after": "Fri, 15 Jan 2027 09:00:10 GMT", "date": "Fri, 15 Jan 2027 09:00:00 GMT"}, 10.0),
        ({"retry-after": "Fri, 99 Jan 2027 09:00:10 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=NOW) == seconds


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("https://login.example.net/secret/path?token=abc", "redirects to login.example.net, "),
        ("https://login.example.net:8443/x", "redirects to login.example.net:8443, "),
        ("/elsewhere?code=xyz", "to another path of the same host"),
        ("https://[broken", "to an unreadable address"),
    ],
)
def test_a_redirect_is_told_by_its_host_alone(location: str, words: str) -> None:
    message = error_of(HttpResponse(302, {"location": location}), one_time=False).message
    assert words in message
    assert not any(secret in message for secret in ("token=", "path?", "code=", "xyz"))


def test_an_echoed_secret_is_not_shown() -> None:
    asked = Asked(ENDPOINT, secrets=(SecretValue("my pass"), None))
    response = answer({"error": "invalid_grant", "error_description": "Wrong password 'my pass' for bob"}, 400)
    message = failure(response, asked).message
    assert "my pass" not in message
    assert "Wrong password" in message


def test_the_secrets_of_the_inputs_are_cut_out() -> None:
    given = inputs(password=SecretValue("hunter2"))
    with pytest.raises(Refused) as raised:
        parse_token_answer(
            answer({"error": "invalid_grant", "error_description": "no hunter2"}, 400), given, one_time=False
        )
    assert "hunter2" not in raised.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Token is not active", "Token is not active"),
        ("a\r\n\tb\x00c\x1b[31m", "a b c [31m"),
        ("ungültig", "ung?ltig"),
        ("x\u202ey", "x?y"),
        ("AADSTS7000215: Invalid client secret", "AADSTS7000215: Invalid client secret"),
        ("got eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2ln here", "got … here"),
        ("key 0123456789abcdef0 is wrong", "key … is wrong"),
        ("y" * 41, "…"),
        (5, ""),
        (None, ""),
    ],
)
def test_shown(text: object, expected: str) -> None:
    assert shown(text) == expected


@pytest.mark.parametrize("form", ["p&ss w", "p%26ss+w", "p%26ss%20w", "cCZzcyB3"])
def test_a_secret_is_not_shown_in_any_form_in_which_it_was_sent(form: str) -> None:
    assert shown(f"who is {form}?", secrets=(None, SecretValue("p&ss w"))) == "who is … ?"


@pytest.mark.parametrize("held", ["username", "password", "hidden"])
def test_what_came_from_a_secret_is_not_shown_whatever_it_was_sent_as(held: str) -> None:
    secret = SecretValue("hunter2")
    given = inputs(**{held: (secret,) if held == "hidden" else secret})
    with pytest.raises(Refused) as raised:
        parse_token_answer(
            answer({"error": "invalid_request", "error_description": "who is hunter2?"}, 400), given, one_time=False
        )
    assert "hunter2" not in raised.value.message
    assert "who is" in raised.value.message


def test_shown_is_short() -> None:
    text = shown("word " * 5000)
    assert len(text) == 200
    assert text.endswith("…")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Auth.Example.org/x", "auth.example.org"),
        ("https://auth.example.org:443/", "auth.example.org"),
        ("http://auth.example.org:80/", "auth.example.org"),
        ("http://auth.example.org:443/", "auth.example.org:443"),
        ("https://[::1]:8443/", "[::1]:8443"),
        ("/path", ""),
        ("https://host:port/", ""),
        ("", ""),
    ],
)
def test_host_of(url: str, host: str) -> None:
    assert host_of(url) == host
