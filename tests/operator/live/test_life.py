"""From a resource to a Secret, on a real API server."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

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
        await field.until(lambda: operator.engine.roster.entries and operator.engine.statuses()[0].revision == 2)
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
