"""Grants, client authentication, discovery and revocation against a real Keycloak."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from keyferry.client_auth import ClientAssertion, ClientAuth, ClientSecretBasic, ClientSecretPost, PrivateKeyJwt
from keyferry.errors import Reason, Refused, RetryClass
from keyferry.grants import GRANTS, refresh
from keyferry.grants.inputs import GrantInputs, SubjectToken
from keyferry.providers.metadata import ProviderMetadata, discover
from keyferry.providers.revocation import revoke
from keyferry.secret import SecretValue
from keyferry.spec.grant import GrantType
from tests.grants.drive import over_http

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.keycloak import Realm
    from tests.support.keycloak_realm import SecretClient

pytestmark = pytest.mark.keycloak


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60) as opened:
        yield opened


@pytest.fixture
def metadata(keycloak_realm: Realm, client: httpx.Client) -> ProviderMetadata:
    return over_http(discover(keycloak_realm.issuer()), client)


def by_basic(client: SecretClient) -> ClientSecretBasic:
    return ClientSecretBasic(client.id, SecretValue(client.secret))


def inputs(metadata: ProviderMetadata, client: ClientAuth, **changes: Any) -> GrantInputs:
    return GrantInputs(metadata.endpoint("token"), metadata.issuer, client, time.time(), **changes)


def test_discovery(metadata: ProviderMetadata, keycloak_realm: Realm) -> None:
    assert metadata.token_endpoint == keycloak_realm.endpoint("token")
    assert metadata.revocation_endpoint == keycloak_realm.endpoint("revoke")
    assert metadata.device_authorization_endpoint == keycloak_realm.endpoint("auth/device")
    assert "client_credentials" in metadata.grant_types
    assert metadata.authorization_response_iss_parameter_supported


@pytest.mark.parametrize("method", ["Basic", "Post", "RS256", "ES256", "EdDSA", "Assertion"])
def test_client_authentication(
    metadata: ProviderMetadata, keycloak_realm: Realm, client: httpx.Client, method: str
) -> None:
    material = keycloak_realm.material
    authentication: ClientAuth
    if method == "Basic":
        authentication = by_basic(material.basic)
    elif method == "Post":
        authentication = ClientSecretPost(material.post.id, SecretValue(material.post.secret))
    elif method == "Assertion":
        # The workload's subject is not the client's id, so Keycloak wants no client_id beside it.
        assertion = material.workload_issuer.sign(keycloak_realm.issuer())
        authentication = ClientAssertion("", SecretValue(assertion))
    else:
        signed = material.signed[method]
        authentication = PrivateKeyJwt.load(
            signed.id,
            SecretValue(signed.key.private_key),
            algorithm=method,
            key_id=signed.key.key_id,
            audience=metadata.issuer,
        )
    grant = GRANTS[GrantType.CLIENT_CREDENTIALS]
    tokens = over_http(grant(inputs(metadata, authentication, scopes=("email",))), client)
    assert tokens.publishable
    assert 290 < tokens.lifetime <= 300
    assert tokens.issuer == keycloak_realm.issuer()
    assert "email" in tokens.scope


def test_a_wrong_secret(metadata: ProviderMetadata, keycloak_realm: Realm, client: httpx.Client) -> None:
    wrong = ClientSecretBasic(keycloak_realm.material.basic.id, SecretValue("wrong"))
    with pytest.raises(Refused) as raised:
        over_http(GRANTS[GrantType.CLIENT_CREDENTIALS](inputs(metadata, wrong)), client)
    assert raised.value.reason is Reason.CLIENT_REJECTED
    assert raised.value.retry is RetryClass.NEEDS_CONFIGURATION


def test_login_rotation_and_revocation(rotating_realm: Realm, client: httpx.Client) -> None:
    metadata = over_http(discover(rotating_realm.issuer()), client)
    material = rotating_realm.material
    given = inputs(
        metadata,
        by_basic(material.login),
        scopes=("openid", "email"),
        username=SecretValue(material.alice.name),
        password=SecretValue(material.alice.password),
    )
    first = over_http(GRANTS[GrantType.PASSWORD](given), client)
    assert first.subject == rotating_realm.subject_of(material.alice)
    assert first.refresh_token is not None
    assert first.refresh_expires_at is not None
    second = over_http(refresh(given, first.refresh_token, one_time=True, previous_scope=first.scope), client)
    assert second.refresh_token is not None
    assert second.refresh_token != first.refresh_token
    over_http(revoke(metadata.revocation_endpoint, given.client, second.refresh_token, "refresh_token", 0.0), client)
    over_http(revoke(metadata.revocation_endpoint, given.client, SecretValue("unknown"), "", 0.0), client)
    with pytest.raises(Refused) as raised:
        over_http(refresh(given, second.refresh_token, one_time=True), client)
    assert (raised.value.code, raised.value.retry) == ("invalid_grant", RetryClass.NEEDS_PERSON)


def test_a_wrong_password(metadata: ProviderMetadata, keycloak_realm: Realm, client: httpx.Client) -> None:
    material = keycloak_realm.material
    given = inputs(
        metadata, by_basic(material.login), username=SecretValue(material.alice.name), password=SecretValue("wrong")
    )
    with pytest.raises(Refused) as raised:
        over_http(GRANTS[GrantType.PASSWORD](given), client)
    assert (raised.value.code, raised.value.retry) == ("invalid_grant", RetryClass.NEEDS_PERSON)


def test_an_assertion_of_a_partner(metadata: ProviderMetadata, keycloak_realm: Realm, client: httpx.Client) -> None:
    material = keycloak_realm.material
    assertion = SecretValue(material.assertion_issuer.sign(metadata.issuer))
    given = inputs(metadata, by_basic(material.bearer), assertion=SubjectToken(assertion))
    tokens = over_http(GRANTS[GrantType.JWT_BEARER](given), client)
    assert tokens.publishable
    assert tokens.subject == keycloak_realm.subject_of(material.alice)


def test_token_exchange(metadata: ProviderMetadata, keycloak_realm: Realm, client: httpx.Client) -> None:
    material = keycloak_realm.material
    subject = over_http(GRANTS[GrantType.CLIENT_CREDENTIALS](inputs(metadata, by_basic(material.basic))), client)
    given = inputs(
        metadata,
        by_basic(material.exchange),
        subject=SubjectToken(subject.access_token),
        audiences=(material.exchange_audience,),
    )
    tokens = over_http(GRANTS[GrantType.TOKEN_EXCHANGE](given), client)
    assert tokens.publishable, tokens.problem
    assert tokens.subject == subject.subject
    with pytest.raises(Refused) as raised:
        over_http(
            GRANTS[GrantType.TOKEN_EXCHANGE](
                inputs(metadata, by_basic(material.exchange), subject=SubjectToken(SecretValue("garbage")))
            ),
            client,
        )
    assert raised.value.retry is RetryClass.NEEDS_CONFIGURATION
