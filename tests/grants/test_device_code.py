"""Device authorization, RFC 8628: what is asked, what is read, how often is asked again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import Ambiguous, ExchangeError, KeyferryError, Refused, ResourceError, RetryClass
from keyferry.grants import rfc8628_device_code as device
from keyferry.grants.rfc8628_device_code import Decision
from keyferry.secret import SecretValue
from tests.grants.drive import NOW, answer, finish, form_of, inputs, page

if TYPE_CHECKING:
    from keyferry.model import HttpResponse

URL = "https://auth.example.org/device"
CODE = SecretValue("dc-1")
GIVEN: dict[str, Any] = {
    "device_code": "dc-1",
    "user_code": "WDJB-MJHT",
    "verification_uri": "https://auth.example.org/go",
    "verification_uri_complete": "https://auth.example.org/go?user_code=WDJB-MJHT",
    "expires_in": 600,
    "interval": 7,
}


def authorized(**changes: Any) -> device.DeviceAuthorization:
    return finish(device.authorize(inputs(), URL), answer({**GIVEN, **changes}))


def refusal(code: str, status: int = 400) -> ExchangeError:
    with pytest.raises(ExchangeError) as raised:
        finish(device.poll(inputs(), CODE), answer({"error": code}, status))
    return raised.value


class TestAuthorize:
    def test_request(self) -> None:
        request = next(device.authorize(inputs(audiences=("api",), parameters={"acr_values": "2"}), URL))
        assert (request.method, request.url, request.one_time) == ("POST", URL, False)
        assert form_of(request) == [("scope", "read write"), ("audience", "api"), ("acr_values", "2")]
        assert request.headers["Authorization"].startswith("Basic ")

    def test_answer(self) -> None:
        found = authorized()
        assert found.device_code == CODE
        assert (found.user_code, found.verification_uri) == ("WDJB-MJHT", "https://auth.example.org/go")
        assert (found.expires_at, found.interval) == (NOW + 600, 7)
        assert "dc-1" not in repr(found)
        assert "WDJB" not in repr(found)

    def test_name_from_before_the_rfc(self) -> None:
        found = authorized(verification_uri=None, verification_url="https://auth.example.org/old")
        assert found.verification_uri == "https://auth.example.org/old"

    @pytest.mark.parametrize("interval", [None, 0, -1, "soon", True, math.nan])
    def test_interval_by_default(self, interval: object) -> None:
        assert authorized(interval=interval).interval == 5

    @pytest.mark.parametrize(("field", "value"), [("interval", 1e9), ("expires_in", 1e12)])
    def test_absurd_numbers_are_cut(self, field: str, value: float) -> None:
        found = authorized(**{field: value})
        assert found.interval <= device.LONGEST_INTERVAL
        assert found.expires_at <= NOW + device.LONGEST_LIFE

    @pytest.mark.parametrize(
        "changes",
        [
            {"device_code": None},
            {"device_code": "a\nb"},
            {"user_code": ""},
            {"user_code": "x" * 65},
            {"user_code": "\x1b[2J"},
            {"verification_uri": None},
            {"verification_uri": "javascript:alert(1)"},
            {"verification_uri": "https://auth.example.org@evil.example.org/"},
            {"verification_uri": "https://auth.example.org/ x"},
            {"expires_in": None},
            {"expires_in": 0},
        ],
    )
    def test_what_a_person_cannot_be_shown(self, changes: dict[str, Any]) -> None:
        with pytest.raises(Ambiguous):
            authorized(**changes)

    def test_complete_page_that_is_none_is_left_out(self) -> None:
        assert authorized(verification_uri_complete="javascript:alert(1)").verification_uri_complete == ""

    @pytest.mark.parametrize(
        ("response", "kind"),
        [(answer({"error": "invalid_client"}, 401), Refused), (page(503), Ambiguous), (answer([]), Ambiguous)],
    )
    def test_refusals(self, response: HttpResponse, kind: type[KeyferryError]) -> None:
        with pytest.raises(kind):
            finish(device.authorize(inputs(), URL), response)

    def test_parameters_of_the_protocol(self) -> None:
        with pytest.raises(ResourceError):
            next(device.authorize(inputs(parameters={"scope": "all"}), URL))

    @given(st.dictionaries(st.sampled_from(sorted(GIVEN)), st.none() | st.text() | st.floats() | st.booleans()))
    def test_any_answer_is_read_or_refused(self, changes: dict[str, Any]) -> None:
        try:
            found = authorized(**changes)
        except KeyferryError:
            return
        assert NOW < found.expires_at < math.inf
        assert 0 < found.interval < math.inf


class TestPoll:
    def test_request(self) -> None:
        request = next(device.poll(inputs(), CODE))
        assert form_of(request) == [("grant_type", device.DEVICE_CODE), ("device_code", "dc-1")]
        assert request.one_time, "an approved device code is used up by the answer"

    def test_tokens(self) -> None:
        tokens = finish(device.poll(inputs(), CODE), answer({"access_token": "at", "refresh_token": "rt"}))
        assert tokens.refresh_token == SecretValue("rt")
        assert tokens.scope == "read write"

    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            ("authorization_pending", Decision.PENDING),
            ("slow_down", Decision.PENDING),
            ("access_denied", Decision.DENIED),
            ("expired_token", Decision.LAPSED),
            ("invalid_grant", Decision.LAPSED),
            ("invalid_client", Decision.UNKNOWN),
            ("server_error", Decision.UNKNOWN),
        ],
    )
    def test_decisions(self, code: str, expected: Decision) -> None:
        assert device.decision(refusal(code)) is expected

    def test_lost_answer_is_in_doubt(self) -> None:
        with pytest.raises(Ambiguous) as unclear:
            finish(device.poll(inputs(), CODE), page(502))
        assert unclear.value.retry is RetryClass.IN_DOUBT
        assert device.decision(unclear.value) is Decision.UNKNOWN

    def test_intervals(self) -> None:
        pending, slow = refusal("authorization_pending"), refusal("slow_down")
        assert device.next_interval(5, pending) == 5
        assert device.next_interval(device.next_interval(5, slow), pending) == 10, "slow_down holds for good"
        assert device.next_interval(5, refusal("server_error")) == 10
        assert device.next_interval(299, slow) == device.LONGEST_INTERVAL
