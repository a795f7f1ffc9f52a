"""What pods tell, what a replica that looks after nothing does for them, and what the approval page may ask."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.secret import SecretValue
from keyferry.wire import HeldReport, TokenAnswer, decode_call, decode_user
from keyferry_operator.kubectl.details import _pods
from tests.operator.live.pods import LOOPBACK, Pod, prepare, serving
from tests.support.labarchives import LabArchives

if TYPE_CHECKING:
    from tests.operator.live.conftest import Field

pytestmark = pytest.mark.cluster

CONSUMERS = [{"serviceAccountName": "ingest"}]


async def test_pods_tell_what_they_hold_and_people_read_it_in_the_status(field: Field) -> None:
    prepare(field, field.identity("nightly", consumers=CONSUMERS))
    async with serving(field) as site:
        await field.until_ready("nightly")
        pods = [Pod.create(field, f"ingest-{number}") for number in range(2)]
        tokens = [pod.token() for pod in pods]
        for token, delay in zip(tokens, (0.02, None), strict=True):
            told = await site.post(token, "held", HeldReport(1, 1.0, delay).to_json())
            assert told.status_code == 204
        bodies: tuple[Any, ...] = ({}, {"revision": "1", "written_at": 1}, [], {"revision": -1, "written_at": 1})
        for body in bodies:
            assert (await site.post(tokens[0], "held", body)).status_code == 400
        await field.until(lambda: set(field.status("nightly").get("consumers", ())) == {"ingest-0", "ingest-1"})
        consumers = field.status("nightly")["consumers"]
        assert {held["revision"] for held in consumers.values()} == {1}
        now = 4e9
        assert [line.split(", written")[0] for line in _pods(field.status("nightly"), now)] == [
            "pod ingest-0: revision 1, the current one",
            "pod ingest-1: revision 1, the current one",
        ]
        broker = site.operator.broker
        assert broker is not None
        lines = list(broker.series())
        assert "keyferry_delivery_seconds_count 1.0" in lines
        assert f'keyferry_holding_pods{{identity="nightly",namespace="{field.namespace}"}} 2' in lines
        assert "keyferry_held_requests 0" in lines
        # The status of the engine goes on beside it, and a pod that is gone is taken away by and by.
        field.renew("nightly", "1")
        await field.until_ready("nightly", revision=2)
        assert set(field.status("nightly")["consumers"]) == {"ingest-0", "ingest-1"}
        assert "1 behind" in next(_pods(field.status("nightly"), now))
        pods[0].delete()
        await field.until(lambda: set(field.status("nightly").get("consumers", ())) == {"ingest-1"})


async def test_a_standby_answers_and_has_the_other_one_renew(field: Field) -> None:
    prepare(
        field,
        field.identity("nightly", consumers=CONSUMERS),
        field.identity("private", consumers=CONSUMERS, target={"type": "None"}),
        field.identity("longer", consumers=CONSUMERS),
    )
    pod = Pod.create(field, "ingest-1", inject="nightly,private,longer")
    names = ("nightly", "private")
    async with field.operator(leader_election=True, instance="leader", broker=LOOPBACK):
        await field.until_ready(*names, "longer")
        async with serving(field, leader_election=True, instance="standby") as site:
            assert not site.operator.engine.held_shards
            bearer = pod.token()
            first = {name: await site.get(bearer, name) for name in names}
            assert [answered.status_code for answered in first.values()] == [200, 200]
            held = {
                name: asyncio.create_task(site.get(bearer, name, etag=first[name].headers["ETag"], wait=55))
                for name in names
            }
            await site.until_held(2)
            for name in names:
                await asyncio.to_thread(field.renew, name, "now")
            for name in names:
                answered = await held[name]
                while answered.status_code == 304:  # the machine is slow
                    answered = await site.get(bearer, name, etag=first[name].headers["ETag"], wait=55)
                token = TokenAnswer.from_json(answered.json())
                assert token.revision == 2
                assert token.age is None or 0 <= token.age < 60
            # A token of an hour that has lost some seconds: another one is made for who needs them.
            while (left := (await site.get(bearer, "longer")).json()["expires_in"]) > 3590:  # noqa: ASYNC110
                await asyncio.sleep(1)
            answered = await site.get(bearer, "longer", minimum=str(left + 5), wait=55)
            if answered.status_code == 503:  # the machine is slow
                answered = await site.get(bearer, "longer", minimum=str(left + 5), wait=55)
            assert TokenAnswer.from_json(answered.json()).revision == 2
            assert field.status("longer")["asked"]["minimumRemaining"]


async def test_the_page_and_nobody_else_asks_for_people(field: Field) -> None:
    prepare(field, field.identity("nightly", consumers=CONSUMERS), field.identity("daily"))
    settings = replace(LOOPBACK, page_account="approvals")
    async with serving(field, settings) as site:
        await field.until_ready("nightly", "daily")
        page = Pod.create(field, "page", account="approvals", inject=None, namespace=field.home).token()

        async def ask(token: str, operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            headers = {"Authorization": f"Bearer {token}"}
            answered = await site.client.post(f"{site.url}/v1/page/{operation}", headers=headers, json=body)
            return answered.status_code, answered.json()

        for stranger in (
            Pod.create(field, "ingest-1").token(),
            Pod.create(field, "page", account="approvals").token(),
            Pod.create(field, "other", account="default", namespace=field.home).token(),
        ):
            # The page itself is told what is wrong with this.
            assert (await ask(stranger, "question", {}))[0] == 404
        status, body = await ask(page, "question", {"link": "made-up-link"})
        assert status == 404
        assert "made-up-link" not in str(body)
        assert (await ask(page, "question", {}))[0] == 400
        assert (await ask(page, "nonsense", {}))[0] == 404
        # A viewer sees what kubectl would list for them.
        api = field.cluster.api
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ada", "namespace": field.home}}
        api.create(account)
        viewer = api.service_account_token(field.home, "ada")
        assert (await ask(page, "overview", {"viewer": viewer}))[0] == 403
        assert (await ask(page, "overview", {"viewer": "no-token"}))[0] == 403
        kinds = {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "metadata": {"name": "ada", "namespace": field.namespace},
        }
        rules = [{"apiGroups": ["keyferry.dev"], "resources": ["serviceidentities"], "verbs": ["list"]}]
        api.create({**kinds, "kind": "Role", "rules": rules})
        subject = {"kind": "ServiceAccount", "name": "ada", "namespace": field.home}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "ada"}
        api.create({**kinds, "kind": "RoleBinding", "subjects": [subject], "roleRef": role})
        found: dict[str, Any] = {}
        async with asyncio.timeout(120):  # what was asked is believed for ten seconds
            while not found.get("identities"):
                _, found = await ask(page, "overview", {"viewer": viewer})
                await asyncio.sleep(1)
        assert {each["identity"]["name"] for each in found["identities"]} == {"nightly", "daily"}
        assert SecretValue(viewer).reveal() not in str(found)


async def test_calls_of_labarchives_are_signed_and_the_organizations_key_stays(field: Field) -> None:
    password = "organization-password-canary"
    with LabArchives(access_password=password) as server:
        host = server.url.removeprefix("http://")
        reference = {"secretKeyRef": {"name": "organization", "key": "id"}}
        labarchives = {
            "url": server.url,
            "accessKeyIdFrom": reference,
            "accessPasswordFrom": {"secretKeyRef": {"name": "organization", "key": "password"}},
            "methods": ["get_tree_level"],
        }
        code = {
            "emailFrom": {"secretKeyRef": {"name": "login", "key": "email"}},
            "codeFrom": {"secretKeyRef": {"name": "login", "key": "code"}},
        }
        provider = field.provider("lab") | {"spec": {"type": "LabArchives", "labarchives": labarchives}}
        identity = field.identity(
            "nightly",
            providerRef={"name": "lab"},
            grant={"type": "LabArchivesCode", "labArchivesCode": code},
            target={"type": "None", "files": [{"format": "LabArchives"}]},
            consumers=CONSUMERS,
        )
        prepare(
            field,
            field.secret("organization", host, id=server.access_key_id, password=password),
            field.secret("login", host, email="ada@example.org", code=server.code_for("ada@example.org")),
            provider,
            identity,
            field.identity("token", consumers=CONSUMERS),
        )
        async with serving(field) as site:
            bearer = Pod.create(field, "ingest-1", inject="nightly,token").token()
            answered = await site.get(bearer, wait=55)
            assert answered.status_code == 200, answered.text
            found = TokenAnswer.from_json(answered.json())
            assert found.access_token == SecretValue("")
            (file,) = found.files
            assert (file.path, file.local) == ("labarchives.env", True)
            signed = await site.post(bearer, "labarchives/signature", {"method": "get_tree_level"})
            call = decode_call(signed.json())
            assert call.region == server.url
            user = decode_user((await site.post(bearer, "labarchives/user")).json())
            assert user.email == "ada@example.org"
            for text in (answered.text, signed.text):
                assert password not in text
            assert call.uid.reveal() not in answered.text
            refused = [
                await site.post(bearer, "labarchives/signature", {"method": method})
                for method in ("add_entry", "user_access_info", "epoch_time", "Bad", "a1")
            ]
            assert [(each.status_code, each.json()["reason"]) for each in refused] == [
                (403, "NotSigned"),
                (403, "NotSigned"),
                (403, "NotSigned"),
                (400, "BadRequest"),
                (400, "BadRequest"),
            ]
            assert (await site.post(bearer, "labarchives/clock")).status_code == 204
            assert (await site.post(bearer, "labarchives/refused")).status_code == 204
            other = await site.post(bearer, "labarchives/signature", {"method": "get_tree_level"}, "token")
            assert (other.status_code, other.json()["reason"]) == (404, "NotOffered")
