"""Status, conditions and Events: what people read. One patch for each renewal, and none that changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, final

from keyferry.engine import Level
from keyferry.errors import Reason, RetryClass
from keyferry.plan import Failure
from keyferry.run.status_json import authorized_as
from keyferry.spec.target import TargetType
from keyferry_operator.client import EVENTS, IDENTITIES
from keyferry_operator.errors import ApiError
from keyferry_operator.names import REQUESTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyferry.engine import Event, IdentityStatus
    from keyferry.engine.status import Prompt
    from keyferry.model import ObjectKey
    from keyferry.run.reporter import Listener
    from keyferry_operator.catalog import Catalog
    from keyferry_operator.client import KubeClient, Object

log = logging.getLogger(__name__)

WRITERS: Final = 16
WRITE_PAUSE: Final = 2.0
"""Seconds until a status that could not be written is tried again."""
FORBIDDEN_PAUSE: Final = 30.0
"""The same where a right is missing: people give it, and they take longer."""
LONGEST_NOTE: Final = 1000
GOOD_NEWS: Final = 100
"""Events of level info that may come at once, when ten thousand identities get their first token: the statuses and
the log tell of each, and Events are kept for an hour by the same etcd."""
GOOD_NEWS_PER_SECOND: Final = 5.0
SHARED: Final = frozenset({"asked", "consumers"})
"""Parts of a status that any replica writes, and that are left as they are here (``keyferry_operator.api``)."""
QUIET: Final = frozenset({"renewed", "session_renewed", "published"})
"""Events that happen all the time and are told by the status alone."""


@final
class ClusterReporter:
    """Implements ``keyferry.engine.ports.Reporter`` over the API server."""

    def __init__(self, client: KubeClient, catalog: Catalog, *, instance: str) -> None:
        self._client = client
        self._catalog = catalog
        self._instance = instance
        self._dirty: dict[ObjectKey, IdentityStatus] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue(maxsize=1000)
        self._good_news = LeakyCount(GOOD_NEWS, GOOD_NEWS_PER_SECOND)
        self._wake = asyncio.Event()
        self._troubles: set[str] = set()
        """Namespaces in which the last status could not be written."""
        self._busy: set[asyncio.Task[None]] = set()
        self.listeners: list[Listener] = []
        """Who else is told of events: the log lines, the metrics."""

    def report(self, status: IdentityStatus) -> None:
        """Take note of a status; what is only passing is not written."""
        if not status.busy:
            self._dirty[status.key] = status
            self._wake.set()

    def forget(self, key: ObjectKey) -> None:
        """Write nothing more of an identity that is gone."""
        self._dirty.pop(key, None)

    def event(self, event: Event) -> None:
        """Queue an Event for what a person should know; when too many come at once, the log has to do."""
        for listener in self.listeners:
            listener.event(event)
        if not self.listeners:
            log.log(_LEVELS[event.level], "%s: %s: %s", event.key or "-", event.reason, event.message)
        if event.key is None or event.event in QUIET or event.level is Level.DEBUG:
            return
        crowded = self._events.qsize() >= GOOD_NEWS
        if event.level is Level.INFO and (crowded or not self._good_news.admits(time.monotonic())):
            return
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            log.warning("too many events at once; %s of %s is in the log only", event.event, event.key)

    async def remember(self, key: ObjectKey, failure: Failure | None) -> None:
        """Do nothing: the status that is reported with a failure holds it."""

    async def failures(self) -> Mapping[ObjectKey, Failure]:
        """Return the failures that the statuses hold."""
        found = {key: _failure(status) for key, status in self._catalog.statuses()}
        return {key: failure for key, failure in found.items() if failure is not None}

    async def run(self) -> None:
        """Write statuses and Events until cancelled."""
        await asyncio.gather(self._write_statuses(), self._write_events())

    async def flush(self, patience: float) -> None:
        """Wait, for ``patience`` seconds at most, until what was noted is written."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._dirty or self._busy:  # noqa: ASYNC110 - for the last seconds of a process
                    await asyncio.sleep(0.02)
                await self._events.join()

    async def _write_statuses(self) -> None:
        busy = self._busy
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty:
                key = next(iter(self._dirty))
                status = self._dirty.pop(key)
                wanted = self._wanted(status)
                if wanted is None:
                    continue
                task = asyncio.create_task(self._write(status, wanted))
                busy.add(task)
                task.add_done_callback(busy.discard)
                if len(busy) >= WRITERS:
                    await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)

    def _wanted(self, status: IdentityStatus) -> dict[str, Any] | None:
        """Return what is to be written; None where nothing would change."""
        resource = self._catalog.identities.get(status.key)
        if resource is None:
            return None
        before = self._catalog.status_of(status.key)
        private = resource.spec.target.type is TargetType.NONE
        secret = "" if private else self._catalog.secret_key(status.key).name
        wanted = status_object(status, before, generation=resource.generation, secret=secret)
        wanted |= {request.field: self._catalog.handled[request].get(status.key) or None for request in REQUESTS}
        if {key: value for key, value in before.items() if value is not None and key not in SHARED} == {
            key: value for key, value in wanted.items() if value is not None
        }:
            return None
        return wanted

    async def _write(self, status: IdentityStatus, wanted: dict[str, Any]) -> None:
        resource = self._catalog.identities.get(status.key)
        if resource is None:
            return
        try:
            made = await self._client.merge(
                IDENTITIES,
                status.key.namespace,
                status.key.name,
                {"metadata": {"uid": resource.uid}, "status": wanted},
                subresource="status",
                metadata_only=True,
            )
        except ApiError as error:
            if not error.not_found and not error.conflict:  # else it is gone, or another one has its name
                self._write_later(status, error)
            return
        self._troubles.discard(status.key.namespace)
        before = self._catalog.status_of(status.key)
        shared = {name: before[name] for name in SHARED if name in before}
        self._catalog.wrote_status(status.key, {**wanted, **shared}, made["metadata"])

    def _write_later(self, status: IdentityStatus, error: ApiError) -> None:
        """Try again in a while, and say why once: what keeps one status of a namespace from us keeps all of them."""
        told = status.key.namespace in self._troubles
        self._troubles.add(status.key.namespace)
        log.log(
            logging.DEBUG if told else logging.WARNING,
            "the status of %s cannot be written yet: %s",
            status.key,
            error,
        )

        def again() -> None:
            self._dirty.setdefault(status.key, status)
            self._wake.set()

        asyncio.get_running_loop().call_later(FORBIDDEN_PAUSE if error.forbidden else WRITE_PAUSE, again)

    async def _write_events(self) -> None:
        while True:
            event = await self._events.get()
            try:
                await self._write_event(event)
            finally:
                self._events.task_done()

    async def _write_event(self, event: Event) -> None:
        resource = self._catalog.identities.get(event.key) if event.key is not None else None
        if resource is None or event.key is None:
            return
        body = _event_object(event, resource.uid, self._instance)
        try:
            await self._client.create(EVENTS, event.key.namespace, body)
        except ApiError as error:
            log.warning("an Event for %s could not be written: %s", event.key, error)


