"""From a resource to a Secret, on a real API server."""

from __future__ import annotations

import base64
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.demo.state import User

if TYPE_CHECKING:
    from tests.operator.live.conftest import Field

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "s3cret of the bot"


def _bot(field: Field, *grants: Grant) -> None:
    field.issuer.clients.add(
        Client("bot", secrets=(SECRET,), methods=(AuthMethod.BASIC,), grants=grants, scopes=("read", "write"))
    )
    field.issuer.service.add_user(User("ada", "pa55word", email="ada@example.org"))


def _token(field: Field, name: str) -> str:
    found = field.target(name)
    return base64.b64decode((found or {}).get("data", {}).get("token", "")).decode()


async def test_a_secret_holds_a_token_that_is_renewed_and_survives_a_restart(field: Field) -> None:
    _bot(field, Grant.CLIENT_CREDENTIALS)
    field.issuer.service.settings.access_lifetime = 3600.0
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.identity("nightly"))
    async with field.operator() as operator:
        await field.until(lambda: field.condition("nightly").get("status") == "True")
        first = _token(field, "nightly")
        assert first in [issued.value for issued in field.issuer.issued]
        assert field.status("nightly")["revision"] == 1
        assert field.status("nightly")["binding"] == {"name": "nightly"}
        key = next(iter(operator.engine.roster.entries))
        operator.engine.renew(key)
        await field.until(lambda: field.status("nightly").get("revision") == 2)
        assert _token(field, "nightly") != first
    exchanges = len(field.issuer.requests)
    version = (field.target("nightly") or {})["metadata"]["resourceVersion"]
    async with field.operator() as operator:
        await field.until(lambda: [status.revision for status in operator.engine.statuses()] == [2])
    assert len(field.issuer.requests) == exchanges
    assert (field.target("nightly") or {})["metadata"]["resourceVersion"] == version


async def test_an_edited_or_deleted_secret_is_put_right(field: Field) -> None:
    _bot(field, Grant.CLIENT_CREDENTIALS)
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.identity("nightly"))
    async with field.operator():
        await field.until(lambda: _token(field, "nightly"))
        good = _token(field, "nightly")
        target = field.target("nightly")
        assert target is not None
        field.cluster.api.patch(target, {"data": {"token": base64.b64encode(b"forged").decode()}})
        await field.until(lambda: _token(field, "nightly") == good)
        field.cluster.api.delete(target)
        await field.until(lambda: _token(field, "nightly"))


async def test_what_was_only_published_is_revoked_with_its_identity_also_after_a_restart(field: Field) -> None:
    _bot(field, Grant.CLIENT_CREDENTIALS)
    field.issuer.service.settings.access_lifetime = 3600.0
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.identity("nightly"))
    async with field.operator():
        await field.until(lambda: field.condition("nightly").get("status") == "True")
    async with field.operator() as operator:
        await field.until(lambda: operator.ready)
        identity = field.cluster.api.get("keyferry.dev/v1alpha1", "ServiceIdentity", "nightly", field.namespace)
        field.cluster.api.delete(identity)
        await field.until(lambda: [token.revoked for token in field.issuer.issued] == [True])


async def test_a_refresh_token_lives_in_the_private_state_and_is_revoked_with_its_identity(field: Field) -> None:
    _bot(field, Grant.REFRESH_TOKEN)
    seed = field.issuer.seed_refresh_token("bot", "ada")
    field.apply(
        field.provider(),
        field.secret("bot", secret=SECRET),
        field.secret("seed", token=seed),
        field.identity(
            "person",
            grant={
                "type": "RefreshToken",
                "refreshToken": {"from": {"secretKeyRef": {"name": "seed", "key": "token"}}},
            },
        ),
    )
    async with field.operator():
        await field.until(lambda: field.status("person").get("revision") == 1)
        state = field.cluster.api.items("v1", "Secret", field.home, labelSelector="keyferry.dev/state=private")
        assert len(state) == 1
        assert not state[0]["metadata"].get("ownerReferences")
        assert seed not in str(field.target("person"))
        identity = field.cluster.api.find("keyferry.dev/v1alpha1", "ServiceIdentity", "person", field.namespace)
        assert identity is not None
        field.cluster.api.delete(identity)
        await field.until(lambda: all(spend.revoked for spend in field.issuer.spends))
        await field.until(
            lambda: (
                not field.cluster.api.items(
                    "v1", "Secret", field.home, labelSelector="keyferry.dev/state in (private,gone)"
                )
            )
        )
    assert max(field.issuer.sent_refresh_tokens().values()) == 1


