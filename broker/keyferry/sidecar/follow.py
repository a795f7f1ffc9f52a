"""Keeps the files of one identity as the broker has them: asks, writes, and waits for the next revision."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from keyferry.errors import PublishError
from keyferry.sidecar.backoff import SOON, Backoff
from keyferry.sidecar.client import BrokerAwayError, BrokerRefusedError
from keyferry.sidecar.fallback import read_mounted
from keyferry.sidecar.status import Standing
from keyferry.wire import LONGEST_WAIT, HeldReport, Malformed, ProblemReason, TokenAnswer

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random
    from typing import Never

    from keyferry.secret import SecretValue
    from keyferry.sidecar.client import BrokerClient, Fetched
    from keyferry.sidecar.files import IdentityFiles
    from keyferry.sidecar.status import Board, Trouble

UNREACHABLE: Final = "BrokerUnreachable"
UNWRITABLE: Final = "FilesUnwritable"
LONGEST_REFUSED: Final = 15.0
"""Seconds between questions that were refused: somebody is probably about to mend it."""
SHORTEST_HOLD: Final = 1.0
"""Seconds; a request that was to be held and came back sooner with nothing new is not asked again at once."""


LONGEST_LEAVE: Final = 2.0
"""Seconds within which a replica that ends has its sidecars ask another one."""
_ADVICE: Final = {
    ProblemReason.NOT_FOUND: ". Is there a ServiceIdentity of this name in the pod's namespace, and does its"
    " spec.consumers list the pod's service account?",
    ProblemReason.UNAUTHENTICATED: ". Keyferry tries again, with the pod's token as the kubelet renews it",
}
"""What the reader of a pod's log can do, which the broker must not say: it does not know who asks."""


@dataclass(frozen=True, slots=True)
class Pod:
    """What the followers of one pod share."""

    client: BrokerClient
    board: Board
    placeholder: SecretValue
    endpoint: str
    """URL that loopback endpoints are served below, without a slash at the end; empty where they are not."""
    minimum: float
    """Seconds for which tokens must be good when the containers start."""
    spread: float
    """Seconds over which the sidecars of a cluster spread their return after they lost the broker."""
    rng: Random


