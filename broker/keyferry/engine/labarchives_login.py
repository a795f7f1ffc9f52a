"""The browser's way at LabArchives: its login page, signed for this one redirect URI, and the code that comes back."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from keyferry.engine.job import Job  # noqa: TC001 - of a dataclass
from keyferry.engine.labarchives_region import redeemed, set_clock
from keyferry.engine.seeds import reserve_seed
from keyferry.errors import ExchangeError
from keyferry.providers.labarchives import AccessKey, login_url
from keyferry.record import Binding  # noqa: TC001
from keyferry.secret import SecretValue
from keyferry.spec.provider import LabArchivesProvider  # noqa: TC001

if TYPE_CHECKING:
    from keyferry.approval import Login
    from keyferry.grants.rfc6749_authorization_code import LoginSecrets
    from keyferry.model import Exchange, TokenSet
    from keyferry.providers.labarchives import LabArchivesUser
    from keyferry.record import Record


@dataclass(slots=True)
class LabArchivesBrowser:
    """Implements ``keyferry.engine.login.LoginDialect``."""

    job: Job
    region: LabArchivesProvider
    key: AccessKey = field(repr=False)
    binding: Binding
    person: str = ""
    """The full name of whoever logged in."""

    @property
    def names_issuer(self) -> bool:
        """LabArchives knows nothing of RFC 9207; the redirect URI of its own is what tells its callbacks."""
        return False

    async def begin(self, redirect_uri: str, login: LoginSecrets) -> tuple[str, str]:
        """Return the login page's address. The state is part of the redirect URI: LabArchives has no other place."""
        provider, clock = self.job.provider, self.job.ports.clock
        if not provider.clock_ahead:
            # The link is good for five minutes of the server's clock, and nobody would tell us that ours is off.
            with contextlib.suppress(ExchangeError):
                await set_clock(provider, self.region, self.key, clock, self.job.channel.send)
        announced = f"{redirect_uri}?{urlencode({'state': login.state.reveal()})}"
        return login_url(self.region.url, self.key, announced, clock.now() + provider.clock_ahead), announced

    async def reserve(self, login: Login) -> None:
        """Note that the code is this identity's. Raises CredentialError where it was used before."""
        await reserve_seed(self.job, self._digest(login))

    def redeem(self, login: Login, started_at: float) -> Exchange:
        """Exchange the code for the person's user id."""
        email, code = login.email or SecretValue(""), login.code or SecretValue("")
        server_time = started_at + self.job.provider.clock_ahead
        return redeemed(self.region, self.key, email, code, server_time, started_at, self._meet)

    def problem(self, login: Login, issued: TokenSet) -> str:
        """Say nothing: there is no nonce that could be another login's."""
        del login, issued
        return ""

    def taken(self, record: Record, login: Login) -> Record:
        """Return the record with the code remembered as sent."""
        return replace(record, planting="", former_seeds=(*record.former_seeds, self._digest(login)))

    def _meet(self, user: LabArchivesUser) -> None:
        self.person = user.full_name

    def _digest(self, login: Login) -> str:
        return (login.code or SecretValue("")).fingerprint(self.job.ports.store.digest_key)