def _person(field: Field) -> dict[str, Any]:
    """Return an identity with a refresh token to begin with, which is its own."""
    seed = field.issuer.seed_refresh_token("bot", "ada")
    field.apply(field.secret("seed", token=seed))
    grant = {"type": "RefreshToken", "refreshToken": {"from": {"secretKeyRef": {"name": "seed", "key": "token"}}}}
    return field.identity("person", grant=grant)


def _declared(field: Field) -> dict[str, Any]:
    found = field.cluster.api.find("keyferry.dev/v1alpha1", "ServiceIdentity", "person", field.namespace)
    assert found is not None
    return found


def _uids_of_state(field: Field, state: str) -> list[str]:
    found = field.cluster.api.items("v1", "Secret", field.home, labelSelector=f"keyferry.dev/state={state}")
    return [each["metadata"]["name"].removeprefix("kf-") for each in found]


@pytest.mark.parametrize("running", [True, False])
async def test_an_identity_that_is_created_again_is_another_one(field: Field, running: bool) -> None:  # noqa: FBT001
    """Its name is all that they share: the first is revoked, the second has a Secret and a life of its own."""
    _bot(field, Grant.REFRESH_TOKEN)
    field.issuer.service.settings.access_lifetime = 3600.0
    field.apply(field.provider(), field.secret("bot", secret=SECRET), _person(field))
    async with contextlib.AsyncExitStack() as stack:
        async with contextlib.AsyncExitStack() as before:
            await before.enter_async_context(field.operator())
            await field.until(lambda: field.status("person").get("revision") == 1)
            first = _declared(field)
            if running:
                stack.push_async_exit(before.pop_all())
        field.cluster.api.delete(first)
        field.apply(_person(field))
        second = _declared(field)
        assert second["metadata"]["uid"] != first["metadata"]["uid"]
        if not running:
            await stack.enter_async_context(field.operator())
        await field.until(lambda: field.condition("person").get("status") == "True")
        await field.until(
            lambda: [field.issuer.service.active(token) for token in field.issuer.issued] == [False, True]
        )
        await field.until(lambda: not _uids_of_state(field, "gone"))
        assert _uids_of_state(field, "private") == [second["metadata"]["uid"]]
        target = field.target("person")
        assert target is not None
        assert [owner["uid"] for owner in target["metadata"]["ownerReferences"]] == [second["metadata"]["uid"]]
    assert max(field.issuer.sent_refresh_tokens().values()) == 1


@pytest.mark.parametrize(
    ("label", "hosts", "reason", "advice"),
    [
        (False, None, "SecretNotLabelled", "kubectl -n {namespace} label secret bot keyferry.dev/credential=true"),
        (True, "auth.example.org", "HostNotAllowed", "kubectl -n {namespace} annotate --overwrite secret bot"),
    ],
)
async def test_a_secret_is_used_only_as_its_owner_said(
    field: Field,
    label: bool,  # noqa: FBT001
    hosts: str | None,
    reason: str,
    advice: str,
) -> None:
    _bot(field, Grant.CLIENT_CREDENTIALS)
    field.apply(field.provider(), field.secret("bot", hosts, label=label, secret=SECRET), field.identity("nightly"))
    async with field.operator():
        await field.until(lambda: field.condition("nightly", "Stalled").get("status") == "True")
        condition = field.condition("nightly")
        assert condition["status"] == "False"
        assert condition["reason"] == reason
        assert advice.format(namespace=field.namespace) in condition["message"]
        assert SECRET not in str(field.status("nightly"))
        field.apply(field.secret("bot", secret=SECRET))
        await field.until(lambda: field.condition("nightly").get("status") == "True")


async def test_another_ones_secret_is_not_touched(field: Field) -> None:
    _bot(field, Grant.CLIENT_CREDENTIALS)
    field.apply(
        field.provider(),
        field.secret("bot", secret=SECRET),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "nightly"}, "stringData": {"mine": "precious"}},
        field.identity("nightly"),
    )
    async with field.operator():
        await field.until(lambda: field.condition("nightly").get("reason") == "SecretNotOwned")
        target = field.target("nightly")
        assert target is not None
        assert set(target["data"]) == {"mine"}
        assert field.condition("nightly")["status"] == "False"
