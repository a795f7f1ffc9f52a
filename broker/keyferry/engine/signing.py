"""Signs LabArchives calls of workloads: the organization's key stays here, and so does the person's user id.

The user id leaves with a signed call only, for the endpoint that sends it; workloads get neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyferry.engine.job import check_binding
from keyferry.engine.labarchives_region import access_key, binding_of, region_of, set_clock
from keyferry.engine.provider import Channel
from keyferry.errors import ExchangeError, Reason, ResourceError, RetryClass
from keyferry.io.http import drive
from keyferry.providers.labarchives import SignedCall, may_be_signed, sign, user_info
from keyferry.providers.labarchives.answer import CLOCK

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.engine.entry import Entry
    from keyferry.engine.ports import Ports
    from keyferry.engine.provider import Provider
    from keyferry.engine.roster import Roster
    from keyferry.model import ObjectKey
    from keyferry.providers.labarchives import AccessKey, LabArchivesUser
    from keyferry.secret import SecretValue
    from keyferry.spec.provider import LabArchivesProvider


class LabArchivesSigner:
    """Every method raises KeyError for an identity that is not declared, and KeyferryErrors."""

    def __init__(self, ports: Ports, roster: Roster, observe: Callable[[str, float], None]) -> None:
        """``observe`` is told how long a request to a provider took."""
        self._ports = ports
        self._roster = roster
        self._observe = observe

    def serves(self, key: ObjectKey) -> bool:
        """Tell whether an identity is one of LabArchives."""
        provider = self._roster.provider_of(self._roster.entries[key])
        return provider is not None and provider.resource.spec.labarchives is not None

    async def sign(self, key: ObjectKey, method: str) -> SignedCall:
        """Return what a call of ``method`` needs, signed for now by the server's clock.

        Raises ResourceError (ProviderNotAllowed) for a method that the provider does not list or that is never signed.
        """
        entry, provider, region = self._find(key)
        if not may_be_signed(method, region.methods):
            raise ResourceError(
                f"{provider.name} does not list the method {method!r} in spec.labarchives.methods",
                reason=Reason.PROVIDER_NOT_ALLOWED,
            )
        tls = provider.resource.spec.tls
        if tls.client_certificate_from is not None:
            raise ResourceError(
                f"{provider.name}: spec.tls.clientCertificateFrom does not go with calls that workloads make themselves"
            )
        organization = await access_key(provider, region)
        uid = await self._uid(entry, region, organization)
        signature = sign(organization, method, self._ports.clock.now() + provider.clock_ahead)
        return SignedCall(region.url, uid, signature, await provider.authorities())

    async def user(self, key: ObjectKey) -> LabArchivesUser:
        """Ask LabArchives about the person whose login it is."""
        entry, provider, region = self._find(key)
        organization = await access_key(provider, region)
        uid = await self._uid(entry, region, organization)
        channel = await self._channel(provider)
        at = self._ports.clock.now() + provider.clock_ahead
        try:
            return await drive(user_info(region.url, organization, uid, at), channel.send)
        except ExchangeError as error:
            if error.code != CLOCK:
                raise
        await set_clock(provider, region, organization, self._ports.clock, channel.send)
        at = self._ports.clock.now() + provider.clock_ahead
        return await drive(user_info(region.url, organization, uid, at), channel.send)

    async def correct_clock(self, key: ObjectKey) -> None:
        """Ask LabArchives for its time, and sign by it from now on."""
        _, provider, region = self._find(key)
        channel = await self._channel(provider)
        await set_clock(provider, region, await access_key(provider, region), self._ports.clock, channel.send)

    def _find(self, key: ObjectKey) -> tuple[Entry, Provider, LabArchivesProvider]:
        entry = self._roster.entries[key]
        provider = self._roster.provider_of(entry)
        if entry.refusal is not None:
            raise entry.refusal
        if provider is None:
            raise ResourceError(f"ServiceIdentity {key}: its provider is not there", reason=Reason.PROVIDER_NOT_FOUND)
        return entry, provider, region_of(provider)

    async def _uid(self, entry: Entry, region: LabArchivesProvider, organization: AccessKey) -> SecretValue:
        held = await self._ports.store.read(entry.key, entry.uid)
        record = held.record if held is not None else None
        if entry.resource.spec.suspend:
            raise ResourceError(f"ServiceIdentity {entry.key} is suspended (spec.suspend)", reason=Reason.SUSPENDED)
        if record is None or record.refresh_token is None or record.token is None:
            person = entry.failure is not None and entry.failure.retry is RetryClass.NEEDS_PERSON
            raise ExchangeError(
                f"ServiceIdentity {entry.key} is not logged in to LabArchives",
                code="not_logged_in",
                reason=Reason.APPROVAL_REQUIRED,
                retry=RetryClass.NEEDS_PERSON if person else RetryClass.TRANSIENT,
            )
        if record.refresh_ended or record.wrong_subject:
            raise ExchangeError(
                f"ServiceIdentity {entry.key}: its person has to log in to LabArchives again",
                code="login_ended",
                reason=Reason.APPROVAL_REQUIRED,
                retry=RetryClass.NEEDS_PERSON,
            )
        check_binding(record, binding_of(region, organization))
        # Until a code is redeemed it stands where the user id will; the token is the user id in any case.
        return record.token.access_token

    async def _channel(self, provider: Provider) -> Channel:
        driver = await provider.driver()
        return Channel(provider, driver, self._ports, lambda seconds: self._observe(provider.name, seconds), permits=0)
