"""The I/O of one identity's step: observe, exchange, publish. What to do was decided elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final

from keyferry import __version__
from keyferry.doubt import DoubtPolicy, settle_time
from keyferry.engine.answers import Answers, concerns_people, is_answering
from keyferry.engine.exchange import OAuthExchanger
from keyferry.engine.job import REFRESHING, REPEATABLE, Job
from keyferry.engine.labarchives import LabArchivesExchanger
from keyferry.engine.outlet import Place, render_input
from keyferry.engine.tiled import TiledExchanger
from keyferry.engine.tiled_upstream import TERMS as UPSTREAM_TERMS
from keyferry.engine.tiled_upstream import is_upstream
from keyferry.errors import CredentialError, PublishError
from keyferry.frozen import replace
from keyferry.ledger import Ledger, Stuck
from keyferry.plan import Observed, PublishedState, is_behind
from keyferry.publication import Publication
from keyferry.record import Claim, Versioned
from keyferry.render import Delivery, render
from keyferry.render.service_binding import binding_entries
from keyferry.spec.provider import InDoubt, ProviderType, Rotation
from keyferry.spec.target import TargetType

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.engine.clients import IdentityTokens
    from keyferry.engine.discards import Discards
    from keyferry.engine.entry import Entry
    from keyferry.engine.links import Links
    from keyferry.engine.ports import Ports
    from keyferry.engine.provider import Channel, Provider
    from keyferry.ledger import Checkpoint
    from keyferry.model import ObjectKey
    from keyferry.plan import Failure
    from keyferry.publication import Published
    from keyferry.record import Record

PUBLISHING_AT_ONCE: Final = 16
ALL_SUSPENDED: Final = (
    "this installation is suspended as a whole (suspendAll, --suspend-all), as after a restore: nothing is exchanged or"
    " revoked, and what is published stays until it expires"
)


class Desk:
    """Works on one identity at a time, for as many identities as the engine gives it."""

    def __init__(
        self,
        ports: Ports,
        holder: str,
        tokens: IdentityTokens,
        checkpoint: Checkpoint | None,
        may_begin: Callable[[ObjectKey], bool],
        links: Links,
        discards: Discards,
        *,
        prompts: bool,
        settle_margin: float,
    ) -> None:
        """``may_begin`` tells whether a spend may still be begun: not while the work on it ends.

        ``prompts`` tells whether anybody would see it when a person is asked.
        """
        self._settle_margin = settle_margin
        self._has_page = prompts and bool(links.page_url)
        self._ports = ports
        self._checkpoint = checkpoint or (lambda _step: None)
        self.holder = holder
        """Names this process in the claims that it makes."""
        self._ledger = ledger = Ledger(
            ports.store,
            ports.escrow,
            ports.clock,
            holder=holder,
            checkpoint=self._checkpoint,
            may_begin=may_begin,
            stuck=lambda key, message: self.stuck(key, message),  # noqa: PLW0108 - it is set later
        )
        self.stuck: Stuck = lambda _key, _message: None
        """Told when an answer cannot be stored."""
        self._oauth = OAuthExchanger(ports, ledger, tokens, links, prompts=prompts)
        self._tiled = TiledExchanger(ports, ledger, self._oauth, links, prompts=prompts)
        self._labarchives = LabArchivesExchanger(ports, ledger, links, prompts=prompts)
        self._answers = Answers(ports, holder, settle_margin, discards, self._recover_login)
        self._publishing = asyncio.Semaphore(PUBLISHING_AT_ONCE)

    async def observe(
        self, entry: Entry, provider: Provider | None, *, suspended: bool
    ) -> tuple[Observed, Versioned | None, PublishError | None]:
        """Gather what the plan looks at, with what kept us from seeing the published files. Raises StoreError."""
        held = await self._ports.store.read(entry.key, entry.uid)
        if held is not None:
            held = await self._ledger.tidy(held)
        unseen: PublishError | None = None
        published: Published | None = None
        try:
            published = await self._ports.publisher.observe(entry.key)
        except PublishError as error:
            unseen = error
        facts = self.facts(entry, provider, held, published, suspended=suspended)
        new_code = await self._labarchives.has_new_code(entry.resource, provider, held)
        # Not seeing the files is no reason not to renew; nothing is written where nothing can be seen.
        if new_code or unseen is not None:
            facts = replace(facts, new_code=new_code, publish_failed=facts.publish_failed or unseen is not None)
        return facts, held, unseen

    def _is_answering(self, entry: Entry, record: Record | None) -> bool:
        """Tell whether somebody is answering a question, which takes a page."""
        return self._has_page and is_answering(entry, record)

    def facts(
        self,
        entry: Entry,
        provider: Provider | None,
        held: Versioned | None,
        published: Published | None,
        *,
        suspended: bool,
    ) -> Observed:
        """Put together what was gathered."""
        record = held.record if held is not None else None
        failing = _still_failing(entry.publish_failure, self._ports.clock.now())
        settled, settles_at = self._settled(entry, record.claim if record is not None else None)
        return Observed(
            key=entry.key,
            uid=entry.uid,
            origin=self._ports.store.origin,
            spec_hash=entry.spec_hash,
            files_hash=entry.files_hash,
            grant_refreshes=entry.resource.spec.grant.type in REFRESHING,
            asks_by_session=provider is not None and provider.resource.spec.type is ProviderType.OAUTH,
            record=record,
            published=_state(published),
            known_revision=max(entry.revision, entry.told_revision),
            failure=entry.failure,
            suspended=suspended or entry.resource.spec.suspend,
            suspension=ALL_SUSPENDED if suspended else "spec.suspend is set; what is published stays until it expires",
            renew_requested=entry.renew,
            login_requested=entry.login,
            asked_through_page=entry.login_by_page,
            answering=self._is_answering(entry, record),
            poll_at=entry.poll_at,
            wanted_remaining=entry.wanted_remaining,
            doubt=_doubt_policy(entry, provider, record),
            claim_settled=settled,
            claim_settles_at=settles_at,
            publishes=entry.resource.spec.target.type is not TargetType.NONE,
            publish_failed=failing,
            publish_again=entry.publish_failure is not None and not failing,
        )

    async def exchange(
        self,
        entry: Entry,
        provider: Provider,
        channel: Channel,
        observed: Observed,
        held: Versioned | None,
        note: Callable[[str], None],
    ) -> Versioned:
        """Get the next token and commit it. Raises KeyferryErrors."""
        job = Job(
            resource=entry.resource,
            uid=entry.uid,
            provider=provider,
            way=channel,
            ports=self._ports,
            observed=observed,
            held=held,
            cause=entry.tried,
            note=note,
            asked=entry.asking,
            take_note=partial(self._answers.take_note, entry),
            wishes=entry.wishes,
        )
        if is_behind(observed):
            await self._catch_up(job)
        match provider.resource.spec.type:
            case ProviderType.OAUTH:
                return await self._oauth.perform(job)
            case ProviderType.TILED:
                return await self._tiled.perform(job)
            case ProviderType.LABARCHIVES:
                return await self._labarchives.perform(job)

    async def recover(
        self, entry: Entry, provider: Provider, observed: Observed, held: Versioned | None, note: Callable[[str], None]
    ) -> Versioned | None:
        """Commit the answer to an open claim that arrived before a crash, where there is one; once a claim."""
        claim = held.record.claim if held is not None else None
        if held is None or claim is None or entry.recovered == claim.attempt_id:
            return None
        if held.record.uid != observed.uid or held.record.origin != observed.origin:
            return None
        facts = self.facts(entry, provider, held, None, suspended=False)
        job = self._job(entry, provider, facts, held, note)
        spec = provider.resource.spec
        if spec.type is ProviderType.LABARCHIVES:
            recovered = await self._labarchives.recover(job)
        else:
            recovered = await self._oauth.recover(job, spec.oauth or UPSTREAM_TERMS)
        # Only now: where the escrow could not be read, an answer may lie in it, and it is looked for again.
        entry.recovered = claim.attempt_id
        return recovered

    async def hear(
        self, entry: Entry, provider: Provider, observed: Observed, held: Versioned | None, note: Callable[[str], None]
    ) -> tuple[Observed, Versioned | None, bool]:
        """See to what people want by the approval page, and to what of it lapsed, as far as no request is needed.

        Returns what is observed then, the record, and whether a login became the session. Raises StoreError.
        """
        if not concerns_people(entry, observed):
            return observed, held, False
        job = self._job(entry, provider, observed, held, note)
        confirmed = await self._answers.hear(job, entry)
        following = replace(
            observed,
            record=job.held.record if job.held is not None else None,
            failure=entry.failure,
            poll_at=entry.poll_at,
            answering=self._is_answering(entry, job.held.record if job.held is not None else None),
        )
        return following, job.held, confirmed

    async def _recover_login(self, job: Job) -> Versioned | None:
        if job.provider.resource.spec.type is ProviderType.LABARCHIVES:
            return await self._labarchives.recover_login(job)
        return await self._oauth.recover_login(job)

    def _job(
        self,
        entry: Entry,
        provider: Provider,
        observed: Observed,
        held: Versioned | None,
        note: Callable[[str], None],
    ) -> Job:
        """Return a job that sends nothing."""
        noted = partial(self._answers.take_note, entry)
        return Job(
            entry.resource, entry.uid, provider, None, self._ports, observed, held, "", note, entry.asking, noted
        )

    async def publish(self, entry: Entry, provider: Provider, record: Record) -> PublishedState | None:
        """Write the record's token for the workloads; return what is there then. Raises PublishError, ResourceError."""
        token = record.token
        if token is None:
            return None
        if entry.resource.spec.target.type is TargetType.NONE:
            await self._ports.publisher.withdraw(entry.key, entry.uid)
            return None
        spec = provider.resource.spec
        place = Place(
            self._ports.publisher.delivery,
            self._ports.publisher.place(entry.key),
            self._ports.publisher.endpoint(entry.key),
        )
        files = render(entry.resource.spec.target.files, render_input(spec, record, token, place))
        if place.delivery is Delivery.SECRET:
            files = {**binding_entries(spec.type), **files}
        publication = Publication(
            key=entry.key,
            uid=record.uid,
            revision=record.revision,
            generation=record.generation,
            issued_at=token.issued_at,
            expires_at=token.expires_at,
            spec_hash=record.spec_hash,
            files_hash=entry.files_hash,
            files=files,
        )
        async with self._publishing:
            self._checkpoint("publish")
            published = await self._ports.publisher.publish(publication, record)
            self._checkpoint("published")
        return _state(published)

    async def cause(self, entry: Entry, provider: Provider | None) -> str:
        """Return a fingerprint of the spec and of every credential that it and its provider point to."""
        mac = hmac.new(self._ports.store.digest_key, f"{__version__}\0{entry.spec_hash}".encode(), "sha256")
        # For the host that it goes to first: that it may be sent there now is a change that helps, too.
        hosts = provider.front() if provider is not None else frozenset()
        places: list[tuple[str, str, str]] = [(entry.key.namespace, name, key) for name, key in entry.named_keys]
        if provider is not None:
            # What the installation allows is part of it: to allow a host is a change that helps.
            mac.update(repr(self._ports.addresses(provider.resource)).encode())
            namespace = provider.resource.key.namespace
            places += [(namespace, name, key) for name, key in provider.named_keys]
            for name, key in sorted(provider.named_configs):
                with contextlib.suppress(CredentialError):
                    content = await self._ports.credentials.config(namespace, name, key)
                    mac.update(f"\0config/{namespace}/{name}/{key}\0".encode() + hashlib.sha256(content).digest())
        for namespace, name, key in sorted(places):
            try:
                content = await self._ports.credentials.secret(namespace, name, key, hosts)
            except CredentialError:
                content = b""
            mac.update(f"\0{namespace}/{name}/{key}\0".encode() + hashlib.sha256(content).digest())
        return mac.hexdigest()[:32]

    async def _catch_up(self, job: Job) -> None:
        """Admit that the private state is older than what it published: its refresh token may be spent."""
        held, published = job.held, job.observed.published
        if held is None:
            return
        record, known = held.record, job.observed.known_revision
        claim = record.claim
        rotates = not job.observed.doubt.reusable
        if claim is None and record.refresh_token is not None and not record.refresh_ended and rotates:
            claim = Claim(
                digest=record.refresh_token.fingerprint(self._ports.store.digest_key),
                attempt_id=f"restored-{secrets.token_hex(8)}",
                attempt=1,
                holder="restored",
                claimed_at=0.0,
                deadline=0.0,
            )
        caught_up = replace(
            record,
            claim=claim,
            generation=max(record.generation, published.generation if published is not None else 0),
            revision=max(record.revision, published.revision if published is not None else 0, known),
        )
        await self._ports.store.replace(held, caught_up)
        await job.reread()
        job.restored = True
        job.note("the private state is older than what was published from it: it was restored or copied")

    def _settled(self, entry: Entry, claim: Claim | None) -> tuple[bool, float]:
        if claim is None or claim.attempt_id == entry.claim_finished or claim.holder == "restored":
            return True, 0.0
        age = entry.claim_age(claim, self._ports.clock.monotonic())
        gone = self._ports.store.holder_is_gone(claim.holder)
        wait = settle_time(claim, holder_gone=gone, margin=self._settle_margin) - age
        return wait <= 0, self._ports.clock.now() + max(0.0, wait)


