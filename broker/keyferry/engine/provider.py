"""One provider at work: its lane, its connections, what was discovered about it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from keyferry import __version__
from keyferry.engine.credentials import CredentialReader, named_configs, named_keys
from keyferry.engine.keepsakes import Keepsakes
from keyferry.errors import (
    Ambiguous,
    AnswerError,
    ApprovalPending,
    ExchangeError,
    NotSent,
    Refused,
    ResourceError,
    RetryClass,
)
from keyferry.grants.document import host_of
from keyferry.io.http import HttpDriver, drive
from keyferry.io.tls import ClientCertificate, TlsSettings, build_context
from keyferry.providers.metadata import ProviderMetadata, discover, with_overrides
from keyferry.providers.tiled import TiledMetadata
from keyferry.providers.tiled import discover as discover_tiled
from keyferry.scheduler import Lane, LaneLimits
from keyferry.secret import SecretValue
from keyferry.spec.provider import ProviderType

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.engine.ports import Ports
    from keyferry.io.addresses import AddressPolicy
    from keyferry.model import HttpRequest, HttpResponse
    from keyferry.spec.provider import Limits, TokenProviderSpec
    from keyferry.spec.resources import ProviderResource

    _DriverKey = tuple[AddressPolicy, TlsSettings, float, bool]

USER_AGENT: Final = f"keyferry/{__version__}"
METADATA_LIFE: Final = 3600.0
"""Seconds for which discovered metadata is used without asking again."""
METADATA_RETRY: Final = 60.0
"""Seconds for which known metadata is kept when the provider cannot be asked."""
DRIVERS_KEPT: Final = 256
RETIRED_FOR: Final = 20
"""Deadlines of a request after which nobody uses a retired driver any more."""


class Drivers:
    """HTTP drivers by what tells them apart; providers without TLS settings of their own share one."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports
        self._drivers: OrderedDict[_DriverKey, HttpDriver] = OrderedDict()
        self._retired: list[HttpDriver] = []

    def get(self, resource: ProviderResource, tls: TlsSettings) -> HttpDriver:
        """Return the driver for a provider. Raises CredentialError for an unusable certificate or key."""
        policy, timeout = self._ports.addresses(resource), resource.spec.limits.timeout
        proxy = self._ports.proxy(resource)
        key = policy, tls, timeout, proxy is not None
        driver = self._drivers.get(key)
        if driver is None:
            driver = HttpDriver(
                policy,
                ssl_context=build_context(tls),
                timeout=timeout,
                user_agent=USER_AGENT,
                max_connections=256,
                proxy=proxy,
                resolver=self._ports.resolver() if self._ports.resolver is not None else None,
            )
            self._drivers[key] = driver
            if len(self._drivers) > DRIVERS_KEPT:
                self._retire(self._drivers.popitem(last=False)[1], timeout)
        else:
            self._drivers.move_to_end(key)
        return driver

    def _retire(self, driver: HttpDriver, timeout: float) -> None:
        """Close a driver when the exchanges that may still use it are over: they are bounded by the deadline."""
        self._retired.append(driver)

        def close() -> None:
            if driver in self._retired:
                self._retired.remove(driver)
                self._closing = asyncio.ensure_future(driver.close())

        asyncio.get_running_loop().call_later(RETIRED_FOR * timeout, close)

    async def close(self) -> None:
        """Close every connection."""
        for driver in [*self._drivers.values(), *self._retired]:
            await driver.close()
        self._drivers.clear()


def front_hosts(spec: TokenProviderSpec) -> frozenset[str]:
    """Return the hosts that a provider names itself (``host[:port]``); discovery may add others."""
    if spec.tiled is not None:
        return frozenset({host_of(spec.tiled.url)})
    if spec.labarchives is not None:
        return frozenset({host_of(spec.labarchives.url)})
    urls = [spec.oauth.issuer, spec.oauth.endpoints.token] if spec.oauth is not None else []
    return frozenset(host_of(url) for url in urls if url)


