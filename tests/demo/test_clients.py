from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keyferry.demo.clients import ASSERTION_TYPE, AuthMethod, Client, Grant
from keyferry.demo.wire import FORM, FormRequest, HttpRequest, OAuthError
from tests.demo.asking import ISSUER, Clock, ask, assertion, form, key_pair, refused

if TYPE_CHECKING:
    from keyferry.demo.token_service import TokenService


def test_both_secrets_of_an_overlapping_rotation_are_good(service: TokenService) -> None:
    for secret in ("old", "new"):
        assert ask(service, "client_credentials", client_secret=secret)["access_token"]
    assert refused("invalid_client", service, "client_credentials", client_secret="wrong").status == 401


def test_basic_credentials_are_form_decoded(service: TokenService) -> None:
    service.clients.add(Client("id with:colon", secrets=("a+b %c",)))
    # id%20with%3Acolon:a%2Bb+%25c
    header = "Basic aWQlMjB3aXRoJTNBY29sb246YSUyQmIrJTI1Yw=="
    assert service.token(form({"grant_type": "client_credentials"}, authorization=header))["access_token"]


def test_a_client_is_held_to_its_method_and_to_one(service: TokenService) -> None:
    header = "Basic Ym90Om5ldw=="
    with pytest.raises(OAuthError, match="may not authenticate") as caught:
        service.token(form({"grant_type": "client_credentials"}, authorization=header))
    assert caught.value.challenge
    assert "WWW-Authenticate" in caught.value.answer().headers
    with pytest.raises(OAuthError, match="more than one way"):
        service.token(
            form(
                {"grant_type": "client_credentials", "client_id": "bot", "client_secret": "new"},
                authorization=header,
            )
        )


def test_private_key_jwt_needs_a_fresh_jti(service: TokenService, clock: Clock) -> None:
    key, public = key_pair()
    service.clients.add(Client("signer", methods=(AuthMethod.PRIVATE_KEY_JWT,), public_keys=(public,)))

    def request(**claims: Any) -> FormRequest:
        token = assertion(key, clock, **({"iss": "signer", "sub": "signer", "jti": "1"} | claims))
        return form(
            {
                "grant_type": "client_credentials",
                "client_assertion_type": ASSERTION_TYPE,
                "client_assertion": token,
            }
        )

    assert service.token(request())["access_token"]
    for claims in ({}, {"jti": ""}, {"jti": "2", "aud": "https://elsewhere.example.org"}, {"jti": "3", "iss": "bot"}):
        with pytest.raises(OAuthError) as caught:
            service.token(request(**claims))
        assert (caught.value.code, caught.value.status) == ("invalid_client", 401)
    assert service.token(request(jti="4", aud=f"{ISSUER}/token"))["access_token"]


def test_a_platforms_assertion_stands_for_a_client_and_may_repeat(service: TokenService, clock: Clock) -> None:
    key, public = key_pair()
    service.clients.add(
        Client(
            "federated",
            methods=(AuthMethod.PRIVATE_KEY_JWT,),
            public_keys=(public,),
            assertion_issuer="https://cluster.example.org",
            assertion_subject="system:serviceaccount:batch:bot",
        )
    )
    token = assertion(key, clock, iss="https://cluster.example.org", sub="system:serviceaccount:batch:bot")
    for _ in range(2):
        service.token(
            form(
                {
                    "grant_type": "client_credentials",
                    "client_id": "federated",
                    "client_assertion_type": ASSERTION_TYPE,
                    "client_assertion": token,
                }
            )
        )
    assert service.issued[-1].client_id == "federated"


def test_tls_clients_need_their_certificate_and_public_ones_nothing(service: TokenService) -> None:
    service.clients.add(Client("mutual", methods=(AuthMethod.TLS,), certificate_subject="mutual"))
    asked = {"grant_type": "client_credentials", "client_id": "mutual"}
    assert service.token(form(asked, certificate_subject="mutual"))["access_token"]
    for subject in (None, "another"):
        with pytest.raises(OAuthError, match="certificate"):
            service.token(form(asked, certificate_subject=subject))

    service.clients.add(Client("app", methods=(AuthMethod.NONE,), grants=tuple(Grant), scopes=("read",)))
    seed = service.seed_refresh_token("app", "ada")
    public = {"client_id": "app", "grant_type": "refresh_token", "refresh_token": seed}
    assert service.token(form(public))["refresh_token"]
    with pytest.raises(OAuthError, match="public client"):
        service.token(form({"client_id": "app", "grant_type": "client_credentials"}))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"grant_type=a&grant_type=b", FORM),
        (b'{"grant_type": "password"}', "application/json"),
        (b"grant_type=\xff", FORM),
        (b"&".join(b"a%d=1" % number for number in range(65)), FORM),
    ],
)
def test_a_body_that_is_no_form_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(OAuthError) as caught:
        FormRequest.parse(HttpRequest("POST", "/token", body, content_type))
    assert caught.value.code == "invalid_request"


def test_audience_and_resource_may_repeat() -> None:
    parsed = FormRequest.parse(HttpRequest("POST", "/token", b"audience=a&audience=b&resource=c&x=", FORM))
    assert parsed.repeated == {"audience": ("a", "b"), "resource": ("c",)}
    assert parsed.get("x") is None


def test_secrets_are_not_in_the_printed_forms(service: TokenService) -> None:
    seed = service.seed_refresh_token("bot", "ada")
    token = ask(service, "client_credentials")["access_token"]
    request = form({"client_secret": "new-canary", "refresh_token": seed})
    printed = repr([service.clients["bot"], service.users["ada"], list(service.issued), request])
    printed += repr(service.refresh_tokens.tokens[seed])
    for secret in ("'new", "lovelace", seed, token, "canary"):
        assert secret not in printed
