from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jwt
import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.demo.grants import ACCESS_TOKEN_TYPE, JWT_TYPE
from keyferry.demo.refresh_tokens import Outcome, RefreshPolicy, ReplayAnswer, Rotation
from keyferry.demo.signing import TokenFormat, TrustedIssuer
from keyferry.demo.wire import OAuthError
from tests.demo.asking import ISSUER, Clock, ask, assertion, form, introspect, key_pair, refresh, refused

if TYPE_CHECKING:
    from keyferry.demo.token_service import TokenService


def test_client_credentials_answer_is_complete_and_remembered(service: TokenService, clock: Clock) -> None:
    answer = ask(service, "client_credentials")
    assert answer == {
        "access_token": answer["access_token"],
        "token_type": "Bearer",
        "expires_in": 60,
        "scope": "openid read write",
    }
    issued = service.issued[-1]
    assert (issued.value, issued.client_id, issued.grant) == (answer["access_token"], "bot", Grant.CLIENT_CREDENTIALS)
    assert issued.expires_at == clock.now + 60


def test_a_signed_token_verifies_against_the_published_keys(service: TokenService) -> None:
    service.settings.token_format = TokenFormat.ES256
    token = ask(service, "client_credentials", scope="read", audience="api")["access_token"]
    key = jwt.PyJWK(service.signer.jwks()["keys"][0])  # type: ignore[index]
    options: Any = {"verify_exp": False, "verify_iat": False}
    claims = jwt.decode(token, key, audience="api", issuer=ISSUER, options=options)
    assert (claims["sub"], claims["client_id"], claims["scope"]) == ("bot", "bot", "read")
    assert claims["exp"] - claims["iat"] == 60
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"


def test_a_client_may_have_another_format_and_lifetime(service: TokenService) -> None:
    service.clients["bot"].token_format = TokenFormat.HS256
    service.clients["bot"].access_lifetime = 5
    answer = ask(service, "client_credentials")
    options: Any = {"verify_exp": False, "verify_iat": False}
    claims = jwt.decode(answer["access_token"], service.signer.shared_key, algorithms=["HS256"], options=options)
    assert answer["expires_in"] == claims["exp"] - claims["iat"] == 5


def test_a_refresh_token_is_accepted_once_and_its_reuse_revokes_the_family(service: TokenService) -> None:
    first = service.seed_refresh_token("bot", "ada")
    second = refresh(service, first)
    third = refresh(service, second["refresh_token"])
    assert len({first, second["refresh_token"], third["refresh_token"]}) == 3

    assert "used before" in refused("invalid_grant", service, "refresh_token", refresh_token=first).description
    refused("invalid_grant", service, "refresh_token", refresh_token=third["refresh_token"])

    spends = {spend.token: spend for spend in service.spends()}
    assert [shown.outcome for shown in spends[first].presentations] == [Outcome.ACCEPTED, Outcome.REUSED]
    assert (spends[first].presented, spends[first].accepted) == (2, 1)
    assert [shown.outcome for shown in spends[third["refresh_token"]].presentations] == [Outcome.REVOKED]
    assert all(spend.revoked for spend in spends.values())
    assert introspect(service, third["access_token"]) == {"active": False}


def test_the_reuse_of_one_family_leaves_another_alone(service: TokenService) -> None:
    one, other = service.seed_refresh_token("bot", "ada"), service.seed_refresh_token("bot", "ada")
    refresh(service, one)
    refused("invalid_grant", service, "refresh_token", refresh_token=one)
    assert refresh(service, other)["refresh_token"]


@pytest.mark.parametrize("answer", list(ReplayAnswer))
def test_within_the_reuse_window_a_replay_is_answered(
    service: TokenService, clock: Clock, answer: ReplayAnswer
) -> None:
    service.refresh_tokens.policy = RefreshPolicy(reuse_window=10, replay_answer=answer)
    seed = service.seed_refresh_token("bot", "ada")
    first = refresh(service, seed)
    clock.now += 10
    again = refresh(service, seed)
    assert (again["refresh_token"] == first["refresh_token"]) is (answer is ReplayAnswer.SAME)
    assert again["access_token"] != first["access_token"]
    assert refresh(service, again["refresh_token"])["refresh_token"]
    spend = next(spend for spend in service.spends() if spend.token == seed)
    assert [shown.outcome for shown in spend.presentations] == [Outcome.ACCEPTED, Outcome.REPLAYED]


