"""Authorization code with PKCE: the request, the callback, the redemption."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import Ambiguous, Reason, Refused, ResourceError, RetryClass
from keyferry.grants import rfc6749_authorization_code as code_grant
from keyferry.grants.rfc6749_authorization_code import Callback, CallbackTerms, LoginSecrets
from keyferry.secret import SecretValue
from tests.grants.drive import ISSUER, NOW, answer, finish, form_of, inputs, page

PAGE = "https://auth.example.org/authorize"
PUSH = "https://auth.example.org/par"
BACK = "https://page.example.org/callback/1"
# The verifier and challenge of RFC 7636 appendix B.
LOGIN = LoginSecrets(
    SecretValue("st-1"), SecretValue("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"), SecretValue("no-1")
)
TERMS = CallbackTerms(LOGIN.state, ISSUER, names_issuer=False)


def parameters(**changes: Any) -> dict[str, str]:
    return dict(code_grant.authorization_parameters(inputs(**changes), BACK, LOGIN))


def read(terms: CallbackTerms = TERMS, **given: str) -> SecretValue:
    return code_grant.read_callback(Callback(given), terms)


def refused(terms: CallbackTerms = TERMS, **given: str) -> Refused:
    with pytest.raises(Refused) as raised:
        read(terms, **given)
    return raised.value


class TestRequest:
    def test_vector_of_the_rfc(self) -> None:
        assert code_grant.challenge(LOGIN.verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"

    def test_parameters(self) -> None:
        found = parameters()
        assert found["response_type"] == "code"
        assert (found["client_id"], found["redirect_uri"], found["state"]) == ("bot", BACK, "st-1")
        assert found["code_challenge_method"] == "S256"
        assert "nonce" not in found
        assert LOGIN.verifier.reveal() not in found.values()

    def test_nonce_with_openid(self) -> None:
        assert parameters(scopes=("openid",))["nonce"] == "no-1"

    def test_fresh_secrets_differ(self) -> None:
        one, other = LoginSecrets.new(), LoginSecrets.new()
        values = {value.reveal() for login in (one, other) for value in (login.state, login.verifier, login.nonce)}
        assert len(values) == 6
        assert all(len(value) >= 43 for value in values), "RFC 7636 4.1"
        assert not any(value in repr(one) for value in values)

    @pytest.mark.parametrize("name", ["state", "redirect_uri", "code_challenge", "nonce"])
    def test_parameters_of_the_protocol(self, name: str) -> None:
        with pytest.raises(ResourceError):
            parameters(parameters={name: "x"})

    def test_url_keeps_the_query_of_the_endpoint(self) -> None:
        url = code_grant.authorization_url(f"{PAGE}?tenant=a", [("state", "x y")])
        assert parse_qsl(urlsplit(url).query) == [("tenant", "a"), ("state", "x y")]

    @pytest.mark.parametrize("uri", ["http://page.example.org/", "ftp://page.example.org/", "page"])
    def test_redirect_in_the_clear(self, uri: str) -> None:
        with pytest.raises(ResourceError):
            code_grant.check_redirect(uri)

    @pytest.mark.parametrize("uri", [BACK, "http://127.0.0.1:8080/cb", "http://[::1]:1/cb"])
    def test_redirect_that_is_safe(self, uri: str) -> None:
        code_grant.check_redirect(uri)


class TestPush:
    def pushed(self, document: object, status: int = 201) -> code_grant.RequestUri:
        form = code_grant.authorization_parameters(inputs(), BACK, LOGIN)
        return finish(code_grant.push(inputs(), PUSH, form), answer(document, status))

    def test_request_and_page(self) -> None:
        form = code_grant.authorization_parameters(inputs(), BACK, LOGIN)
        request = next(code_grant.push(inputs(), PUSH, form))
        assert dict(form_of(request))["state"] == "st-1"
        assert [name for name, _ in form_of(request)].count("client_id") == 1
        found = self.pushed({"request_uri": "urn:x:1", "expires_in": 60})
        assert found.expires_at == NOW + 60
        url = code_grant.pushed_url(PAGE, "bot", found)
        assert parse_qsl(urlsplit(url).query) == [("client_id", "bot"), ("request_uri", "urn:x:1")]

    @pytest.mark.parametrize("document", [{}, {"request_uri": "urn:x:1"}, {"request_uri": 1, "expires_in": 60}, []])
    def test_no_request_uri(self, document: object) -> None:
        with pytest.raises(Ambiguous):
            self.pushed(document)

    def test_refusal_without_our_secrets(self) -> None:
        with pytest.raises(Refused) as raised:
            self.pushed({"error": "invalid_request", "error_description": "state st-1 is wrong"}, 400)
        assert "st-1" not in raised.value.message


class TestCallback:
    def test_code(self) -> None:
        assert read(state="st-1", code="c-1") == SecretValue("c-1")

    @pytest.mark.parametrize("state", ["", "st-2", "st-1 ", "ST-1", "\u017ft-1"])
    def test_forged_state(self, state: str) -> None:
        error = refused(state=state, code="c-1")
        assert error.code == "wrong_state"
        assert "c-1" not in error.message

    def test_state_is_checked_before_errors_are_believed(self) -> None:
        assert refused(error="access_denied").code == "wrong_state"

    def test_mix_up(self) -> None:
        """RFC 9207 2.4: whoever names another issuer is not answering us."""
        assert refused(state="st-1", code="c-1", iss="https://evil.example.org").code == "wrong_iss"
        assert read(state="st-1", code="c-1", iss=ISSUER) == SecretValue("c-1")

    def test_server_that_announced_to_name_itself(self) -> None:
        terms = CallbackTerms(LOGIN.state, ISSUER, names_issuer=True)
        assert refused(terms, state="st-1", code="c-1").code == "missing_iss"

    def test_denied(self) -> None:
        error = refused(state="st-1", error="access_denied", error_description="no <b>way</b>\x1b")
        assert (error.code, error.reason, error.retry) == (
            "access_denied",
            Reason.APPROVAL_REQUIRED,
            RetryClass.NEEDS_PERSON,
        )
        assert "\x1b" not in error.message

    @pytest.mark.parametrize("code", ["", "a\nb", "é"])
    def test_no_code(self, code: str) -> None:
        assert refused(state="st-1", code=code).code == "missing_code"

    @given(st.dictionaries(st.sampled_from(["state", "code", "error", "iss", "error_description"]), st.text()))
    def test_nothing_gets_through_by_accident(self, given: dict[str, str]) -> None:
        try:
            read(TERMS, **given)
        except Refused:
            return
        assert given["state"] == "st-1"

    def test_prints_nothing(self) -> None:
        assert "c-1" not in repr(Callback({"code": "c-1"}))


class TestRedeem:
    def test_request(self) -> None:
        request = next(code_grant.redeem(inputs(), SecretValue("c-1"), BACK, LOGIN.verifier))
        form = dict(form_of(request))
        assert form["grant_type"] == "authorization_code"
        assert (form["code"], form["redirect_uri"]) == ("c-1", BACK)
        assert form["code_verifier"] == LOGIN.verifier.reveal()
        assert request.one_time

    def test_lost_answer_is_in_doubt(self) -> None:
        with pytest.raises(Ambiguous) as unclear:
            finish(code_grant.redeem(inputs(), SecretValue("c-1"), BACK, LOGIN.verifier), page(502))
        assert unclear.value.retry is RetryClass.IN_DOUBT

    def test_echoed_code_is_cut_out(self) -> None:
        generator = code_grant.redeem(inputs(), SecretValue("c-1"), BACK, LOGIN.verifier)
        with pytest.raises(Refused) as raised:
            finish(generator, answer({"error": "invalid_grant", "error_description": "c-1 is used up"}, 400))
        assert "c-1" not in raised.value.message
