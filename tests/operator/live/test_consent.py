"""What an identity may take from another, and may write on its Secret; and what becomes of a suspended installation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry_operator.installation import Installation

if TYPE_CHECKING:
    from tests.operator.live.conftest import Field

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "s3cret of the bot"


@pytest.fixture
def stage(field: Field) -> Field:
    grants = (Grant.CLIENT_CREDENTIALS, Grant.TOKEN_EXCHANGE)
    field.issuer.clients.add(Client("bot", secrets=(SECRET,), methods=(AuthMethod.BASIC,), grants=grants))
    field.issuer.service.settings.access_lifetime = 3600.0
    field.apply(field.provider(), field.secret("bot", secret=SECRET))
    return field


def _exchange_of(name: str) -> dict[str, Any]:
    return {"type": "TokenExchange", "tokenExchange": {"subject": {"identityRef": {"name": name}}}}


def _exchanges(field: Field) -> list[str]:
    return [request.grant for request in field.issuer.requests if request.grant]


async def test_a_token_is_chained_only_with_its_identitys_consent(stage: Field) -> None:
    stage.apply(stage.identity("first"), stage.identity("second", grant=_exchange_of("first")))
    async with stage.operator():
        await stage.told("second", "Stalled", status="True")
        condition = stage.condition("second")
        assert condition["status"] == "False"
        assert "does not let second use its token" in condition["message"]
        assert "add `{identityName: second}` to its spec.consumers" in condition["message"]
        assert not [grant for grant in _exchanges(stage) if grant.endswith("token-exchange")]
        stage.apply(stage.identity("first", consumers=[{"identityName": "second"}]))
        await stage.told("second", status="True")


async def test_a_circle_is_refused(stage: Field) -> None:
    chain = {"a": "b", "b": "c", "c": "a"}
    for name, subject in chain.items():
        giver = next(who for who, whom in chain.items() if whom == name)
        stage.apply(stage.identity(name, grant=_exchange_of(subject), consumers=[{"identityName": giver}]))
    async with stage.operator():
        for name, subject in chain.items():
            condition = await stage.told(name, reason="IdentityCycle", status="False")
            assert "(" + " -> ".join([name, subject, chain[subject], name]) + ")" in condition["message"]
            assert "Let one of them obtain its token in another way" in condition["message"]
        assert not _exchanges(stage)
        stage.apply(stage.identity("c", consumers=[{"identityName": "b"}]))
        for name in chain:
            await stage.told(name, status="True")


async def test_a_secret_carries_only_labels_that_the_installation_allows(stage: Field) -> None:
    stage.apply(
        stage.identity("plain", target={"labels": {"team": "a"}, "annotations": {"example.org/owner": "b"}}),
        stage.identity("labelled", target={"labels": {"argocd.argoproj.io/instance": "x"}}),
        stage.identity("annotated", target={"annotations": {"example.org/other": "x"}}),
    )
    allowed: dict[str, Any] = {"labels": ["team"], "annotations": ["example.org/owner"]}
    async with stage.operator(installation=Installation.model_validate({"targets": allowed})):
        await stage.told("plain", status="True")
        metadata = (stage.target("plain") or {})["metadata"]
        assert metadata["labels"]["team"] == "a"
        assert metadata["annotations"]["example.org/owner"] == "b"
        for name, field, key in (
            ("labelled", "labels", "argocd.argoproj.io/instance"),
            ("annotated", "annotations", "example.org/other"),
        ):
            await stage.told(name, reason="InvalidSpec")
            message = stage.condition(name)["message"]
            assert f"spec.target.{field}: this installation does not allow the key {key}" in message
            assert f"the chart value targets.{field}" in message
            assert stage.target(name) is None
    async with stage.operator(installation=Installation.model_validate({"targets": {**allowed, "labels": ["*"]}})):
        await stage.told("labelled", status="True")


async def test_a_suspended_installation_says_so_and_sends_nothing(stage: Field) -> None:
    stage.apply(stage.identity("before"))
    async with stage.operator():
        await stage.told("before", status="True")
        await stage.provider_told("issuer", status="True")
    sent = len(stage.issuer.requests)
    other = stage.provider("other")
    stage.apply(other, stage.identity("after"), stage.identity("elsewhere", providerRef={"name": "other"}))
    async with stage.operator(suspend_all=True):
        for name in ("before", "after", "elsewhere"):
            await stage.told(name, reason="Suspended")
            assert "suspended as a whole (suspendAll" in stage.condition(name)["message"]
        assert stage.condition("before")["status"] == "True", "what is published stays"
        assert stage.condition("after")["status"] == "False"
    assert len(stage.issuer.requests) == sent
    async with stage.operator():
        for name in ("after", "elsewhere"):
            await stage.told(name, status="True")
