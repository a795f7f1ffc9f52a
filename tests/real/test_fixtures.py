"""The real servers do, as provisioned, what the other tests rely on: asked with plain HTTP, without Keyferry."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import httpx
import jwt
import pytest

from tests.support.keycloak_realm import ALGORITHMS, RealmOptions, SecretClient
from tests.support.pki import EXPIRED, Authority, self_signed
from tests.support.servers import Lease, StartError, free_port, start_server
from tests.support.tiled import ARRAY, ARRAY_VALUES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.keycloak import Keycloak, Realm
    from tests.support.tiled import TiledServer

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"


def post(url: str, form: dict[str, str], client: SecretClient | None = None) -> httpx.Response:
    """Send a form, with HTTP Basic as RFC 6749 section 2.3.1 wants it: both parts form-encoded first."""
    auth = (quote_plus(client.id), quote_plus(client.secret)) if client else None
    return httpx.post(url, data=form, auth=auth, timeout=60) if auth else httpx.post(url, data=form, timeout=60)


def tokens(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert found["access_token"]
    assert found["token_type"].lower() == "bearer"
    return found


def claims(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return found


def log_in(realm: Realm, scope: str = "openid email") -> dict[str, Any]:
    alice = realm.material.alice
    form = {"grant_type": "password", "username": alice.name, "password": alice.password, "scope": scope}
    return tokens(post(realm.endpoint(), form, realm.material.login))


def refresh(realm: Realm, refresh_token: str) -> httpx.Response:
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    return post(realm.endpoint(), form, realm.material.login)


@pytest.mark.keycloak
@pytest.mark.parametrize("https", [False, True])
def test_the_issuer_is_the_address_asked(keycloak: Keycloak, https: bool) -> None:  # noqa: FBT001
    context = keycloak.material.authority.client_context()
    for name in ("keyferry", "rotating"):
        issuer = keycloak.issuer(name, https=https)
        answer = httpx.get(f"{issuer}/.well-known/openid-configuration", verify=context, timeout=60)
        assert answer.json()["issuer"] == issuer
        assert answer.json()["token_endpoint"] == keycloak.realm(name).endpoint(https=https)


@pytest.mark.keycloak
class TestClientAuthentication:
    def test_secret_by_basic(self, keycloak_realm: Realm) -> None:
        client = keycloak_realm.material.basic
        got = tokens(post(keycloak_realm.endpoint(), {"grant_type": "client_credentials"}, client))
        assert claims(got["access_token"])["azp"] == client.id
        assert "refresh_token" not in got

    def test_secret_in_the_body(self, keycloak_realm: Realm) -> None:
        client = keycloak_realm.material.post
        form = {"grant_type": "client_credentials", "client_id": client.id, "client_secret": client.secret}
        assert claims(tokens(post(keycloak_realm.endpoint(), form))["access_token"])["azp"] == client.id

    def test_wrong_secret_is_refused(self, keycloak_realm: Realm) -> None:
        wrong = SecretClient(keycloak_realm.material.basic.id, "wrong")
        answer = post(keycloak_realm.endpoint(), {"grant_type": "client_credentials"}, wrong)
        assert answer.status_code == 401
        assert answer.json()["error"] in {"invalid_client", "unauthorized_client"}

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_signed_jwt(self, keycloak_realm: Realm, algorithm: str) -> None:
        client = keycloak_realm.material.signed[algorithm]
        assertion = client.assertion(keycloak_realm.issuer())
        form = {
            "grant_type": "client_credentials",
            "client_id": client.id,
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion,
        }
        got = tokens(post(keycloak_realm.endpoint(), form))
        assert claims(got["access_token"])["azp"] == client.id
        assert post(keycloak_realm.endpoint(), form).status_code in {400, 401}, "an assertion is good once"

    def test_token_of_a_trusted_issuer(self, keycloak_realm: Realm) -> None:
        material = keycloak_realm.material
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": material.workload_issuer.sign(keycloak_realm.issuer()),
        }
        got = tokens(post(keycloak_realm.endpoint(), form))
        assert claims(got["access_token"])["azp"] == material.federated_client

    def test_certificate(self, keycloak_realm: Realm, tmp_path: Path) -> None:
        material = keycloak_realm.material
        context = material.authority.client_context(material.mtls.certificate, tmp_path)
        form = {"grant_type": "client_credentials", "client_id": material.mtls.id}
        url = keycloak_realm.endpoint(https=True)
        got = tokens(httpx.post(url, data=form, verify=context, timeout=60))
        assert claims(got["access_token"])["azp"] == material.mtls.id
        assert claims(got["access_token"])["iss"] == keycloak_realm.issuer(https=True)

        without = httpx.post(url, data=form, verify=material.authority.client_context(), timeout=60)
        assert without.status_code in {400, 401}

    @pytest.mark.parametrize("flaw", ["expired", "self-signed", "another authority"])
    def test_bad_certificate_is_refused(self, keycloak_realm: Realm, tmp_path: Path, flaw: str) -> None:
        material = keycloak_realm.material
        certificate = {
            "expired": lambda: material.authority.client(material.mtls.id, EXPIRED),
            "self-signed": lambda: self_signed(material.mtls.id),
            "another authority": lambda: Authority.create().client(material.mtls.id),
        }[flaw]()
        context = material.authority.client_context(certificate, tmp_path)
        form = {"grant_type": "client_credentials", "client_id": material.mtls.id}
        try:
            answer = httpx.post(keycloak_realm.endpoint(https=True), data=form, verify=context, timeout=60)
        except httpx.TransportError:
            return  # the handshake itself was refused
        assert answer.status_code in {400, 401}


@pytest.mark.keycloak
class TestPersonsTokens:
    def test_password(self, keycloak_realm: Realm) -> None:
        found = claims(log_in(keycloak_realm)["access_token"])
        assert found["sub"] == keycloak_realm.subject_of(keycloak_realm.material.alice)
        assert found["email"] == keycloak_realm.material.alice.email
        assert found["email_verified"] is True

    def test_wrong_password_is_refused(self, keycloak_realm: Realm) -> None:
        form = {"grant_type": "password", "username": "alice", "password": "wrong"}
        answer = post(keycloak_realm.endpoint(), form, keycloak_realm.material.login)
        assert answer.json()["error"] == "invalid_grant"

    def test_reusable_refresh_token(self, keycloak_realm: Realm) -> None:
        first = log_in(keycloak_realm)
        for _ in range(2):
            tokens(refresh(keycloak_realm, first["refresh_token"]))

    def test_rotating_refresh_token_is_good_once(self, keycloak: Keycloak, rotating_realm: Realm) -> None:
        first = log_in(rotating_realm)
        assert first["expires_in"] == rotating_realm.options.access_token_lifespan
        newest = first
        # Keycloak tells an old token from a new one by their second of issue: within one second a replay passes.
        time.sleep(1.1)
        for _ in range(3):
            newest = tokens(refresh(rotating_realm, newest["refresh_token"]))
        assert keycloak.introspect(newest["access_token"], rotating_realm.name)["active"] is True

        replay = refresh(rotating_realm, first["refresh_token"])
        assert (replay.status_code, replay.json()["error"]) == (400, "invalid_grant")
        after = refresh(rotating_realm, newest["refresh_token"])
        assert after.json().get("error") == "invalid_grant", "the replay ended the whole session"

    def test_revocation_is_seen_by_introspection(self, keycloak: Keycloak, keycloak_realm: Realm) -> None:
        got = log_in(keycloak_realm)
        assert keycloak.introspect(got["access_token"])["active"] is True
        form = {"token": got["refresh_token"], "token_type_hint": "refresh_token"}
        answer = post(keycloak_realm.endpoint("revoke"), form, keycloak_realm.material.login)
        assert answer.status_code == 200
        assert keycloak.introspect(got["access_token"])["active"] is False
        assert refresh(keycloak_realm, got["refresh_token"]).json()["error"] == "invalid_grant"

    def test_access_token_alone_can_be_revoked(self, keycloak: Keycloak, keycloak_realm: Realm) -> None:
        client = keycloak_realm.material.basic
        got = tokens(post(keycloak_realm.endpoint(), {"grant_type": "client_credentials"}, client))
        assert keycloak.introspect(got["access_token"])["active"] is True
        assert post(keycloak_realm.endpoint("revoke"), {"token": got["access_token"]}, client).status_code == 200
        assert keycloak.introspect(got["access_token"])["active"] is False

    def test_device_code_begins(self, keycloak_realm: Realm) -> None:
        form = {"client_id": keycloak_realm.material.public_client, "scope": "openid"}
        begun = post(keycloak_realm.endpoint("auth/device"), form).json()
        poll = {
            "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
            "client_id": keycloak_realm.material.public_client,
            "device_code": begun["device_code"],
        }
        assert post(keycloak_realm.endpoint(), poll).json()["error"] == "authorization_pending"


@pytest.mark.keycloak
class TestJwtBearer:
    def test_assertion_of_a_trusted_issuer(self, keycloak_realm: Realm) -> None:
        material = keycloak_realm.material
        form = {"grant_type": JWT_BEARER, "assertion": material.assertion_issuer.sign(keycloak_realm.issuer())}
        got = tokens(post(keycloak_realm.endpoint(), form, material.bearer))
        assert claims(got["access_token"])["sub"] == keycloak_realm.subject_of(material.alice)
        assert claims(got["access_token"])["azp"] == material.bearer.id

        again = post(keycloak_realm.endpoint(), form, material.bearer)
        assert again.json()["error"] == "invalid_grant", "an assertion is good once"

    @pytest.mark.parametrize("flaw", ["audience", "subject", "expired", "old"])
    def test_bad_assertion_is_refused(self, keycloak_realm: Realm, flaw: str) -> None:
        issuer, audience = keycloak_realm.material.assertion_issuer, keycloak_realm.issuer()
        assertion = {
            "audience": lambda: issuer.sign("https://elsewhere.example.test"),
            "subject": lambda: issuer.sign(audience, subject="nobody"),
            "expired": lambda: issuer.sign(audience, lifetime=-60),
            "old": lambda: issuer.sign(audience, iat=int(time.time()) - 3600),
        }[flaw]()
        form = {"grant_type": JWT_BEARER, "assertion": assertion}
        answer = post(keycloak_realm.endpoint(), form, keycloak_realm.material.bearer)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_grant")


@pytest.mark.keycloak
class TestTokenExchange:
    def exchange(self, realm: Realm, subject_token: str, **parameters: str) -> httpx.Response:
        form = {
            "grant_type": TOKEN_EXCHANGE,
            "subject_token": subject_token,
            "subject_token_type": ACCESS_TOKEN,
            **parameters,
        }
        return post(realm.endpoint(), form, realm.material.exchange)

    def test_a_persons_token(self, keycloak_realm: Realm) -> None:
        material = keycloak_realm.material
        subject_token = log_in(keycloak_realm)["access_token"]
        got = tokens(self.exchange(keycloak_realm, subject_token, audience=material.exchange_audience))
        assert got["issued_token_type"] == ACCESS_TOKEN
        found = claims(got["access_token"])
        assert found["aud"] == material.exchange_audience
        assert found["azp"] == material.exchange.id
        assert found["sub"] == keycloak_realm.subject_of(material.alice)

    def test_a_service_accounts_token(self, keycloak_realm: Realm) -> None:
        material = keycloak_realm.material
        answer = post(keycloak_realm.endpoint(), {"grant_type": "client_credentials"}, material.basic)
        subject_token = tokens(answer)["access_token"]
        got = tokens(self.exchange(keycloak_realm, subject_token))
        assert claims(got["access_token"])["sub"] == claims(subject_token)["sub"]

    def test_unknown_audience_is_refused(self, keycloak_realm: Realm) -> None:
        subject_token = log_in(keycloak_realm)["access_token"]
        answer = self.exchange(keycloak_realm, subject_token, audience="nobody")
        assert answer.status_code == 400
        assert answer.json()["error"] in {"invalid_client", "invalid_request", "invalid_target"}

    def test_token_meant_for_others_is_refused(self, keycloak_realm: Realm) -> None:
        answer = post(keycloak_realm.endpoint(), {"grant_type": "client_credentials"}, keycloak_realm.material.post)
        refused = self.exchange(keycloak_realm, tokens(answer)["access_token"])
        assert refused.status_code in {400, 403}


@pytest.mark.keycloak
def test_a_test_can_have_a_realm_of_its_own(keycloak: Keycloak, worker_id: str) -> None:
    realm = keycloak.provision_realm(f"own-{worker_id}", RealmOptions(access_token_lifespan=30))
    assert 28 <= log_in(realm)["expires_in"] <= 30  # a slow server counts from its own beginning
    keycloak.admin.update_realm(realm.name, accessTokenLifespan=40)
    assert 38 <= log_in(realm)["expires_in"] <= 40
    keycloak.admin.put_client(realm.name, {"clientId": realm.material.login.id, "secret": "rotated"})
    form = {"grant_type": "password", "username": "alice", "password": "secret"}
    assert post(realm.endpoint(), form, realm.material.login).status_code == 401
    tokens(post(realm.endpoint(), form, SecretClient(realm.material.login.id, "rotated")))
    keycloak.admin.delete_realm(realm.name)


READ_ARRAY = """
import sys
from tiled.client import from_uri
client = from_uri(sys.argv[1], prompt_for_reauthentication=False)
print(client[sys.argv[2]].read().tolist())
"""


@pytest.mark.tiled
class TestTiled:
    def test_login_and_refresh_are_one_session(self, tiled_server: TiledServer) -> None:
        before = len(tiled_server.sessions("bob"))
        first = tiled_server.login("bob")
        url = f"{tiled_server.api_url}/auth/session/refresh"
        for _ in range(2):  # a refresh token of Tiled is not single-use
            answer = httpx.post(url, json={"refresh_token": first["refresh_token"]}, timeout=60)
            assert answer.json()["access_token"]
        assert len(tiled_server.sessions("bob")) == before + 1

    def test_wrong_password_is_refused(self, tiled_server: TiledServer) -> None:
        with pytest.raises(httpx.HTTPStatusError) as refused:
            tiled_server.login("alice", "wrong")
        assert refused.value.response.status_code == 401

    def test_client_reads_with_a_minted_key(self, tiled_server: TiledServer) -> None:
        bearer = {"Authorization": f"Bearer {tiled_server.login()['access_token']}"}
        wanted = {"expires_in": 600, "scopes": ["read:metadata", "read:data"], "note": "fixture"}
        url = f"{tiled_server.api_url}/auth/apikey"
        key = httpx.post(url, json=wanted, headers=bearer, timeout=60).json()
        assert key["first_eight"] in {found["first_eight"] for found in tiled_server.api_keys()}

        environment = {"TILED_API_KEY": key["secret"]}
        read = tiled_server.run_client(READ_ARRAY, tiled_server.url, ARRAY, environment=environment)
        assert read.strip() == str(ARRAY_VALUES)

        gone = httpx.delete(url, params={"first_eight": key["first_eight"]}, headers=bearer, timeout=60)
        assert gone.status_code == 204
        assert key["first_eight"] not in {found["first_eight"] for found in tiled_server.api_keys()}

    def test_client_reads_with_a_token_directory(self, tiled_server: TiledServer, tmp_path: Path) -> None:
        directory = tmp_path / "tokens" / quote_plus(f"{tiled_server.api_url}/")
        directory.mkdir(parents=True)
        (directory / "access_token").write_text(tiled_server.login()["access_token"])
        environment = {"TILED_CACHE_DIR": str(tmp_path)}
        read = tiled_server.run_client(READ_ARRAY, tiled_server.url, ARRAY, environment=environment)
        assert read.strip() == str(ARRAY_VALUES)

    def test_own_server_has_its_own_lifetimes(self, start_tiled: Callable[..., TiledServer]) -> None:
        server = start_tiled(access_token_max_age=7, refresh_token_max_age=70)
        login = server.login()
        assert (login["expires_in"], login["refresh_token_expires_in"]) == (7, 70)

        server.stop()
        with pytest.raises(httpx.ConnectError):
            server.login()
        server.start_again()
        answer = httpx.post(
            f"{server.api_url}/auth/session/refresh", json={"refresh_token": login["refresh_token"]}, timeout=60
        )
        assert answer.status_code == 200, "sessions outlive a restart"


class TestServerProcess:
    def start(self, directory: Path, lease: Lease, port: int) -> Any:
        command = ["python3", "-m", "http.server", "--bind", "127.0.0.1", str(port)]
        return start_server(
            "plain", command, directory=directory, lease=lease, ready=lambda: self.listens(port), timeout=60
        )

    def listens(self, port: int) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def test_ends_with_its_last_user(self, tmp_path: Path) -> None:
        mine, others = Lease(tmp_path / "lease"), Lease(tmp_path / "lease")
        port = free_port()
        server = self.start(tmp_path, mine, port)
        mine.release()
        time.sleep(0.5)  # longer than the guardian's interval: it has looked, and somebody still holds the lease
        assert self.listens(port)
        others.release()
        server.wait_stopped()
        assert not self.listens(port)

    def test_failed_start_shows_the_log(self, tmp_path: Path) -> None:
        lease = Lease(tmp_path / "lease")
        never = threading.Event()
        with pytest.raises(StartError, match="no such thing"):
            start_server(
                "broken",
                ["sh", "-c", "echo no such thing >&2; exit 3"],
                directory=tmp_path,
                lease=lease,
                ready=never.is_set,
                timeout=60,
            )
        lease.release()