@final
class LeakyCount:
    """Admits up to ``most`` at once, and ``rate`` a second after that. Times are seconds of one clock."""

    def __init__(self, most: float, rate: float) -> None:
        self._most = most
        self._rate = rate
        self._level = 0.0
        self._at = 0.0

    def admits(self, now: float) -> bool:
        """Tell whether there is room for one more, and count it."""
        self._level = max(0.0, self._level - (now - self._at) * self._rate)
        self._at = now
        if self._level + 1 > self._most:
            return False
        self._level += 1
        return True


_LEVELS: Final = {
    Level.DEBUG: logging.DEBUG,
    Level.INFO: logging.INFO,
    Level.WARNING: logging.WARNING,
    Level.ERROR: logging.ERROR,
}


def status_object(status: IdentityStatus, before: Mapping[str, Any], *, generation: int, secret: str) -> dict[str, Any]:
    """Return the status subresource; None removes a field (RFC 7386). ``secret`` is empty where none is wanted."""
    now = datetime.now(UTC).timestamp()
    failing = status.retry is not None
    return {
        "observedGeneration": generation,
        "revision": status.revision,
        "issueTime": rfc3339(status.issue_time),
        "expirationTime": rfc3339(status.expiration_time),
        "renewalTime": rfc3339(status.renewal_time),
        "nextAttemptTime": rfc3339(status.next_attempt_time),
        "reauthorizeByTime": rfc3339(status.reauthorize_by_time),
        "failureCount": status.failure_count,
        "lastError": {"code": status.error_code, "message": status.message[:LONGEST_NOTE]} if failing else None,
        "failure": {"retry": status.retry.value if status.retry else "", "cause": status.cause} if failing else None,
        "binding": _binding(status, before, secret),
        "authorizedAs": _authorized_as(status),
        "approval": _approval(status.prompt, status.unapproved),
        "conditions": _conditions(status, before, generation, now),
    }


