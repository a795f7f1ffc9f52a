"""Identities with directories of their own, the brokers that are run and killed over them, and what must hold after."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from keyferry.demo.clients import Client, Grant
from keyferry.demo.state import User
from keyferry.secret import SecretValue
from tests.crash.worker import Order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from keyferry.demo.refresh_tokens import Spend
    from tests.crash.watcher import Watcher
    from tests.crash.zygote import Broker, Zygote
    from tests.support.issuer import FaultIssuer

PATIENCE = 60.0
LIFE = 3.0
"""Seconds that an access token lives."""
TIMEOUT = 1
"""Seconds after which a request is given up, and for which a claim of a dead holder is left alone."""
APPROVAL = "ApprovalRequired"


class Kind(Enum):
    """How an identity gets its tokens."""

    REFRESH = "refresh"
    PASSWORD = "password"
    CLIENT = "client"


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
    seeds: list[str] = field(default_factory=list)

    def register(self) -> None:
        """Make it known at the issuer."""
        self.issuer.clients.add(
            Client(
                self.name,
                secrets=("s3cret",),
                grants=(Grant.CLIENT_CREDENTIALS, Grant.PASSWORD, Grant.REFRESH_TOKEN),
                access_lifetime=self.life,
            )
        )
        if self.kind is Kind.PASSWORD:
            self.issuer.service.add_user(User(self.name, "pa55word"))

    def grant(self) -> str:
        reference = "{secretKeyRef: {name: %s, key: %s}}"
        if self.kind is Kind.REFRESH:
            return f"{{type: RefreshToken, refreshToken: {{from: {reference % (self.name, 'seed')}}}}}"
        if self.kind is Kind.PASSWORD:
            user, password = reference % (self.name, "user"), reference % (self.name, "password")
            return f"{{type: Password, password: {{usernameFrom: {user}, passwordFrom: {password}}}}}"
        return "{type: ClientCredentials}"

    def document(self) -> str:
        """Return its resources."""
        return f"""
apiVersion: keyferry.dev/v1alpha1
kind: TokenProvider
metadata: {{name: {self.name}}}
spec:
  type: OAuth
  oauth:
    endpoints: {{token: "{self.issuer.url}/token"}}
    client: {{id: {self.name}, secretsFrom: [{{secretKeyRef: {{name: {self.name}, key: client}}}}]}}
    refreshTokens: {self.refresh_tokens}
  tls: {self.tls}
  limits: {{timeout: {TIMEOUT}s, requestsPerSecond: 1000, burst: 1000, concurrency: 100}}
---
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {{name: {self.name}}}
spec:
  providerRef: {{name: {self.name}}}
  grant: {self.grant()}
  renewal: {self.renewal}
