"""The Tiled dialect against a real server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import pytest

from keyferry.errors import Ambiguous, Refused, RetryClass
from keyferry.providers import tiled
from keyferry.secret import SecretValue
from tests.grants.drive import over_http
from tests.support.tiled import SIGNING_KEY, USERS, sign_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from keyferry.model import TokenSet
    from tests.support.tiled import TiledServer

pytestmark = pytest.mark.tiled


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    # A connection each: after a 500 the server drops the one it was on.
    with httpx.Client(timeout=60, headers={"Connection": "close"}) as opened:
        yield opened


@pytest.fixture
def metadata(tiled_server: TiledServer, client: httpx.Client) -> tiled.TiledMetadata:
    return over_http(tiled.discover(tiled_server.url), client)


def log_in(metadata: tiled.TiledMetadata, client: httpx.Client, password: str = USERS["bob"]) -> TokenSet:
    return over_http(tiled.login(metadata, SecretValue("bob"), SecretValue(password), time.time()), client)


def test_a_session_from_login_to_revocation(metadata: tiled.TiledMetadata, client: httpx.Client) -> None:
    assert (metadata.authenticator, metadata.login_problem) == ("toy", "")
    first = log_in(metadata, client)
    assert first.publishable
    assert first.lifetime == 900
    assert first.refresh_token is not None
    second = over_http(tiled.refresh(metadata, first.refresh_token, time.time()), client)
    assert first.subject == "bob"
    again = over_http(tiled.refresh(metadata, first.refresh_token, time.time()), client)
    assert again.refresh_token is not None
    principal = over_http(tiled.whoami(metadata, second.access_token), client)
    assert ("toy", "bob") in principal.identities
    assert principal.name_at("toy") == principal.name_at("") == "bob"
    live = sum(not session.revoked for session in principal.sessions)
    for _ in range(2):
        over_http(tiled.revoke_session(metadata, again.refresh_token), client)
    principal = over_http(tiled.whoami(metadata, second.access_token), client)
    assert sum(not session.revoked for session in principal.sessions) == live - 1
    with pytest.raises(Refused) as raised:
        over_http(tiled.refresh(metadata, again.refresh_token, time.time()), client)
    assert (raised.value.code, raised.value.retry) == ("session_ended", RetryClass.NEEDS_PERSON)


def test_wrong_credentials(metadata: tiled.TiledMetadata, client: httpx.Client) -> None:
    with pytest.raises(Refused) as refused:
        log_in(metadata, client, password="wrong")
    assert (refused.value.code, refused.value.retry) == ("invalid_grant", RetryClass.NEEDS_PERSON)
    with pytest.raises(Refused) as ended:
        over_http(tiled.refresh(metadata, SecretValue("garbage"), time.time()), client)
    assert ended.value.code == "session_ended"
    with pytest.raises(Refused) as foreign:
        over_http(tiled.whoami(metadata, SecretValue("garbage")), client)
    assert foreign.value.code == "invalid_token"
    access_token = log_in(metadata, client).access_token
    with pytest.raises(Ambiguous) as broken:
        over_http(tiled.refresh(metadata, access_token, time.time()), client)
    assert broken.value.retry is RetryClass.TRANSIENT


def test_a_key_from_minting_to_deletion(metadata: tiled.TiledMetadata, client: httpx.Client) -> None:
    login = log_in(metadata, client)
    before = time.time()
    key = over_http(
        tiled.mint_api_key(metadata, login.access_token, scopes=["read:metadata"], expires_in=600, note="for one test"),
        client,
    )
    assert key.expires_at is not None
    assert before + 590 < key.expires_at < time.time() + 610
    assert key.secret.reveal().startswith(key.first_eight)
    assert (key.scopes, key.note) == (("read:metadata",), "for one test")
    listed = {
        known.first_eight: known for known in over_http(tiled.whoami(metadata, login.access_token), client).api_keys
    }
    assert listed[key.first_eight].note == "for one test"
    assert listed[key.first_eight].expires_at == pytest.approx(key.expires_at, abs=1)
    for _ in range(2):
        over_http(tiled.delete_api_key(metadata, login.access_token, key.first_eight), client)
    principal = over_http(tiled.whoami(metadata, login.access_token), client)
    assert key.first_eight not in {known.first_eight for known in principal.api_keys}


@pytest.mark.parametrize("wish", [{"scopes": ["admin:apikeys"]}, {"scopes": [], "access_tags": ["public"]}])
def test_a_key_with_too_much(metadata: tiled.TiledMetadata, client: httpx.Client, wish: dict[str, list[str]]) -> None:
    login = log_in(metadata, client)
    with pytest.raises(Refused) as raised:
        over_http(
            tiled.mint_api_key(
                metadata,
                login.access_token,
                scopes=wish["scopes"],
                access_tags=wish.get("access_tags", []),
                expires_in=600,
            ),
            client,
        )
    assert (raised.value.code, raised.value.retry) == ("insufficient_scope", RetryClass.NEEDS_CONFIGURATION)


def eventually_refused(attempt: Callable[[], object]) -> Refused:
    """Return the refusal that ``attempt`` ends in."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            attempt()
        except Refused as refused:
            return refused
        time.sleep(0.5)
    raise TimeoutError


@pytest.mark.slow
def test_lapsed_tokens(start_tiled: Callable[..., TiledServer], client: httpx.Client) -> None:
    server = start_tiled(access_token_max_age=10, refresh_token_max_age=20)
    metadata = over_http(tiled.discover(server.url), client)
    login = log_in(metadata, client)
    assert login.refresh_token is not None
    refresh_token = login.refresh_token
    expired = eventually_refused(lambda: over_http(tiled.whoami(metadata, login.access_token), client))
    assert (expired.code, expired.retry) == ("access_token_expired", RetryClass.TRANSIENT)
    ended = eventually_refused(lambda: over_http(tiled.refresh(metadata, refresh_token, time.time()), client))
    assert ended.code == "session_ended"
    over_http(tiled.revoke_session(metadata, refresh_token, expired=True), client)
    with pytest.raises(Ambiguous):
        over_http(tiled.revoke_session(metadata, refresh_token), client)


@pytest.mark.slow
def test_signing_keys_are_rotated(start_tiled: Callable[..., TiledServer], client: httpx.Client) -> None:
    server = start_tiled()
    metadata = over_http(tiled.discover(server.url), client)
    first = log_in(metadata, client)
    assert first.refresh_token is not None
    new_key = "another one of them, as long as it has to be"
    sign_with(server, new_key, SIGNING_KEY)
    second = over_http(tiled.refresh(metadata, first.refresh_token, time.time()), client)
    assert second.refresh_token is not None
    sign_with(server, new_key)
    assert over_http(tiled.refresh(metadata, second.refresh_token, time.time()), client).publishable
    with pytest.raises(Refused) as refused:
        over_http(tiled.refresh(metadata, first.refresh_token, time.time()), client)
    assert (refused.value.code, refused.value.retry) == ("session_ended", RetryClass.NEEDS_PERSON)