def _binding(status: IdentityStatus, before: Mapping[str, Any], secret: str) -> dict[str, str] | None:
    """Return the Secret to mount (Service Binding, "Provisioned Service"): one that was written, and is ours."""
    wanted = {"name": secret}
    written = status.revision > 0 and (status.shown or before.get("binding") == wanted)
    return wanted if secret and written else None


def _authorized_as(status: IdentityStatus) -> dict[str, Any] | None:
    if status.authorized_as is None:
        return None
    return {name: said or None for name, said in authorized_as(status.authorized_as).items()}


def _approval(prompt: Prompt | None, unapproved: str) -> dict[str, Any] | None:
    """Return what a person needs to see; None for a member removes what an earlier prompt had (RFC 7386)."""
    if prompt is None and not unapproved:
        return None
    if prompt is None:
        gone = dict.fromkeys(("verificationURI", "verificationURIComplete", "userCode", "expirationTime", "page"))
        return {**gone, "message": unapproved[:LONGEST_NOTE]}
    return {
        "message": None,
        "verificationURI": prompt.verification_uri or None,
        "verificationURIComplete": prompt.verification_uri_complete or None,
        "userCode": prompt.user_code or None,
        "expirationTime": rfc3339(prompt.expires_at),
        "page": prompt.page or None,
    }


def rfc3339(seconds: float | None) -> str | None:
    """Return Unix seconds as the API writes times: whole seconds, UTC."""
    return None if seconds is None else datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _conditions(status: IdentityStatus, before: Mapping[str, Any], generation: int, now: float) -> list[dict[str, Any]]:
    message = status.message[:LONGEST_NOTE] or "the token is fresh"
    reason = status.shown_reason(now).value
    waits = (RetryClass.TRANSIENT, RetryClass.SUSPICIOUS, RetryClass.IN_DOUBT)
    retrying = status.retry in waits and status.prompt is None
    wanted = (
        ("Ready", status.ready(now), reason, message),
        ("Reconciling", retrying or status.reason is Reason.PENDING, reason, message),
        ("Stalled", status.stalled(), reason, message),
    )
    earlier = {item.get("type"): item for item in before.get("conditions") or ()}
    return [condition(kind, holds, why, text, earlier.get(kind), generation, now) for kind, holds, why, text in wanted]


def condition(
    kind: str,
    holds: bool,  # noqa: FBT001
    reason: str,
    message: str,
    earlier: Mapping[str, Any] | None,
    generation: int,
    now: float,
) -> dict[str, Any]:
    """Return a condition; its transition time is the earlier one's where it holds as that did."""
    status = "True" if holds else "False"
    unchanged = earlier is not None and earlier.get("status") == status
    return {
        "type": kind,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": earlier["lastTransitionTime"] if earlier is not None and unchanged else rfc3339(now),
        "reason": reason,
        "message": message,
    }


def _failure(status: Mapping[str, Any]) -> Failure | None:
    """Read back what ``status_object`` kept of a failure; a refusal, which never was a try, is found anew."""
    error, kept = status.get("lastError"), status.get("failure")
    if not isinstance(error, dict) or not isinstance(kept, dict) or not status.get("failureCount"):
        return None
    at = status.get("nextAttemptTime")
    conditions = status.get("conditions") or ()
    ready: Mapping[str, Any] = next((item for item in conditions if item.get("type") == "Ready"), {})
    try:
        return Failure(
            count=int(status.get("failureCount") or 0),
            next_attempt=datetime.fromisoformat(at).timestamp() if isinstance(at, str) else math.inf,
            reason=Reason(ready.get("reason", Reason.RETRYING.value)),
            retry=RetryClass(kept.get("retry", RetryClass.TRANSIENT.value)),
            code=str(error.get("code", "")),
            message=str(error.get("message", "")),
            cause=str(kept.get("cause", "")),
        )
    except ValueError:
        return None


def _event_object(event: Event, uid: str, instance: str) -> Object:
    key = event.key
    if key is None:
        raise ValueError("an Event needs an object")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{key.name[:200]}.{uuid.uuid4().hex[:16]}", "namespace": key.namespace},
        "eventTime": now,
        "reportingController": "keyferry.dev/operator",
        "reportingInstance": instance[:128],
        "action": event.event,
        "reason": event.reason.value,
        "type": "Normal" if event.level in (Level.INFO, Level.DEBUG) else "Warning",
        "note": event.message[:LONGEST_NOTE],
        "regarding": {
            "apiVersion": f"{IDENTITIES.group}/{IDENTITIES.version}",
            "kind": "ServiceIdentity",
            "namespace": key.namespace,
            "name": key.name,
            "uid": uid,
        },
    }