def _still_failing(failure: Failure | None, now: float) -> bool:
    return failure is not None and failure.next_attempt > now


def _state(published: Published | None) -> PublishedState | None:
    if published is None:
        return None
    return PublishedState(
        published.uid, published.revision, published.generation, published.files_hash, published.intact
    )


def _doubt_policy(entry: Entry, provider: Provider | None, record: Record | None) -> DoubtPolicy:
    can_login = entry.resource.spec.grant.type in REPEATABLE
    if provider is None:
        return DoubtPolicy(can_login=can_login)
    spec = provider.resource.spec
    if spec.labarchives is not None:
        # A code is redeemed once, and its answer is either there or lost: nothing is ever replayed.
        return DoubtPolicy(replay_once=False, can_login=False, deadline=spec.limits.timeout)
    if spec.oauth is None:
        return DoubtPolicy(reusable=not is_upstream(record), can_login=can_login, deadline=spec.limits.timeout)
    tokens = spec.oauth.refresh_tokens
    return DoubtPolicy(
        reuse_window=tokens.reuse_window,
        reusable=tokens.rotation is Rotation.REUSABLE,
        replay_once=tokens.in_doubt is InDoubt.REPLAY_ONCE,
        can_login=can_login,
        deadline=spec.limits.timeout,
    )
