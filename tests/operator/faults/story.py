"""What happens to the identities of one team in a few minutes of their life, and what must be left of them.

Each of the four kinds has three identities, whose lives differ: the first is renewed and deleted in the end, the
second is edited and has its Secret deleted by somebody, the third sees its client's secret rotated too late, has its
Secret edited by somebody, and is given another one. Tokens live for an hour, so nothing happens by itself.
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

from tests.operator.faults.site import LATER_SECRET, is_ready

if TYPE_CHECKING:
    from keyferry.record import Record
    from tests.operator.faults.site import Site

KINDS = ("client", "seeded", "person", "private")
NAMES = tuple(f"{kind}-{number}" for kind in KINDS for number in range(3))
DELETED, EDITED, MOVED = (tuple(name for name in NAMES if name.endswith(str(number))) for number in range(3))


def published(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if not name.startswith("private"))


async def live(site: Site) -> None:
    """Have it all happen, each step when the one before is done."""
    await _begin(site)
    await _renew(site)
    await _rotate(site)
    await _edit(site)
    await _meddle(site)
    await _move(site)
    await _delete(site)


async def _begin(site: Site) -> None:
    site.prepare()
    for number in range(3):
        site.apply(
            site.seed(f"seeded-{number}"),
            site.seed(f"private-{number}"),
            site.user(f"person-{number}"),
            # Each asks for something else: equal requests would be one exchange.
            site.identity(f"client-{number}", audiences=[f"api-{number}"]),
            site.seeded(f"seeded-{number}"),
            site.person(f"person-{number}"),
            site.seeded(f"private-{number}", target={"type": "None"}),
        )
    await site.until(lambda: site.ready(*NAMES))


async def _renew(site: Site) -> None:
    site.ask_renewal("please", *DELETED)
    await site.until(lambda: site.ready(*DELETED, revision=2))


async def _rotate(site: Site) -> None:
    """Change the client's secret at the issuer first: who is renewed meanwhile is refused, until the Secret follows."""
    site.register(LATER_SECRET)
    site.ask_renewal("now", *MOVED)
    await site.until(lambda: _refused(site, *MOVED))
    site.apply(site.secret("bot", secret=LATER_SECRET))
    await site.until(lambda: site.ready(*MOVED, revision=1))


async def _edit(site: Site) -> None:
    for name in EDITED:
        site.change(name, scopes=["read"])
    await site.until(lambda: site.ready(*EDITED, revision=2))


async def _meddle(site: Site) -> None:
    """Delete and edit what is published."""
    before = {name: site.published_token(name) for name in published(EDITED + MOVED)}
    for name, target in site.targets().items():
        if name in EDITED:
            site.cluster.api.delete(target)
        elif name in MOVED:
            site.cluster.api.patch(target, {"data": {"token": base64.b64encode(b"forged").decode()}})
    await site.until(lambda: {name: site.published_token(name) for name in before} == before)


WHAT_IT_IS = ("provider", "type")
"""Entries of a published Secret that are no files (Service Binding)."""


async def _move(site: Site) -> None:
    for name in published(MOVED):
        site.change(name, target={"files": [{"format": "Json", "name": "all.json"}]})
    await site.until(
        lambda: all(set(site.targets()[name].get("data", ())) == {"all.json", *WHAT_IT_IS} for name in published(MOVED))
    )
    for name in published(MOVED):
        site.change(name, target={"secretName": f"{name}-elsewhere"})
    await site.until(lambda: {f"{name}-elsewhere" for name in published(MOVED)} <= site.targets().keys())
    await site.until(lambda: not set(MOVED) & site.targets().keys())
    await site.until(lambda: site.ready(*MOVED))


async def _delete(site: Site) -> None:
    site.delete(*DELETED)
    await site.until(lambda: not set(DELETED) & (site.identities().keys() | site.targets().keys()))
    # In the order in which a record goes: what has left the one may be in the other by then.
    await site.until(lambda: not set(DELETED) & site.states().keys() and not site.states("gone"))