class Follower:
    """One identity of the pod."""

    def __init__(self, name: str, pod: Pod, files: IdentityFiles, fallback: Path | None = None) -> None:
        """``fallback`` is where its Secret is mounted."""
        self.name = name
        self._pod = pod
        self._files = files
        self._fallback = fallback
        self._backoff = Backoff(pod.rng)
        self._etag = ""
        self._unsaid: HeldReport | None = None
        self._lost = True
        """The replica that knew what this pod holds may be gone."""
        self._anew = True
        """The next question is to be answered at once."""
        self._told_local = False
        self.current: TokenAnswer | None = self._kept() if pod.endpoint else None
        """The last answer, for the endpoints; or what came nearest to it while nobody could be asked."""
        self.tried = asyncio.Event()
        """Set once the broker was asked, with whatever outcome."""
        self.renewed = asyncio.Event()
        """Set, and replaced, when there is a token that is newer."""

    async def run(self) -> Never:
        """Follow until cancelled."""
        while True:
            pause = await self.step()
            await asyncio.sleep(pause)

    async def step(self) -> float:
        """Ask once, act upon the answer; return how many seconds to wait before the next time."""
        try:
            return await self._ask()
        except BrokerAwayError as error:
            self._lost = self._anew = True
            self._fall_back()
            self._trouble(error.problem.reason if error.problem is not None else UNREACHABLE, error.message)
            first = self._pod.spread if self._is_held() else SOON
            return self._backoff.next(first, floor=error.retry_after)
        except BrokerRefusedError as error:
            self._etag = ""
            problem = error.problem
            self._trouble(problem.reason, f"{problem.detail}{_ADVICE.get(problem.reason, '')}")
            return self._backoff.next(SOON, floor=error.retry_after, latest=LONGEST_REFUSED)
        except PublishError as error:
            self._etag, self._anew = "", True
            self._trouble(UNWRITABLE, error.message)
            return self._backoff.next(SOON, latest=LONGEST_REFUSED)
        finally:
            self.tried.set()

    def put_back(self) -> None:
        """Write what a client deleted."""
        try:
            self._files.put_back()
        except PublishError as error:
            self._trouble(UNWRITABLE, error.message)

    @property
    def trouble(self) -> Trouble | None:
        """Why there is no newer token; None while all is well."""
        return self._pod.board.standings[self.name].problem

    @property
    def confirmed_at(self) -> float | None:
        """When (Unix seconds) the broker last said that what is held is current; None: it never did."""
        return self._pod.board.standings[self.name].confirmed_at

    @property
    def may_go_missing(self) -> bool:
        """Tell whether clients may delete any of its files."""
        return self._files.may_go_missing

    async def _ask(self) -> float:
        pod, begun = self._pod, time.monotonic()
        # The first word is not waited for: that there is no token, and why, is news as well.
        wait, self._anew = 0 if self._anew else LONGEST_WAIT, False
        minimum = 0.0 if pod.board.passed else pod.minimum
        try:
            fetched = await pod.client.token(self.name, etag=self._etag, wait=wait, minimum=minimum)
        except BrokerRefusedError:
            if time.monotonic() - begun >= SHORTEST_HOLD:
                self._backoff.succeeded()  # the broker itself waited for a token
            raise
        answered = time.monotonic()
        if fetched.token is None:
            pod.board.confirmed(self.name)
            if self._lost and self.current is not None and self.current.revision:
                written = pod.board.standings[self.name].written_at
                self._unsaid = HeldReport(self.current.revision, written or time.time())
        else:
            self._take(fetched, fetched.token, answered, pushed=bool(wait))
        self._backoff.succeeded()
        self._lost = False
        await self._report()
        if not self._etag:
            return pod.rng.uniform(0.0, LONGEST_REFUSED)  # something between us and the broker takes it away
        if fetched.leaving and wait:
            # The replica goes, and sends everybody away at the same time.
            self._lost = self._anew = True
            return pod.rng.uniform(0.0, min(pod.spread, LONGEST_LEAVE))
        too_soon = wait and fetched.token is None and answered - begun < SHORTEST_HOLD
        return pod.rng.uniform(0.0, 2.0) * SHORTEST_HOLD if too_soon else 0.0

    def _take(self, fetched: Fetched, token: TokenAnswer, answered: float, *, pushed: bool) -> None:
        """Write the files of an answer. Raises PublishError."""
        files = {
            file.path: file.completed(f"{self._pod.endpoint}/{self.name}", self._pod.placeholder).reveal().encode()
            for file in token.files
            if not file.local or self._pod.endpoint
        }
        if len(files) < len(token.files) and not self._told_local:
            self._told_local = True
            left_out = ", ".join(file.path for file in token.files if file.local)
            self._pod.board.tell(
                f"{self.name}: {left_out}: left out, for no loopback endpoints are served in this pod."
                " Name the client (aiod, labarchives) in the annotation keyferry.dev/clients"
            )
        self._files.apply(files)
        written = time.time()
        delay = token.age + time.monotonic() - answered if pushed and token.age is not None else None
        self._unsaid = HeldReport(token.revision, written, delay) if token.revision else None
        self._etag = fetched.etag
        expires = token.expires_at if token.access_token else None
        standing = Standing(token.revision, token.issued_at, expires, written, written, "Broker", sorted(files))
        self._pod.board.written(self.name, standing)
        self._have(token)
        self._keep(token)

    def _have(self, token: TokenAnswer) -> None:
        self.current = token
        self.renewed.set()
        self.renewed = asyncio.Event()

    def _keep(self, token: TokenAnswer) -> None:
        """Have the endpoints go on where this process is killed and started again while the broker is away."""
        if self._pod.endpoint and token.access_token:
            body = json.dumps(replace(token, files=(), age=None).to_json()).encode()
            with contextlib.suppress(PublishError):  # the status, which is written as well, tells of it
                self._files.keep(body)

    def _kept(self) -> TokenAnswer | None:
        """Return what a sidecar that ran before this one had."""
        try:
            kept = self._files.kept()
            return None if kept is None else TokenAnswer.from_json(json.loads(kept))
        except (PublishError, Malformed, ValueError, RecursionError):
            return None  # it is asked for anew

    async def _report(self) -> None:
        """Tell the broker what is written; it is for people to see, so one try must do until the next change."""
        unsaid, self._unsaid = self._unsaid, None
        if unsaid is not None:
            with contextlib.suppress(BrokerAwayError, BrokerRefusedError):
                await self._pod.client.report(self.name, unsaid)

    def _trouble(self, reason: str, message: str) -> None:
        self._pod.board.troubled(self.name, reason, message)

    def _is_held(self) -> bool:
        return self._pod.board.standings[self.name].written_at is not None

    def _fall_back(self) -> None:
        """Take over what is in the mounted Secret where that is better than what is held, while nobody can be asked."""
        if self._fallback is None:
            return
        held = self._pod.board.standings[self.name]
        try:
            mounted = read_mounted(self._fallback)
            if mounted is None:
                return
            if mounted.token is not None and (
                self.current is None or self.current.expires_at < mounted.token.expires_at
            ):
                self._have(mounted.token)
            if held.written_at is not None and not _is_later(mounted.expires_at, held.expires_at):
                return
            self._files.apply(mounted.files)
        except PublishError as error:
            self._pod.board.tell(f"{self.name}: {error.message}")
            return
        standing = Standing(
            mounted.revision,
            mounted.issued_at,
            mounted.expires_at,
            time.time(),
            None,
            "MountedSecret",
            sorted(mounted.files),
        )
        self._pod.board.written(self.name, standing)


def _is_later(expires: float | None, held: float | None) -> bool:
    return expires is not None and held is not None and expires > held
