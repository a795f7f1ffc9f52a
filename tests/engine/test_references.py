"""Who is concerned by a change of what: those who use that very object, and nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyferry.engine.credentials import Reference, Referent
from keyferry.errors import Reason, ResourceError
from tests.engine.world import identity, key, secret, until

if TYPE_CHECKING:
    from keyferry.model import ObjectKey
    from tests.engine.world import Document, World

CONFIG = Reference("default", "ca", Referent.CONFIG_MAP)
SECRET = Reference("default", "ca", Referent.SECRET)
ACCOUNT = Reference("default", "ca", Referent.SERVICE_ACCOUNT)


def trusting(world: World, name: str, source: str, place: str = "ca") -> Document:
    document = world.provider(name)
    document["spec"]["tls"] = {"caFrom": {source: {"name": place, "key": "ca.crt"}}}
    return document


def provider(name: str) -> tuple[str, ObjectKey]:
    return "TokenProvider", key(name)


async def test_a_change_concerns_those_who_use_that_very_object(world: World) -> None:
    world.basics()
    account: dict[str, Any] = {"serviceAccountToken": {"name": "ca", "audience": "a"}}
    world.write(
        "all.yaml",
        trusting(world, "by-config", "configMapKeyRef"),
        trusting(world, "by-secret", "secretKeyRef"),
        identity("config", "by-config"),
        identity("secret", "by-secret"),
        identity("account", grant={"type": "JwtBearer", "jwtBearer": {"assertion": account}}),
        identity("client", client={"id": "x", "secretsFrom": [{"secretKeyRef": {"name": "ca", "key": "x"}}]}),
    )
    async with world.broker() as broker:
        roster = broker.engine.roster
        await until(lambda: len(roster.entries) == 4)
        assert roster.users_of(CONFIG) == {key("config")}
        assert roster.users_of(SECRET) == {key("secret"), key("client")}
        assert roster.users_of(ACCOUNT) == {key("account")}
        assert roster.providers_trusting(CONFIG) == {provider("by-config")}
        assert roster.providers_trusting(SECRET) == {provider("by-secret")}
        assert {CONFIG, SECRET, ACCOUNT} <= roster.references()

        world.write("all.yaml", trusting(world, "by-config", "configMapKeyRef", "new"), identity("config", "by-config"))
        new = Reference("default", "new", Referent.CONFIG_MAP)
        await until(lambda: roster.users_of(new) == {key("config")})
        assert roster.users_of(CONFIG) == set()
        assert roster.providers_trusting(CONFIG) == set()
        await until(lambda: not {CONFIG, SECRET, ACCOUNT} & roster.references())


async def test_a_client_secret_does_not_concern_a_providers_tls(world: World) -> None:
    world.basics()
    world.write("bot.yaml", identity("bot"))
    async with world.broker() as broker:
        await world.fresh("bot")
        ((_, declared),) = broker.engine.roster.providers.items()
        oauth = declared.resource.spec.oauth
        client = oauth.client if oauth is not None else None
        assert client is not None
        reference = Reference("default", client.secrets_from[0].secret_key_ref.name)
        assert broker.engine.roster.users_of(reference) == {key("bot")}
        assert broker.engine.roster.providers_trusting(reference) == set()


async def test_an_invalid_version_of_a_provider_is_told_and_a_good_one_goes_on(world: World) -> None:
    world.basics()
    world.write("bot.yaml", identity("bot"), identity("other", "none"))
    wrong = ResourceError("spec.oauth.isuer: is not a known field", reason=Reason.INVALID_SPEC)
    async with world.broker() as broker:
        await world.fresh("bot")
        engine = broker.engine
        await until(lambda: world.shown("other") is Reason.PROVIDER_NOT_FOUND)
        engine.refuse_provider(provider("none"), wrong)
        await until(lambda: world.shown("other") is Reason.INVALID_SPEC)
        words = "its provider, TokenProvider default/none, is not valid: spec.oauth.isuer"
        assert words in world.status("other").message

        known = engine.roster.providers[provider("idp")].resource
        engine.refuse_provider(provider("idp"), wrong)
        world.renew("bot")
        await world.fresh("bot", revision=2)
        engine.declare_provider(known)
        assert engine.roster.entries[key("bot")].refusal is None
        engine.drop_provider(provider("none"))
        await until(lambda: world.shown("other") is Reason.PROVIDER_NOT_FOUND)


async def test_what_is_known_of_a_provider_is_asked_within_its_rate(world: World) -> None:
    world.basics()
    world.write("bot.yaml", secret("unused", a="b"))
    async with world.broker() as broker:
        engine = broker.engine
        await until(lambda: provider("idp") in engine.roster.providers)
        assert await engine.survey(provider("none")) is None
        found = await engine.survey(provider("idp"))
        assert found is not None
        assert (found.issuer, found.problem) == (world.issuer.issuer, None)
        assert "client_credentials" in found.grant_types
        asked = len(world.issuer.requests)
        await engine.survey(provider("idp"))
        assert len(world.issuer.requests) == asked, "it is known still"
        await engine.survey(provider("idp"), afresh=True)
        assert len(world.issuer.requests) == asked + 1

        world.issuer.stop()
        found = await engine.survey(provider("idp"), afresh=True)
        assert found is not None
        assert found.issuer == world.issuer.issuer, "what was known stays"
        assert "connection refused" in str(found.problem)
        await world.issuer.start()
        lane = engine.roster.providers[provider("idp")].lane
        lane.failed(world.clock.monotonic(), "out of order", retry_after=600.0)
        found = await engine.survey(provider("idp"), afresh=True)
        assert found is not None
        assert "left alone for a while: out of order" in str(found.problem)