class Provider:
    """A provider resource that is being used."""

    def __init__(self, resource: ProviderResource, ports: Ports, drivers: Drivers) -> None:
        self.resource = resource
        self.name = f"{resource.kind} {resource.key}"
        """How people know it."""
        self._take(resource)
        self._ports = ports
        self._drivers = drivers
        self.lane = Lane(lane_limits(resource.spec.limits), ports.clock.monotonic(), ports.rng)
        self._metadata: ProviderMetadata | TiledMetadata | None = None
        self._metadata_until = 0.0
        self.keepsakes: tuple[tuple[str, SecretValue], ...] = ()
        """What its connections are made with, as far as it is to be kept for a revocation."""
        self._discovering = asyncio.Lock()
        self.trouble: ExchangeError | AnswerError | None = None
        """Why the provider could not be asked again for what is known of it."""
        self.clock_ahead = 0.0
        """Seconds by which the server's clock is ahead of ours, where requests are signed by it."""

    def update(self, resource: ProviderResource) -> None:
        """Take over a changed resource: the breaker and the rate stay, what was discovered does not."""
        if resource.spec != self.resource.spec:
            self._metadata = self.trouble = None
            self.lane.resize(lane_limits(resource.spec.limits), self._ports.clock.monotonic())
            self._take(resource)
        self.resource = resource

    def _take(self, resource: ProviderResource) -> None:
        """Work out once what each exchange wants to know."""
        self.named_keys = named_keys(resource.spec)
        self.named_configs = named_configs(resource.spec)
        self._front = front_hosts(resource.spec)
        self.written_spec: dict[str, Any] = resource.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
        """The spec as it was written, for what outlives the resource."""

    @property
    def lane_name(self) -> str:
        """Which lane its exchanges wait in."""
        return self.name

    def reader(self, hosts: frozenset[str]) -> CredentialReader:
        """Return a reader for the provider's own references."""
        return CredentialReader(self._ports.credentials, self.resource.key.namespace, hosts)

    def front(self) -> frozenset[str]:
        """Return the host that is asked first, before anything is known of the others."""
        return self._front

    async def driver(self) -> HttpDriver:
        """Return the connections, with the CA and client certificate as they are now."""
        keepsakes = Keepsakes(self._ports.credentials)
        reader = CredentialReader(keepsakes, self.resource.key.namespace, self.front())
        tls = self.resource.spec.tls
        authorities = await self._authorities(reader)
        client: ClientCertificate | None = None
        if tls.client_certificate_from is not None:
            secret = tls.client_certificate_from.secret_ref.name
            chain = (await reader.pem(secret, "tls.crt")).decode("utf-8", "replace")
            key = (await reader.pem(secret, "tls.key")).decode("utf-8", "replace")
            client = ClientCertificate(chain, SecretValue(key))
        self.keepsakes = keepsakes.all() if self._ports.keeps_credentials else ()
        return self._drivers.get(self.resource, TlsSettings(authorities, client))

    async def may_show_certificate(self, hosts: frozenset[str]) -> None:
        """Raise CredentialError unless the client certificate, if there is one, is for all these hosts.

        ``driver`` could ask only for the host that is known before discovery; a certificate alone authenticates a
        client, so no reading of another credential would notice endpoints elsewhere.
        """
        shown = self.resource.spec.tls.client_certificate_from
        if shown is not None:
            await self.reader(hosts).pem(shown.secret_ref.name, "tls.key")

    async def authorities(self) -> str | None:
        """Return the PEM bundle to trust instead of the system's authorities, as it is now. Raises CredentialError."""
        return await self._authorities(self.reader(self.front()))

    async def _authorities(self, reader: CredentialReader) -> str | None:
        source = self.resource.spec.tls.ca_from
        if source is None:
            return None
        if source.secret_key_ref is not None:
            raw = await reader.pem(source.secret_key_ref.name, source.secret_key_ref.key)
        elif source.config_map_key_ref is not None:
            raw = await reader.config(source.config_map_key_ref.name, source.config_map_key_ref.key)
        else:
            raise ResourceError(f"{self.name}: spec.tls.caFrom names no source")
        return raw.decode("utf-8", "replace")

    async def oauth(self, channel: Channel) -> ProviderMetadata:
        """Return what is known of an OAuth provider, discovered where the resource names an issuer."""
        metadata = await self.known(channel)
        if not isinstance(metadata, ProviderMetadata):
            raise ResourceError(f"{self.name} is no OAuth provider")
        return metadata

    async def tiled(self, channel: Channel) -> TiledMetadata:
        """Return what a Tiled server says of itself."""
        metadata = await self.known(channel)
        if not isinstance(metadata, TiledMetadata):
            raise ResourceError(f"{self.name} is no Tiled server")
        return metadata

    @property
    def discovered(self) -> bool:
        """Tell whether what is known of the provider is young enough to be used without asking again."""
        return self._metadata is not None and self._ports.clock.monotonic() < self._metadata_until

    def ask_again(self) -> None:
        """Ask the provider at the next need, however young what is known of it may be."""
        self._metadata_until = 0.0

    async def known(self, channel: Channel) -> ProviderMetadata | TiledMetadata:
        """Return what the provider says of itself, asking it where that is too old."""
        if self._metadata is not None and self.discovered:
            return self._metadata
        async with self._discovering:
            if self._metadata is not None and self.discovered:
                return self._metadata
            spec = self.resource.spec
            try:
                found = await self._discover(spec, channel)
            except (ExchangeError, AnswerError) as error:
                if self._metadata is None:
                    if isinstance(error, AnswerError):
                        error.retry = RetryClass.SUSPICIOUS  # only the provider can mend what it says of itself
                    raise
                self._metadata_until = self._ports.clock.monotonic() + METADATA_RETRY
                self.trouble = error
                return self._metadata
            self.trouble = None
            if self.resource.spec is spec:  # else it changed meanwhile, and this is another one's metadata
                self._metadata, self._metadata_until = found, self._ports.clock.monotonic() + METADATA_LIFE
            return found

    async def _discover(self, spec: TokenProviderSpec, channel: Channel) -> ProviderMetadata | TiledMetadata:
        if spec.type is ProviderType.TILED and spec.tiled is not None:
            return await drive(discover_tiled(spec.tiled.url, spec.tiled.authenticator or ""), channel.send)
        oauth = spec.oauth
        if oauth is None:
            raise ResourceError(f"{self.name} is of type {spec.type}, which this version does not support yet")
        overrides: dict[str, str] = oauth.endpoints.model_dump(by_alias=True, exclude_none=True)
        if oauth.issuer is not None and "token" not in overrides:
            found = await drive(discover(oauth.issuer), channel.send)
        elif oauth.issuer is not None:
            # Everything needed is configured; discovery only adds to it, so its failure is no reason to stop.
            try:
                found = await drive(discover(oauth.issuer), channel.send)
            except (NotSent, Ambiguous, Refused):
                found = ProviderMetadata(issuer=oauth.issuer, token_endpoint=overrides["token"])
        else:
            found = ProviderMetadata(issuer="", token_endpoint=overrides["token"])
        return with_overrides(found, overrides)


