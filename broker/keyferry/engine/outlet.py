"""Hands an identity's current token out, with its files as they are to lie in a pod; renews nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyferry.engine.entry import Care
from keyferry.engine.tiled_keys import API_KEY_TYPE
from keyferry.errors import ResourceError
from keyferry.providers.labarchives import SESSION_TYPE
from keyferry.render import Delivery, RenderInput, render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.engine.ports import Ports
    from keyferry.engine.roster import Roster
    from keyferry.model import ObjectKey, TokenSet
    from keyferry.record import Record
    from keyferry.render import Endpoint
    from keyferry.spec.provider import TokenProviderSpec


@dataclass(frozen=True, slots=True)
class Place:
    """Where files are to lie."""

    delivery: Delivery
    directory: str = ""
    """Absolute, as workloads see it; empty where that is not known."""
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class HandedOut:
    """A token, and what lies in the identity's directory for it."""

    token: TokenSet
    revision: int
    is_login: bool
    """It is what stands for a person at LabArchives: no token, and not for workloads; they have calls signed."""
    files: Mapping[str, bytes] = field(repr=False)


class Outlet:
    """Reads what is stored; every process may, whoever looks after the identity."""

    def __init__(self, ports: Ports, roster: Roster) -> None:
        self._ports = ports
        self._roster = roster

    async def take(self, key: ObjectKey, place: Place) -> HandedOut | None:
        """Return the token as it was issued last, though it may have expired; None where there is none.

        None, too, where its value is not known here: it was published in a form that does not show it, by another
        process or before a restart. Raises KeyError where the identity is not declared, ResourceError where its files
        cannot be written, and other KeyferryErrors.
        """
        entry = self._roster.entries[key]
        provider = self._roster.provider_of(entry)
        if provider is None:
            raise entry.refusal or ResourceError(f"ServiceIdentity {key}: its provider is not there")
        if entry.care is Care.NONE:
            self._ports.store.forget(key, entry.uid)  # another process renews it
        held = await self._ports.store.read(key, entry.uid)
        record = held.record if held is not None else None
        if record is None or record.token is None or not record.token.access_token:
            return None
        if (record.origin, record.uid) != (self._ports.store.origin, entry.uid):
            return None  # a copy of another cluster's, which is nobody's here
        given = render_input(provider.resource.spec, record, record.token, place)
        return HandedOut(
            token=record.token,
            revision=record.revision,
            is_login=record.token.token_type == SESSION_TYPE,
            files=render(entry.resource.spec.target.files, given),
        )


def render_input(spec: TokenProviderSpec, record: Record, token: TokenSet, place: Place) -> RenderInput:
    """Return what formats draw on."""
    return RenderInput(
        token=token,
        revision=record.revision,
        provider_url=spec.tiled.url if spec.tiled is not None else token.issuer,
        api_key=token.token_type == API_KEY_TYPE,
        delivery=place.delivery,
        directory=place.directory,
        endpoint=place.endpoint,
    )