def test_after_the_reuse_window_a_replay_revokes(service: TokenService, clock: Clock) -> None:
    service.refresh_tokens.policy = RefreshPolicy(reuse_window=10)
    seed = service.seed_refresh_token("bot", "ada")
    successor = refresh(service, seed)["refresh_token"]
    clock.now += 10.1
    refused("invalid_grant", service, "refresh_token", refresh_token=seed)
    refused("invalid_grant", service, "refresh_token", refresh_token=successor)


def test_the_reuse_window_ends_when_the_successor_was_spent(service: TokenService) -> None:
    service.refresh_tokens.policy = RefreshPolicy(reuse_window=10)
    seed = service.seed_refresh_token("bot", "ada")
    refresh(service, refresh(service, seed)["refresh_token"])
    refused("invalid_grant", service, "refresh_token", refresh_token=seed)


@pytest.mark.parametrize(("rotation", "echoed"), [(Rotation.REUSABLE, True), (Rotation.REUSABLE_SILENT, False)])
def test_without_rotation_a_refresh_token_stays_good(
    service: TokenService, rotation: Rotation, *, echoed: bool
) -> None:
    service.refresh_tokens.policy = RefreshPolicy(rotation=rotation)
    seed = service.seed_refresh_token("bot", "ada")
    for _ in range(3):
        assert refresh(service, seed).get("refresh_token") == (seed if echoed else None)
    assert introspect(service, seed)["active"] is True


def test_refresh_tokens_end_by_idleness_and_by_age(service: TokenService, clock: Clock) -> None:
    service.refresh_tokens.policy = RefreshPolicy(idle=100, maximum=250)
    token = service.seed_refresh_token("bot", "ada")
    idle = service.seed_refresh_token("bot", "ada")
    for _ in range(2):
        clock.now += 99
        token = refresh(service, token)["refresh_token"]
    refused("invalid_grant", service, "refresh_token", refresh_token=idle)
    clock.now += 60
    assert "expired" in refused("invalid_grant", service, "refresh_token", refresh_token=token).description


def test_another_clients_refresh_token_is_refused_and_not_spent(service: TokenService) -> None:
    service.clients.add(Client("thief", secrets=("s",), methods=(AuthMethod.POST,), grants=(Grant.REFRESH_TOKEN,)))
    seed = service.seed_refresh_token("bot", "ada")
    with pytest.raises(OAuthError, match="another client"):
        service.token(
            form({"client_id": "thief", "client_secret": "s", "grant_type": "refresh_token", "refresh_token": seed})
        )
    assert refresh(service, seed)["refresh_token"]


def test_a_scope_too_wide_is_refused_without_spending(service: TokenService) -> None:
    seed = service.seed_refresh_token("bot", "ada", ("read",))
    refused("invalid_scope", service, "refresh_token", refresh_token=seed, scope="read write")
    assert refresh(service, seed)["scope"] == "read"


def test_an_unknown_refresh_token_is_recorded(service: TokenService) -> None:
    refused("invalid_grant", service, "refresh_token", refresh_token="made-up")
    (spend,) = service.spends()
    assert (spend.token, spend.family, spend.presented, spend.accepted) == ("made-up", None, 1, 0)