"""


class Scene:
    """The directories of one broker, and the identities that it looks after."""

    def __init__(self, base: Path, zygote: Zygote, identities: Iterable[Identity]) -> None:
        self.base = base
        self._zygote = zygote
        self.identities = list(identities)
        self.brokers: list[Broker] = []
        self._read = 0
        self._diary: list[dict[str, Any]] = []
        self._statuses: defaultdict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
        base.mkdir(parents=True)
        for identity in self.identities:
            identity.register()
            self.give(identity, "client", "s3cret")
            if identity.kind is Kind.REFRESH:
                self.plant(identity)
            elif identity.kind is Kind.PASSWORD:
                self.give(identity, "user", identity.name)
                self.give(identity, "password", "pa55word")
        self.declare()

    def declare(self) -> None:
        """Write the resources, at once."""
        temporary = self.base / "resources.new"
        temporary.write_text("---".join(identity.document() for identity in self.identities))
        temporary.replace(self.base / "resources.yaml")

    def give(self, identity: Identity, key: str, value: str) -> None:
        """Put a value into the identity's Secret, at once as a person's editor does."""
        directory = self.base / "secrets" / "default" / identity.name
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f"{key}.new"
        temporary.write_text(value)
        temporary.replace(directory / key)

    def plant(self, identity: Identity) -> None:
        """Give a new seed, as a person does who logged in once more."""
        seed = identity.issuer.seed_refresh_token(identity.name, identity.name)
        identity.seeds.append(seed)
        self.give(identity, "seed", seed)

    def directory(self, identity: Identity) -> Path:
        return self.base / "out" / "default" / identity.name

    def watch(self, watcher: Watcher) -> None:
        for identity in self.identities:
            watcher.add(self.directory(identity))

    # --- brokers ------------------------------------------------------------------------------------------------------

    def start(self, *, step: str = "", passing: int = 1, change: int = 0) -> Broker:
        """Start a broker that dies where it is told to."""
        broker = self._zygote.run(Order(str(self.base), step, passing, change))
        self.brokers.append(broker)
        return broker

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

    def diary(self) -> list[dict[str, Any]]:
        """Return all that the brokers wrote down; a line that a kill cut short is not there yet."""
        try:
            with (self.base / "diary").open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return self._diary
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in map(json.loads, whole.splitlines()):
            self._diary.append(line)
            if line["kind"] == "status":
                self._statuses[line["pid"], line["name"]].append(line)
        return self._diary

    def statuses(self, identity: Identity) -> list[dict[str, Any]]:
        """Return what the last broker reported of an identity."""
        self.diary()
        return self._statuses[self.brokers[-1].pid, identity.name]

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
                raise AssertionError(f"{self.base.name}: not within {patience:g} s: {what}; last: {self.diary()[-4:]}")
            await self.pause(0.01)
            status = self.brokers[-1].status
            assert status is None, f"{self.base.name}: the broker ended with {status}; it was waited for: {what}"

    def reported(self, identity: Identity, reason: str) -> bool:
        """Tell whether the last broker's latest word on an identity is this reason."""
        statuses = self.statuses(identity)
        return bool(statuses) and statuses[-1]["reason"] == reason

    def renewal(self, identity: Identity, times: int) -> Callable[[], bool]:
        """Return what tells whether an identity was renewed so many times from now, and published."""
        first = self.record(identity).get("revision", 0)

        def done() -> bool:
            return any(
                status["reason"] == "Issued" and status["revision"] >= first + times
                for status in self.statuses(identity)
            )

        return done

    async def renewed(self, identity: Identity, times: int = 2) -> None:
        """Wait until the broker that runs now has renewed an identity so many times, and published it."""
        await self.until(f"{identity.name} renewed {times} times", self.renewal(identity, times))

    async def stalled(self, identity: Identity) -> None:
        """Wait until an identity needs a person."""
        await self.until(f"{identity.name} asks for a person", lambda: self.reported(identity, APPROVAL))

    def record(self, identity: Identity) -> dict[str, Any]:
        """Return an identity's private state."""
        try:
            data = (self.base / "state" / "records" / "default" / f"{identity.name}.json").read_bytes()
        except FileNotFoundError:
            return {}
        record: dict[str, Any] = json.loads(data)["record"]
        return record

    def fingerprint(self, token: str) -> str:
        """Return the digest by which the private state knows a refresh token."""
        key = bytes.fromhex(json.loads((self.base / "state" / "identity.json").read_bytes())["key"])
        return SecretValue(token).fingerprint(key)

    def spends(self, identity: Identity) -> list[Spend]:
        """Return the issuer's record of every refresh token of an identity."""
        return [spend for spend in identity.issuer.spends if spend.client_id == identity.name]

    # --- what must hold -----------------------------------------------------------------------------------------------

    def verdict(self) -> Verdict:
        """Judge every refresh token that was ever issued to any of the identities."""
        verdict = Verdict()
        attempts: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for line in self.diary():
            if line["kind"] == "claim":
                attempts[line["digest"]][line["attempt_id"]] = line["attempt"]
        held = {self.record(identity).get("refresh_token") for identity in self.identities}
        for identity in self.identities:
            if "Reusable" in identity.refresh_tokens:
                continue
            for spend in self.spends(identity):
                claims = sorted(attempts.get(self.fingerprint(spend.token), {}).values())
                verdict.judge(identity, spend, claims)
        escrowed = {line["token"] for line in self.diary() if line["kind"] in {"escrowed", "found"}}
        found = {line["attempt_id"] for line in self.diary() if line["kind"] == "found"}
        verdict.escrowed = len(escrowed)
        verdict.rescued = len(found & {attempt_id for claims in attempts.values() for attempt_id in claims})
        verdict.faults += [
            f"a refresh token that had arrived ({token[:6]}…) was lost"
            for token in escrowed
            if token not in held and self.fingerprint(token) not in attempts
        ]
        litter = [str(path) for path in (self.base / "state").rglob(".keyferry-tmp-*")]
        verdict.faults += [f"left behind: {path}" for path in litter]
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
