"""A person logs in for an identity of the cluster: the first time, ahead of time, and as the wrong one."""

from __future__ import annotations

import asyncio
import io
import sys
from typing import TYPE_CHECKING

import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.demo.device_codes import Decision
from keyferry.demo.state import User
from tests.operator.kubectl.conftest import identity, outside
from tests.support.labarchives import LabArchives

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry.demo.device_codes import DeviceCode
    from keyferry_operator.client import Object
    from tests.operator.kubectl.conftest import Ran
    from tests.operator.live.conftest import Field
    from tests.support.cluster import Cluster

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "s3cret of the bot"


def world(field: Field) -> None:
    """Have a client that may use device codes, two people, and a long-lived session."""
    service = field.issuer.service
    clients = Client("bot", secrets=(SECRET,), methods=(AuthMethod.BASIC,), grants=tuple(Grant), scopes=("openid",))
    field.issuer.clients.add(clients)
    service.settings.access_lifetime = 3600.0
    service.device_codes.interval = 1.0
    for name in ("ada", "eve"):
        service.add_user(User(name, "pa55word", f"{name}@example.org"))
    expected = {"email": "ada@example.org"}
    field.apply(
        field.provider(),
        field.secret("bot", secret=SECRET),
        field.identity("person", grant={"type": "DeviceCode"}, scopes=["openid"], expectedSubject=expected),
    )


def codes(field: Field) -> list[DeviceCode]:
    return field.issuer.service.device_codes.all


def shown() -> str:
    """Return what a command that still runs has put on stderr, which pytest captures."""
    sys.stderr.flush()
    captured = sys.stderr.buffer
    assert isinstance(captured, io.BytesIO)
    return captured.getvalue().decode()


async def test_a_person_logs_in_also_while_the_session_is_good(
    field: Field, kubectl_keyferry: Callable[..., Ran]
) -> None:
    world(field)
    where = ("-n", field.namespace, "--operator-namespace", field.home)

    async def log_in(who: str) -> Ran:
        """Run the command, and approve what it shows as ``who``."""
        before = len(codes(field)) if field.condition("person").get("status") == "True" else 0
        running = asyncio.create_task(outside(kubectl_keyferry, "login", "person", *where))
        await field.until(lambda: len(codes(field)) > before or running.done())
        code = codes(field)[-1]
        await field.until(lambda: code.user_code in shown())
        field.issuer.service.device_codes.decide(code.user_code, Decision.APPROVED, who)
        ran = await running
        assert code.user_code in ran.err
        return ran

    async with field.operator():
        await field.until(lambda: bool(codes(field)))
        ran = await log_in("ada")
        assert ran.code == 0, ran.err
        assert f"{field.namespace}/person: approved, revision 1" in ran.out
        status = field.status("person")
        assert status["authorizedAs"] == {"subject": "ada", "email": "ada@example.org"}
        assert "approval" not in status

        ran = await log_in("eve")
        assert ran.code == 3
        assert "the session before it goes on" in ran.err
        assert "approved by eve@example.org" in ran.err
        status = field.status("person")
        assert status["revision"] == 1
        assert status["authorizedAs"]["subject"] == "ada"
        assert status["approval"]["message"].startswith(f"ServiceIdentity {field.namespace}/person was approved by eve")
        told = await outside(kubectl_keyferry, "status", "person", *where)
        assert "Approved:    by ada@example.org (subject ada)" in told.out
        assert "the last question came to nothing" in told.out
        handled = status["lastHandledLogin"]
        assert handled

    async with field.operator():
        await field.until(lambda: field.condition("person").get("status") == "True")
        assert len(codes(field)) == 2, "what was asked for is asked for once, also after a restart"
        ran = await log_in("ada")
        assert ran.code == 0, ran.err
        status = field.status("person")
        assert status["revision"] == 2
        assert status["lastHandledLogin"] != handled
        assert "approval" not in status


async def test_without_a_page_a_login_at_labarchives_says_where_the_code_goes(
    field: Field, kubectl_keyferry: Callable[..., Ran]
) -> None:
    """Grants that a Secret's one-hour code begins have people log in, too."""
    where = ("-n", field.namespace, "--operator-namespace", field.home)
    with LabArchives() as server:
        host, email = server.url.removeprefix("http://"), "ada@example.org"
        lab = {
            "url": server.url,
            "accessKeyIdFrom": _from("organization", "id"),
            "accessPasswordFrom": _from("organization", "password"),
        }
        grant = {"emailFrom": _from("code", "email"), "codeFrom": _from("code", "code")}
        field.apply(
            field.secret("organization", host, id=server.access_key_id, password=server.access_password),
            field.secret("code", host, email=email, code=server.code_for(email)),
            field.provider("lab") | {"spec": {"type": "LabArchives", "labarchives": lab}},
            field.identity(
                "notebook",
                providerRef={"name": "lab"},
                grant={"type": "LabArchivesCode", "labArchivesCode": grant},
                target={"type": "None", "files": [{"format": "LabArchives"}]},
            ),
        )
        async with field.operator():
            await field.until(lambda: field.condition("notebook").get("status") == "True")
            ran = await outside(kubectl_keyferry, "login", "notebook", *where)
            assert ran.code == 3, ran.err
            assert "the session before it goes on" in ran.err
            assert f"Secret {field.namespace}/code, key code" in ran.err
        assert len(server.redemptions) == 1


def _from(name: str, key: str) -> Object:
    return {"secretKeyRef": {"name": name, "key": key}}


def test_what_asks_nobody_needs_no_login(cluster: Cluster, people: str, kubectl_keyferry: Callable[..., Ran]) -> None:
    held = identity("held", people, grant={"type": "DeviceCode"}, suspend=True)
    cluster.api.apply(identity("nightly", people))
    cluster.api.apply(held)
    ran = kubectl_keyferry("login", "nightly", "-n", people)
    assert ran.code == 2
    assert "needs no login" in ran.err
    ran = kubectl_keyferry("login", "held", "-n", people)
    assert ran.code == 1
    assert "is suspended (spec.suspend)" in ran.err