def test_password_answers_with_refresh_and_id_token(service: TokenService) -> None:
    answer = ask(service, "password", username="ada", password="lovelace", scope="openid read")
    claims = jwt.decode(answer["id_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["aud"], claims["email"], claims["email_verified"]) == (
        "ada",
        "bot",
        "ada@example.org",
        True,
    )
    assert refresh(service, answer["refresh_token"])["scope"] == "openid read"
    service.clients["bot"].grants = (Grant.PASSWORD,)
    assert "refresh_token" not in ask(service, "password", username="ada", password="lovelace")


def test_wrong_passwords_lock_the_account_where_that_is_set(service: TokenService) -> None:
    service.settings.lock_after = 2
    for _ in range(2):
        refused("invalid_grant", service, "password", username="ada", password="wrong")
    error = refused("invalid_grant", service, "password", username="ada", password="lovelace")
    assert "locked" in error.description


def test_jwt_bearer_takes_assertions_of_a_trusted_issuer_only(service: TokenService, clock: Clock) -> None:
    key, public = key_pair()
    service.trust(TrustedIssuer("https://cluster.example.org", (public,)))
    good = {"iss": "https://cluster.example.org"}
    ask(service, Grant.JWT_BEARER, assertion=assertion(key, clock, **good))
    assert service.issued[-1].subject == "job"

    stranger, _ = key_pair()
    bad = [
        assertion(stranger, clock, **good),
        assertion(key, clock, iss="https://elsewhere.example.org"),
        assertion(key, clock, **good, aud="https://elsewhere.example.org"),
        assertion(key, clock, **(good | {"exp": int(clock.now - 1)})),
        assertion(key, clock, **(good | {"nbf": int(clock.now + 5)})),
        "not.a.jwt",
    ]
    for text in bad:
        refused("invalid_grant", service, Grant.JWT_BEARER, assertion=text)


def test_token_exchange_of_an_own_token_names_its_type(service: TokenService, clock: Clock) -> None:
    subject = ask(service, "password", username="ada", password="lovelace")["access_token"]
    exchange = {"subject_token": subject, "subject_token_type": ACCESS_TOKEN_TYPE}
    answer = ask(service, Grant.TOKEN_EXCHANGE, **exchange, audience="api")
    assert answer["issued_token_type"] == ACCESS_TOKEN_TYPE
    assert "refresh_token" not in answer
    assert introspect(service, answer["access_token"])["sub"] == "ada"
    assert introspect(service, answer["access_token"])["aud"] == ["api"]

    clock.now += 61
    refused("invalid_request", service, Grant.TOKEN_EXCHANGE, **exchange)


def test_token_exchange_of_a_foreign_jwt_with_an_actor(service: TokenService, clock: Clock) -> None:
    key, public = key_pair()
    service.trust(TrustedIssuer("https://cluster.example.org", (public,)))
    service.settings.token_format = TokenFormat.ES256
    token = assertion(key, clock, iss="https://cluster.example.org")
    actor = ask(service, "client_credentials")["access_token"]
    answer = ask(
        service,
        Grant.TOKEN_EXCHANGE,
        subject_token=token,
        subject_token_type=JWT_TYPE,
        requested_token_type=JWT_TYPE,
        actor_token=actor,
        actor_token_type=ACCESS_TOKEN_TYPE,
    )
    claims = jwt.decode(answer["access_token"], options={"verify_signature": False})
    assert (claims["sub"], claims["act"], answer["issued_token_type"]) == ("job", {"sub": "bot"}, JWT_TYPE)


def test_targets_and_scopes_beyond_the_registration_are_refused(service: TokenService) -> None:
    service.clients["bot"].audiences = ("api",)
    refused("invalid_target", service, "client_credentials", audience="other")
    refused("invalid_target", service, "client_credentials", resource="https://other.example.org")
    refused("invalid_scope", service, "client_credentials", scope="admin")
    refused("unsupported_grant_type", service, "implicit")
    service.clients["bot"].grants = (Grant.PASSWORD,)
    refused("unauthorized_client", service, "client_credentials")


def test_revocation_ends_refresh_and_access_tokens(service: TokenService) -> None:
    answer = ask(service, "password", username="ada", password="lovelace")
    assert introspect(service, answer["refresh_token"])["active"] is True
    assert introspect(service, answer["access_token"])["active"] is True
    who = {"client_id": "bot", "client_secret": "new"}
    service.revoke(form({**who, "token": answer["refresh_token"]}))
    assert introspect(service, answer["refresh_token"]) == {"active": False}
    assert introspect(service, answer["access_token"]) == {"active": False}
    refused("invalid_grant", service, "refresh_token", refresh_token=answer["refresh_token"])

    single = ask(service, "client_credentials")["access_token"]
    service.revoke(form({**who, "token": single}))
    assert introspect(service, single) == {"active": False}
    service.revoke(form({**who, "token": "unknown"}))


def test_another_clients_token_is_not_revoked(service: TokenService) -> None:
    service.clients.add(Client("thief", secrets=("s",), methods=(AuthMethod.POST,)))
    token = ask(service, "client_credentials")["access_token"]
    with pytest.raises(OAuthError, match="another client"):
        service.revoke(form({"client_id": "thief", "client_secret": "s", "token": token}))
    assert introspect(service, token)["active"] is True


def test_an_access_token_ends_with_its_lifetime(service: TokenService, clock: Clock) -> None:
    token = ask(service, "client_credentials")["access_token"]
    clock.now += 59.9
    assert introspect(service, token)["active"] is True
    clock.now += 0.1
    assert introspect(service, token) == {"active": False}


def test_expired_access_tokens_are_forgotten(service: TokenService, clock: Clock) -> None:
    first = ask(service, "client_credentials")["access_token"]
    clock.now += 61
    for _ in range(20_000):
        ask(service, "client_credentials")
    assert first not in service.access_tokens
    assert len(service.access_tokens) < 20_000 + 1
    assert service.issued[0].value == first
