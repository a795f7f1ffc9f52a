"""What the operator has seen: found by identity, and told apart from old news."""

from __future__ import annotations

from typing import Any

import pytest

from keyferry.model import ObjectKey
from keyferry.spec.resources import API_VERSION, IDENTITY_KIND, IdentityResource, load_object
from keyferry_operator.catalog import Catalog, SeenSecret, is_known

NIGHTLY, HOURLY = ObjectKey("team", "nightly"), ObjectKey("team", "hourly")


def seen(name: str, identity: ObjectKey | None, *, uid: str = "u1", version: str = "10") -> SeenSecret:
    return SeenSecret(ObjectKey("team", name), uid, version, "owner", identity, None, None)


def body(version: str, **status: Any) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version}, "status": status}


def test_an_identitys_secrets_are_found_while_it_moves_and_after() -> None:
    catalog = Catalog()
    old, new, other = seen("old", NIGHTLY), seen("new", NIGHTLY), seen("other", HOURLY)
    for secret in (old, new, other, old):
        catalog.put(secret)
    assert catalog.secrets_of(NIGHTLY) == [old, new]
    assert catalog.discard(old.key) is old
    assert catalog.secrets_of(NIGHTLY) == [new]
    assert catalog.discard(new.key) is new
    assert catalog.secrets_of(NIGHTLY) == []
    assert catalog.discard(new.key) is None
    assert catalog.secrets_of(HOURLY) == [other]


def test_a_secret_that_was_taken_over_is_no_longer_the_first_ones() -> None:
    catalog = Catalog()
    catalog.put(seen("token", NIGHTLY))
    taken = seen("token", HOURLY, version="11")
    catalog.put(taken)
    assert catalog.secrets_of(NIGHTLY) == []
    assert catalog.secrets_of(HOURLY) == [taken]
    spoiled = seen("token", None, version="12")
    catalog.put(spoiled)
    assert catalog.secrets_of(HOURLY) == []
    assert catalog.secrets[spoiled.key] is spoiled


@pytest.mark.parametrize(
    ("uid", "version", "deleted", "known"),
    [
        ("u1", "10", False, True),
        ("u1", "9", False, True),
        ("u1", "11", False, False),
        ("u1", "odd", False, False),
        ("u1", "12", True, False),
        ("u0", "8", True, True),  # the end of one whose place was taken
        ("u2", "12", False, False),
    ],
)
def test_a_watchs_word_of_a_secret_is_news_only_where_it_is_later(
    uid: str,
    version: str,
    deleted: bool,  # noqa: FBT001
    known: bool,  # noqa: FBT001
) -> None:
    catalog = Catalog()
    catalog.put(seen("token", NIGHTLY))
    assert catalog.knows_secret(ObjectKey("team", "token"), uid, version, deleted=deleted, listed=False) is known


def test_what_was_never_seen_is_news() -> None:
    for deleted in (False, True):
        assert not Catalog().knows_secret(ObjectKey("team", "token"), "u1", "1", deleted=deleted, listed=False)


def test_a_status_from_before_what_is_known_is_none() -> None:
    catalog = Catalog()
    catalog.see_status(NIGHTLY, body("5", revision=1), listed=False)
    assert catalog.knows_identity(NIGHTLY, "5", listed=False)
    catalog.see_status(NIGHTLY, body("4", revision=0), listed=False)
    assert catalog.status_of(NIGHTLY) == {"revision": 1}
    catalog.see_status(NIGHTLY, body("10", revision=3), listed=False)
    assert dict(catalog.statuses()) == {NIGHTLY: {"revision": 3}}
    catalog.forget_status(NIGHTLY)
    assert catalog.status_of(NIGHTLY) == {}
    catalog.see_status(NIGHTLY, body("1", revision=7), listed=False)
    assert catalog.status_of(NIGHTLY) == {"revision": 7}


@pytest.mark.parametrize(
    ("generation", "annotations", "known"),
    [
        (1, {"keyferry.dev/renew": "done", "example.org/other": "x"}, True),
        (1, {"keyferry.dev/renew": "new"}, False),
        (1, None, False),
        (2, {"keyferry.dev/renew": "done"}, False),
    ],
)
def test_our_own_status_hides_no_change_that_came_just_before_it(
    generation: int,
    annotations: dict[str, str] | None,
    known: bool,  # noqa: FBT001
) -> None:
    catalog = Catalog(identities={NIGHTLY: declared()})
    catalog.see_status(NIGHTLY, body("5", revision=1), listed=False)
    metadata = {"uid": "u", "generation": generation, "resourceVersion": "9", "annotations": annotations}
    catalog.wrote_status(NIGHTLY, {"revision": 2}, metadata)
    assert catalog.status_of(NIGHTLY) == {"revision": 2}
    assert catalog.knows_identity(NIGHTLY, "9", listed=False) is known
    assert catalog.knows_identity(NIGHTLY, "5", listed=False)


def declared() -> IdentityResource:
    spec = {"providerRef": {"name": "issuer"}, "grant": {"type": "ClientCredentials"}}
    annotations = {"keyferry.dev/renew": "done"}
    metadata = {"name": "nightly", "namespace": "team", "uid": "u", "generation": 1, "annotations": annotations}
    resource = {"apiVersion": API_VERSION, "kind": IDENTITY_KIND, "metadata": metadata, "spec": spec}
    return load_object(resource).identities[0]


def test_a_list_is_believed_also_where_it_says_less_than_was_known() -> None:
    catalog = Catalog()
    catalog.put(seen("token", NIGHTLY))
    place = ObjectKey("team", "token")
    assert not catalog.knows_secret(place, "u1", "9", deleted=False, listed=True)
    assert catalog.knows_secret(place, "u1", "10", deleted=False, listed=True)
    catalog.see_status(NIGHTLY, body("8", revision=2), listed=False)
    catalog.see_status(NIGHTLY, body("7", revision=1), listed=True)
    assert catalog.status_of(NIGHTLY) == {"revision": 1}
    assert catalog.knows_identity(NIGHTLY, "7", listed=True)


def test_versions_are_compared_as_integers_where_they_are() -> None:
    assert is_known("9", "10", listed=False)
    assert not is_known("10", "9", listed=False)
    assert is_known("x", "x", listed=False)
    assert not is_known("w", "x", listed=False)