def _refused(site: Site, *names: str) -> bool:
    found = site.identities()
    return all(
        any(
            condition["type"] == "Stalled" and condition["status"] == "True" and condition["reason"] == "ClientRejected"
            for condition in found[name].get("status", {}).get("conditions", ())
        )
        for name in names
    )


async def left(site: Site) -> dict[str, Any]:
    """Return what is left in the end, without what differs from life to life."""
    identities = await asyncio.to_thread(site.identities)
    targets = await asyncio.to_thread(site.targets)
    states = await asyncio.to_thread(site.states)
    gone = await asyncio.to_thread(site.states, "gone")
    good = site.good_tokens()
    return {
        "identities": {name: _status(item) for name, item in identities.items()},
        "targets": {name: _target(item, good) for name, item in targets.items()},
        "states": {name: _state(record, good) for name, record in states.items()},
        "orders to revoke": sorted(gone),
        "sessions over": {name: over for name, (_sent, over) in site.sessions().items()},
        "refresh tokens sent": {name: sent for name, (sent, _over) in site.sessions().items()},
        "spent twice": site.spent_twice(),
    }


def _status(identity: dict[str, Any]) -> dict[str, Any]:
    status = identity["status"]
    return {
        "conditions": [(item["type"], item["status"], item["reason"]) for item in status["conditions"]],
        "ready": is_ready(identity, 0),
        "failures": status["failureCount"],
        "error": status.get("lastError"),
        "secret": (status.get("binding") or {}).get("name"),
    }


def _target(secret: dict[str, Any], good: set[str]) -> dict[str, Any]:
    files = {name: value for name, value in secret["data"].items() if name not in WHAT_IT_IS}
    content = [base64.b64decode(value).decode() for value in files.values()]
    return {
        "keys": sorted(secret["data"]),
        "owner": [ref["name"] for ref in secret["metadata"]["ownerReferences"]],
        "labels": secret["metadata"]["labels"],
        "good": all(any(token in text for token in good) for text in content),
    }


def _state(record: Record, good: set[str]) -> dict[str, Any]:
    return {
        "claim": record.claim,
        "ended": record.refresh_ended,
        "refreshes": record.refresh_token is not None,
        "good": record.token is not None and record.token.access_token.reveal() in good,
    }


def expected() -> dict[str, Any]:
    """Return what ``left`` must be, whatever went wrong on the way."""
    alive = EDITED + MOVED
    target = {"labels": {"keyferry.dev/managed": "true", "app.kubernetes.io/managed-by": "keyferry"}, "good": True}
    seeded = tuple(name for name in NAMES if name.startswith(("seeded", "private")))
    people = tuple(name for name in NAMES if name.startswith("person"))
    return {
        "identities": {
            name: {
                "conditions": [
                    ("Ready", "True", "Issued"),
                    ("Reconciling", "False", "Issued"),
                    ("Stalled", "False", "Issued"),
                ],
                "ready": True,
                "failures": 0,
                "error": None,
                "secret": _secret_of(name),
            }
            for name in alive
        },
        "targets": {
            **{
                name: {"keys": ["provider", "token", "token.json", "type"], "owner": [name], **target}
                for name in published(EDITED)
            },
            **{
                f"{name}-elsewhere": {"keys": ["all.json", *WHAT_IT_IS], "owner": [name], **target}
                for name in published(MOVED)
            },
        },
        "states": {
            name: {"claim": None, "ended": "", "refreshes": True, "good": True}
            for name in alive
            if not name.startswith("client")
        },
        "orders to revoke": [],
        "sessions over": {name: name in DELETED for name in seeded + people},
        "refresh tokens sent": {
            # A seed is sent at once, a password is not; a renewal sends one more. Other scopes take another login.
            **{name: 1 + (name not in MOVED) for name in seeded},
            **{name: int(name in DELETED) for name in people},
        },
        "spent twice": [],
    }


def _secret_of(name: str) -> str | None:
    if name not in published(EDITED + MOVED):
        return None
    return f"{name}-elsewhere" if name in MOVED else name


async def ends_well(site: Site) -> None:
    """Fail where what is left is not what must be."""
    found = await left(site)
    for what, value in expected().items():
        assert found[what] == value, what