class Channel:
    """The way of one exchange's requests: under the provider's rate, and noted by its breaker.

    The queue took the permit of the first request. ``ready`` takes a further one ahead of time, so that no wait comes
    between a claim and its spend.
    """

    def __init__(
        self,
        provider: Provider,
        driver: HttpDriver,
        ports: Ports,
        observe: Callable[[float], None],
        *,
        permits: int = 1,
    ) -> None:
        """``permits`` is how many were taken before: none where no queue came first."""
        self.provider = provider
        self._driver = driver
        self._clock = ports.clock
        self._observe = observe
        self._permits = permits

    async def ready(self) -> None:
        """Wait until the next ``send`` may go at once."""
        if self._permits == 0:
            wait = self.provider.lane.another_request(self._clock.monotonic())
            self._permits = 1
            if wait > 0:
                await self._clock.sleep(wait)

    async def send(self, request: HttpRequest) -> HttpResponse:
        """Send a request. Raises NotSent and Ambiguous."""
        await self.ready()
        self._permits = 0
        begun = self._clock.monotonic()
        try:
            return await self._driver.send(request)
        finally:
            self._observe(self._clock.monotonic() - begun)


def lane_limits(limits: Limits) -> LaneLimits:
    """Return a resource's limits as the scheduler wants them."""
    return LaneLimits(limits.requests_per_second, limits.burst, limits.concurrency)


def blames_provider(error: Exception) -> bool:
    """Tell whether a failure says that the provider is not well, so that its breaker should count it."""
    return isinstance(error, ExchangeError) and error.retry in (RetryClass.TRANSIENT, RetryClass.IN_DOUBT)


def praises_provider(error: Exception) -> bool:
    """Tell whether a failure shows that the provider is well: it refused, or issued what cannot be used.

    Most others say nothing of it: a missing secret or a full disk comes before any request.
    """
    return isinstance(error, Refused | AnswerError | ApprovalPending) and not blames_provider(error)
