"""What docs/operations.md says of a restore, step by step."""

from __future__ import annotations

import base64
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


async def _session(field: Field) -> dict[str, Any]:
    """Let an identity begin a session with a seed, and end the operator; return the identity."""
    field.issuer.clients.add(
        Client("bot", secrets=(SECRET,), methods=(AuthMethod.BASIC,), grants=(Grant.REFRESH_TOKEN,), scopes=("read",))
    )
    field.issuer.service.add_user(User("ada", "pa55word", email="ada@example.org"))
    field.issuer.service.settings.access_lifetime = 3600.0
    seed = field.issuer.seed_refresh_token("bot", "ada")
    grant = {"type": "RefreshToken", "refreshToken": {"from": {"secretKeyRef": {"name": "seed", "key": "token"}}}}
    identity = field.identity("person", grant=grant)
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.secret("seed", token=seed), identity)
    async with field.operator():
        await field.until(lambda: field.status("person").get("revision") == 1)
    return identity


def _states(field: Field, state: str) -> list[dict[str, Any]]:
    return field.cluster.api.items("v1", "Secret", field.home, labelSelector=f"keyferry.dev/state={state}")


async def test_objects_that_were_restored_are_looked_at_before_anything_is_sent(field: Field) -> None:
    identity = await _session(field)
    field.cluster.api.delete(identity)
    field.apply(identity)  # as Velero does: the same, under another uid
    sent = len(field.issuer.requests)
    async with field.operator(suspend_all=True):
        await field.until(lambda: field.condition("person").get("reason") == "Suspended")
    assert len(field.issuer.requests) == sent
    assert not any(spend.revoked for spend in field.issuer.spends)
    # Nothing is buried while all is suspended: what the earlier uid held lies where it lay.
    (earlier,) = _states(field, "private")
    field.cluster.api.delete(earlier)
    async with field.operator():
        await field.until(lambda: field.condition("person").get("reason") == "SeedAlreadyUsed")
        field.apply(field.secret("seed", token=field.issuer.seed_refresh_token("bot", "ada")))
        await field.until(lambda: field.status("person").get("revision") == 1)
        await field.until(lambda: field.condition("person").get("status") == "True")
    assert not any(spend.revoked for spend in field.issuer.spends)
    assert max(field.issuer.sent_refresh_tokens().values()) == 1


async def test_an_older_private_state_is_noticed_and_a_new_seed_goes_before_it(field: Field) -> None:
    await _session(field)
    (backup,) = _states(field, "private")
    async with field.operator() as operator:
        await field.until(lambda: any(status.revision == 1 for status in operator.engine.statuses()))
        operator.engine.renew(next(iter(operator.engine.roster.entries)))
        await field.until(lambda: field.status("person").get("revision") == 2)
    (current,) = _states(field, "private")
    field.cluster.api.patch(current, {"data": backup["data"]})
    sent = len(field.issuer.requests)
    async with field.operator(suspend_all=True):
        await field.until(lambda: field.condition("person").get("reason") == "Suspended")
    assert len(field.issuer.requests) == sent
    field.apply(field.secret("seed", token=field.issuer.seed_refresh_token("bot", "ada")))
    async with field.operator():
        await field.until(lambda: field.status("person").get("revision", 0) > 2)
        await field.until(lambda: field.condition("person").get("status") == "True")
    assert max(field.issuer.sent_refresh_tokens().values()) == 1


async def test_private_state_that_names_another_cluster_is_not_used(field: Field) -> None:
    identity = await _session(field)
    (state,) = _states(field, "private")
    found = field.cluster.api.find("keyferry.dev/v1alpha1", "ServiceIdentity", "person", field.namespace)
    assert found is not None
    uid = found["metadata"]["uid"]
    assert state["metadata"]["name"] == f"kf-{uid}"
    other = base64.b64encode(
        base64.b64decode(state["data"]["record"]).replace(_origin(field).encode(), b"another-cluster")
    ).decode()
    field.cluster.api.patch(state, {"data": {"record": other}})
    sent = len(field.issuer.requests)
    async with field.operator():
        await field.until(lambda: field.condition("person").get("reason") == "StateForeign")
    assert len(field.issuer.requests) == sent
    field.cluster.api.delete(state)
    field.apply(field.secret("seed", token=field.issuer.seed_refresh_token("bot", "ada")), identity)
    async with field.operator():
        await field.until(lambda: field.condition("person").get("reason") == "Issued")


def _origin(field: Field) -> str:
    return str(field.cluster.api.get("v1", "Namespace", "kube-system")["metadata"]["uid"])
