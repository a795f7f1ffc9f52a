"""Looks at a provider for its own sake: whether it is there, and is what its resource says.

Exchanges find out the same when they need it. This look tells whoever wrote the provider, before anybody uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyferry.engine.provider import Channel
from keyferry.errors import ExchangeError, KeyferryError
from keyferry.providers.metadata import ProviderMetadata
from keyferry.providers.tiled import TiledMetadata

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.engine.ports import Ports
    from keyferry.engine.provider import Provider
    from keyferry.io.http import HttpDriver


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of a provider."""

    issuer: str = ""
    """As the server names it; of a Tiled server the address of its API."""
    grant_types: tuple[str, ...] = ()
    """As the server lists them; empty where it lists none, which says nothing."""
    problem: KeyferryError | None = None
    """Why no token can be had from it now, or why it could not be asked again."""


async def survey(provider: Provider, ports: Ports, observe: Callable[[float], None], *, afresh: bool) -> Findings:
    """Return what is known of a provider, asking it where that is too old; ``afresh`` asks in any case.

    It keeps to the provider's rate, and leaves a provider alone whose breaker is open. Nothing is raised.
    """
    if afresh:
        provider.ask_again()
    try:
        driver = await provider.driver()
        region = provider.resource.spec.labarchives
        if region is not None:  # it says nothing of itself; where it is can be checked
            await driver.check(region.url)
            return Findings(region.url)
        await _turn(provider, ports)
        return await _look(provider, driver, Channel(provider, driver, ports, observe))
    except KeyferryError as error:
        return Findings(problem=error)


async def _turn(provider: Provider, ports: Ports) -> None:
    """Wait for the permit of one request, where one will be made."""
    if provider.discovered:
        return
    now = ports.clock.monotonic()
    if provider.lane.blocked_until(now) > now:
        raise ExchangeError(f"the provider is left alone for a while: {provider.lane.last_problem}", code="breaker")
    wait = provider.lane.another_request(now)
    if wait > 0:
        await ports.clock.sleep(wait)


async def _look(provider: Provider, driver: HttpDriver, channel: Channel) -> Findings:
    metadata = await provider.known(channel)
    match metadata:
        case ProviderMetadata():
            # Where discovery asked for nothing, or elsewhere, this is still the place that credentials go to.
            await driver.check(metadata.token_endpoint)
            return Findings(metadata.issuer, metadata.grant_types, provider.trouble)
        case TiledMetadata():
            return Findings(metadata.api_url, (), provider.trouble)
