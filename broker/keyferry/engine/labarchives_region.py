"""A LabArchives region at work: its key and clock, and a person's login there as all credentials are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyferry.engine.clients import value
from keyferry.errors import ResourceError
from keyferry.grants.document import host_of
from keyferry.io.http import drive
from keyferry.model import TokenSet
from keyferry.providers.labarchives import SESSION_TYPE, AccessKey, epoch_time, redeem
from keyferry.record import Binding

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    from keyferry.engine.provider import Provider
    from keyferry.io.clock import Clock
    from keyferry.model import Exchange, HttpRequest, HttpResponse
    from keyferry.providers.labarchives import LabArchivesUser
    from keyferry.secret import SecretValue
    from keyferry.spec.provider import LabArchivesProvider

    Send: TypeAlias = Callable[[HttpRequest], Awaitable[HttpResponse]]

CHECKED_FOR: Final = 86400.0
"""Seconds for which a login counts as good after LabArchives said so; it is asked again well before their end."""


def region_of(provider: Provider) -> LabArchivesProvider:
    """Return what the resource says of a LabArchives region. Raises ResourceError for another provider."""
    region = provider.resource.spec.labarchives
    if region is None:
        raise ResourceError(f"{provider.name} is no LabArchives region")
    return region


async def access_key(provider: Provider, region: LabArchivesProvider) -> AccessKey:
    """Return the organization's key, as it is now. Raises CredentialError."""
    reader = provider.reader(hosts_of(region))
    return AccessKey(await value(reader, region.access_key_id_from), await value(reader, region.access_password_from))


async def set_clock(provider: Provider, region: LabArchivesProvider, key: AccessKey, clock: Clock, send: Send) -> str:
    """Ask the server for its time and sign by it from now on; return what people are told. Raises ExchangeError."""
    now = clock.now()
    server = await drive(epoch_time(region.url, key, now), send)
    provider.clock_ahead = server - clock.now()
    return f"LabArchives' clock differs from ours by {server - now:.0f} s; requests are signed by its clock"


def hosts_of(region: LabArchivesProvider) -> frozenset[str]:
    """Return where its credentials go."""
    return frozenset({host_of(region.url)})


def binding_of(region: LabArchivesProvider, key: AccessKey) -> Binding:
    """Return whom a login belongs to."""
    # A user id is good with the access key that it was issued to only.
    return Binding(region.url, tuple(sorted(hosts_of(region))), key.id.reveal())


def redeemed(
    region: LabArchivesProvider,
    key: AccessKey,
    email: SecretValue,
    code: SecretValue,
    server_time: float,
    started: float | None = None,
    meet: Callable[[LabArchivesUser], None] = lambda _user: None,
) -> Exchange:
    """Redeem a code as an exchange of the ledger's; ``started`` is our own time, where that is another.

    ``meet`` is told whose login it is.
    """
    user = yield from redeem(region.url, key, email, code, server_time)
    meet(user)
    return session(user, server_time if started is None else started, region)


def session(user: LabArchivesUser, started: float, region: LabArchivesProvider) -> TokenSet:
    """Return a login in the form in which all credentials are kept."""
    problem = (
        ""
        if user.may_log_in_alone
        else "LabArchives says that this login must not be used without its person (auto-login-allowed is false)"
    )
    return TokenSet(
        access_token=user.uid,
        token_type=SESSION_TYPE,
        issued_at=started,
        expires_at=started + CHECKED_FOR,
        refresh_token=user.uid,
        email=user.email,
        issuer=region.url,
        publishable=not problem,
        problem=problem,
    )
