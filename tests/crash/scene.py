"""Identities, the brokers that are run and killed over them, and what must hold after, wherever their state lives."""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import jwt

from keyferry.demo.clients import Client, Grant
from keyferry.demo.signing import TrustedIssuer
from keyferry.demo.state import User
from keyferry.engine.links import named_uid
from keyferry.model import ObjectKey
from keyferry.secret import SecretValue
from keyferry.spec.identity import ProviderKind
from tests.demo.asking import key_pair

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from keyferry.demo.refresh_tokens import Spend
    from tests.crash.zygote import Broker
    from tests.support.issuer import FaultIssuer
    from tests.support.labarchives import LabArchives

PATIENCE = 300.0
LIFE = 3.0
"""Seconds that an access token lives."""
TIMEOUT = 5
"""Seconds after which a request is given up, and for which a claim of a dead holder is left alone.

Many brokers begin at once: an answer that merely took its time would be a lost one, and its replay end the session.
"""
APPROVAL = "ApprovalRequired"
PAGE = "https://keyferry.example.org"
"""Where a page would be, if people came."""


class Kind(Enum):
    """How an identity gets its tokens."""

    REFRESH = "refresh"
    PASSWORD = "password"
    CLIENT = "client"
    DEVICE = "device"
    LOGIN = "login"
    LABARCHIVES = "labarchives"
    LABARCHIVES_LOGIN = "labarchives login"
    ASSERTION = "assertion"
    EXCHANGE = "exchange"


@dataclass
class Identity:
    """One identity, with a client of its own, so that the issuer's records tell whose request it was."""

    name: str
    kind: Kind
    issuer: FaultIssuer
    refresh_tokens: str = "{}"
    """The provider's ``refreshTokens``, as YAML."""
    life: float = LIFE
    renewal: str = "{}"
    """The identity's ``renewal``, as YAML."""
    tls: str = "{}"
    """The provider's ``tls``, as YAML."""
    timeout: int = TIMEOUT
    """Seconds after which a request is given up."""
    target: str = "{}"
    """The identity's ``target``, as YAML."""
    subject: str = ""
    """The name of the identity whose token is exchanged."""
    consumers: str = "[]"
    """The identity's ``consumers``, as YAML."""
    scopes: str = "[]"
    """The identity's ``scopes``, as YAML."""
    lab: LabArchives | None = None
    """Where a one-hour code is redeemed."""
    seeds: list[str] = field(default_factory=list)

    @property
    def key(self) -> ObjectKey:
        """Its name, and its provider's."""
        return ObjectKey("default", self.name)

    def register(self) -> None:
        """Make it known at the issuer."""
        self.issuer.clients.add(
            Client(
                self.name,
                secrets=("s3cret",),
                grants=tuple(Grant),
                scopes=("read",) if self.kind in (Kind.DEVICE, Kind.LOGIN) else (),
                redirect_uris=(f"{PAGE}/callback/{named_uid(ProviderKind.TOKEN_PROVIDER, self.key)}",),
                access_lifetime=self.life,
            )
        )
        if self.kind is Kind.PASSWORD:
            self.issuer.service.add_user(User(self.name, "pa55word"))

    def grant(self) -> str:
        reference = self._reference
        members = {
            Kind.REFRESH: f"RefreshToken, refreshToken: {{from: {reference('seed')}}}",
            Kind.PASSWORD: (
                f"Password, password: {{usernameFrom: {reference('user')}, passwordFrom: {reference('password')}}}"
            ),
            Kind.DEVICE: "DeviceCode",
            Kind.LOGIN: "AuthorizationCode",
            Kind.LABARCHIVES_LOGIN: "LabArchivesLogin",
            Kind.LABARCHIVES: (
                f"LabArchivesCode, labArchivesCode: {{emailFrom: {reference('email')}, codeFrom: {reference('code')}}}"
            ),
            Kind.ASSERTION: f"JwtBearer, jwtBearer: {{assertion: {reference('assertion')}}}",
            Kind.EXCHANGE: f"TokenExchange, tokenExchange: {{subject: {{identityRef: {{name: {self.subject}}}}}}}",
            Kind.CLIENT: "ClientCredentials",
        }
        return f"{{type: {members[self.kind]}}}"

    def _reference(self, key: str) -> str:
        return f"{{secretKeyRef: {{name: {self.name}, key: {key}}}}}"

    def assertion(self) -> str:
        """Return an assertion (RFC 7523) of an issuer that its provider trusts from now on."""
        key, public = key_pair()
        issuer = f"https://{self.name}.example.org"
        self.issuer.service.trust(TrustedIssuer(issuer, (public,)))
        claims = {"iss": issuer, "sub": self.name, "aud": self.issuer.issuer, "exp": int(time.time()) + 3600}
        return jwt.encode(claims, key, algorithm="ES256")

    def provider(self) -> str:
        """Return where its tokens come from, as YAML of two members."""
        reference = self._reference
        if self.lab is not None:
            key = f"accessKeyIdFrom: {reference('access')}, accessPasswordFrom: {reference('password')}"
            return f'type: LabArchives\n  labarchives: {{url: "{self.lab.url}", {key}}}'
        url = self.issuer.url
        others = f'deviceAuthorization: "{url}/device_authorization", authorization: "{url}/authorize"'
        endpoints = f'{{token: "{url}/token", {others}}}'
        client = f"{{id: {self.name}, secretsFrom: [{reference('client')}]}}"
        members = f"endpoints: {endpoints}, client: {client}, refreshTokens: {self.refresh_tokens}"
        return f"type: OAuth\n  oauth: {{{members}}}"

    def document(self) -> str:
        """Return its resources."""
        return f"""
apiVersion: keyferry.dev/v1alpha1
kind: TokenProvider
metadata: {{name: {self.name}}}
spec:
  {self.provider()}
  tls: {self.tls}
  limits: {{timeout: {self.timeout}s, requestsPerSecond: 1000, burst: 1000, concurrency: 100}}
---
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {{name: {self.name}}}
spec:
  providerRef: {{name: {self.name}}}
  grant: {self.grant()}
  scopes: {self.scopes}
  renewal: {self.renewal}
  target: {self.target}
  consumers: {self.consumers}
"""


