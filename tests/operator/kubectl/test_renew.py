"""Renewals that people ask for, of an operator that works and of one that does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from tests.operator.kubectl.conftest import EDITOR, VIEWER, identity, outside

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.operator.kubectl.conftest import Ran
    from tests.operator.live.conftest import Field
    from tests.support.cluster import Cluster

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "s3cret of the bot"


def _bot(field: Field) -> None:
    clients = Client("bot", secrets=(SECRET,), methods=(AuthMethod.BASIC,), grants=tuple(Grant), scopes=("read",))
    field.issuer.clients.add(clients)
    field.issuer.service.settings.access_lifetime = 3600.0


async def test_the_outcome_of_a_renewal_is_told(field: Field, kubectl_keyferry: Callable[..., Ran]) -> None:
    _bot(field)
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.identity("nightly"))
    where = ("-n", field.namespace, "--operator-namespace", field.home)
    async with field.operator():
        await field.until(lambda: field.condition("nightly").get("status") == "True")
        ran = await outside(kubectl_keyferry, "renew", "nightly", *where)
        assert ran.code == 0, ran.err
        assert f"{field.namespace}/nightly: renewed, revision 2, good until " in ran.out
        too_soon = await outside(kubectl_keyferry, "renew", "nightly", "--timeout", "2s", *where)
        assert too_soon.code == 1
        assert "less than a minute before" in too_soon.err
        assert not any(issued.value in ran.out + too_soon.err for issued in field.issuer.issued)


async def test_a_refusal_is_told_with_what_helps(field: Field, kubectl_keyferry: Callable[..., Ran]) -> None:
    _bot(field)
    field.apply(field.provider(), field.secret("bot", label=False, secret=SECRET), field.identity("nightly"))
    async with field.operator():
        await field.until(lambda: field.condition("nightly", "Stalled").get("status") == "True")
        ran = await outside(kubectl_keyferry, "renew", "nightly", "-n", field.namespace)
        assert (ran.code, ran.out) == (1, "")
        assert "keyferry.dev/credential=true" in ran.err


def test_where_no_operator_works_it_says_so(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]
) -> None:
    cluster.api.apply(identity("nightly", people))
    where = ("-n", people, "--operator-namespace", people)
    ran = kubectl_keyferry("renew", "nightly", "--timeout", "1s", *where)
    assert ran.code == 1
    assert "no operator works" in ran.err
    ran = kubectl_keyferry("renew", "nightly", "--no-wait", *where)
    assert (ran.code, ran.out) == (0, f"{people}/nightly: asked\n")


def test_an_editor_may_and_a_viewer_may_not(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]
) -> None:
    cluster.api.apply(identity("nightly", people))
    options = ("nightly", "--no-wait", "-n", people)
    assert kubectl_keyferry("renew", *options, "--as", EDITOR).code == 0
    ran = kubectl_keyferry("renew", *options, "--as", VIEWER)
    assert (ran.code, ran.out) == (1, "")
    assert f"vera may not patch serviceidentities.keyferry.dev in namespace {people}; the role edit" in ran.err


def test_what_is_suspended_or_not_there_is_not_asked_for(
    cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]
) -> None:
    cluster.api.apply(identity("held", people, suspend=True))
    ran = kubectl_keyferry("renew", "held", "nobody", "-n", people)
    assert ran.code == 2
    assert "is suspended (spec.suspend)" in ran.err
    assert "there is no ServiceIdentity" in ran.err
    held = cluster.api.get("keyferry.dev/v1alpha1", "ServiceIdentity", "held", people)
    assert "keyferry.dev/renew" not in (held["metadata"].get("annotations") or {})