class Scene(ABC):
    """The identities that one or more brokers look after, and what is known of them."""

    well: frozenset[str] = frozenset({"Issued"})
    """The reasons of an identity that has what it needs."""

    def __init__(self, name: str, identities: Iterable[Identity]) -> None:
        self.name = name
        self.identities = list(identities)
        self.brokers: list[Broker] = []

    def set_up(self) -> None:
        """Make the identities known at their issuers, give them their credentials, and declare them."""
        for identity in self.identities:
            self._introduce(identity)
        self.declare()

    def add(self, identity: Identity) -> None:
        """Have one identity more, from the next ``declare`` on."""
        self.identities.append(identity)
        self._introduce(identity)

    def _introduce(self, identity: Identity) -> None:
        identity.register()
        self.give(identity, "client", "s3cret")
        if identity.kind is Kind.REFRESH:
            self.plant(identity)
        elif identity.kind is Kind.PASSWORD:
            self.give(identity, "user", identity.name)
            self.give(identity, "password", "pa55word")
        elif identity.kind is Kind.ASSERTION:
            self.give(identity, "assertion", identity.assertion())
        elif identity.lab is not None:
            self.give(identity, "access", identity.lab.access_key_id)
            self.give(identity, "password", identity.lab.access_password)

    @abstractmethod
    def declare(self) -> None:
        """Write the resources, at once."""

    @abstractmethod
    def give(self, identity: Identity, key: str, value: str) -> None:
        """Put a value into the identity's Secret, at once."""

    def plant(self, identity: Identity) -> None:
        """Give a new seed, as a person does who logged in once more."""
        seed = identity.issuer.seed_refresh_token(identity.name, identity.name)
        identity.seeds.append(seed)
        self.give(identity, "seed", seed)

    # --- brokers ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def start(self, *, step: str = "", passing: int = 1) -> Broker:
        """Start a broker, which dies at a passing of a step where one is named."""

    async def finish(self) -> None:
        """End the last broker in good order: spends under way are finished."""
        broker = self.brokers[-1]
        if broker.status is None:
            broker.terminate()
            status = await broker.ended()
            assert status == 0, f"the broker ended with {status}"

    async def close(self) -> None:
        """End whatever still runs."""
        for broker in self.brokers:
            broker.kill()
            await broker.ended()

    # --- what is known ------------------------------------------------------------------------------------------------

    @abstractmethod
    def statuses(self, identity: Identity) -> list[dict[str, Any]]:
        """Return what was reported of an identity since the last start: reason, message, revision, expires."""

    @abstractmethod
    def record(self, identity: Identity) -> dict[str, Any]:
        """Return an identity's private state as it is now."""

    @abstractmethod
    def published(self, identity: Identity) -> tuple[bytes, bytes]:
        """Return what workloads read now: ``token`` and ``token.json``."""

    @abstractmethod
    def attempts(self) -> Mapping[str, Mapping[str, int]]:
        """Return the number of each attempt that was ever claimed, by the token's digest and the attempt's id."""

    @abstractmethod
    def escrowed(self) -> Mapping[str, str]:
        """Return the refresh tokens that arrived and must not be lost, with the ids of their attempts."""

    @abstractmethod
    def key(self) -> bytes:
        """Return the key of the digests."""

    def rescued(self) -> int:
        """Return how many answers a broker found in the escrow when it started."""
        return 0

    def litter(self) -> list[str]:
        """Return what should not be left behind."""
        return []

    def last_words(self) -> str:
        """Return what helps to understand a failure."""
        return ""

    def fingerprint(self, token: str) -> str:
        """Return the digest by which the private state knows a refresh token."""
        return SecretValue(token).fingerprint(self.key())

    def spends(self, identity: Identity) -> list[Spend]:
        """Return the issuer's record of every refresh token of an identity."""
        return [spend for spend in identity.issuer.spends if spend.client_id == identity.name]

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def pause(self, seconds: float) -> None:
        """Let the broker work; note it if it ends by itself."""
        await asyncio.sleep(seconds)
        broker = self.brokers[-1]
        if broker.has_ended():
            await broker.ended()

    async def until(self, what: str, done: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait until ``done``; say what did not happen where it takes too long."""
        deadline = time.monotonic() + patience
        while not done():
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name}: not within {patience:g} s: {what}; last: {self.last_words()}")
            await self.pause(0.01)
            status = self.brokers[-1].status
            assert status is None, f"{self.name}: the broker ended with {status}; it was waited for: {what}"

    def reported(self, identity: Identity, reason: str) -> bool:
        """Tell whether the last broker's latest word on an identity is this reason."""
        statuses = self.statuses(identity)
        return bool(statuses) and statuses[-1]["reason"] == reason

    def renewal(self, identity: Identity, times: int) -> Callable[[], bool]:
        """Return what tells whether an identity was renewed so many times from now, and published."""
        first = self.record(identity).get("revision", 0)

        def done() -> bool:
            return any(
                status["reason"] in self.well and status["revision"] >= first + times
                for status in self.statuses(identity)
            )

        return done

    async def renewed(self, identity: Identity, times: int = 2) -> None:
        """Wait until the broker that runs now has renewed an identity so many times, and published it."""
        await self.until(f"{identity.name} renewed {times} times", self.renewal(identity, times))

    async def stalled(self, identity: Identity) -> None:
        """Wait until an identity needs a person."""
        await self.until(f"{identity.name} asks for a person", lambda: self.reported(identity, APPROVAL))

    # --- what must hold -----------------------------------------------------------------------------------------------

    def verdict(self) -> Verdict:
        """Judge every refresh token that was ever issued to any of the identities."""
        verdict = Verdict()
        attempts, escrowed = self.attempts(), self.escrowed()
        held = {self.record(identity).get("refresh_token") for identity in self.identities}
        for identity in self.identities:
            if "Reusable" in identity.refresh_tokens:
                continue
            for spend in self.spends(identity):
                claims = sorted(attempts.get(self.fingerprint(spend.token), {}).values())
                verdict.judge(identity, spend, claims)
        verdict.escrowed = len(escrowed)
        verdict.rescued = self.rescued()
        verdict.faults += [
            f"a refresh token that had arrived ({token[:6]}…) was lost"
            for token in escrowed
            if token not in held and self.fingerprint(token) not in attempts
        ]
        verdict.faults += [f"left behind: {what}" for what in self.litter()]
        return verdict


@dataclass
class Verdict:
    """What the issuer's records and the brokers' claims say together."""

    faults: list[str] = field(default_factory=list)
    tokens: int = 0
    spends: int = 0
    """Refresh tokens that were presented."""
    replays: int = 0
    """Those that were presented a second time."""
    doubts: int = 0
    """Those of which a second attempt was claimed."""
    escrowed: int = 0
    """Answers that were put into the escrow."""
    rescued: int = 0
    """Answers that a broker found there when it started."""

    def add(self, other: Verdict) -> None:
        """Add what another scene's brokers did."""
        for name in ("faults", "tokens", "spends", "replays", "doubts", "escrowed", "rescued"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def judge(self, identity: Identity, spend: Spend, claims: list[int]) -> None:
        """Judge one refresh token: ``claims`` are the attempts that the brokers recorded, in order."""
        self.tokens += 1
        self.spends += spend.presented > 0
        self.replays += spend.presented > 1
        self.doubts += claims.count(2) > 0
        outcomes = [shown.outcome.value for shown in spend.presentations]
        about = f"{identity.name}: {spend.token[:6]}… was presented as {outcomes}, claimed as {claims}"
        if spend.presented > 2 or spend.presented > len(claims):
            self.faults.append(f"{about}: more often than was claimed")
        if spend.presented == 2 and 2 not in claims:
            self.faults.append(f"{about}: a second time without a recorded replay")
        if claims.count(2) > 1:
            self.faults.append(f"{about}: more than one replay")


def unique(prefix: str) -> str:
    """Return a name that no other identity has."""
    return f"{prefix}-{secrets.token_hex(4)}"
