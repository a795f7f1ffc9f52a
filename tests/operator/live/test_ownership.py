"""Which Secrets are ours: planted, copied and forged ones are neither believed nor touched."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.operator.live.test_credentials import SECRET, add_bot, by_refresh_token

if TYPE_CHECKING:
    from tests.operator.live.conftest import Field

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

MANAGED = {"keyferry.dev/managed": "true", "app.kubernetes.io/managed-by": "keyferry"}
RECORD = "keyferry.dev/record"


def planted(name: str, **metadata: Any) -> dict[str, Any]:
    labelled = {"name": name, "labels": MANAGED, **metadata}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": labelled, "stringData": {"token": "planted"}}


def copied(field: Field, source: str, name: str, namespace: str = "") -> dict[str, Any]:
    """Return a copy of a published Secret, with its signed record, under another name."""
    found = field.target(source)
    assert found is not None
    kept = {key: found["metadata"][key] for key in ("labels", "annotations")}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace or field.namespace, **kept},
        "data": found["data"],
    }


async def test_somebody_elses_secret_is_left_alone_whatever_it_says(field: Field) -> None:
    add_bot(field.issuer)
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.identity("nightly"))
    # An owner that is there, else the cluster's own controllers collect what it owns.
    owner = field.cluster.api.create(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": field.namespace}}
    )
    uid = owner["metadata"]["uid"]
    stranger = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": uid, "controller": True}
    async with field.operator():
        await field.until_ready("nightly")
        precious = copied(field, "nightly", "copy")
        field.cluster.api.create(precious)
        field.apply(
            planted("labelled"),
            planted("owned", ownerReferences=[stranger]),
            {**planted("plain"), "metadata": {"name": "plain"}},
        )
        before = {}
        for name in ("copy", "labelled", "owned", "plain"):
            found = field.target(name)
            assert found is not None
            before[name] = found["metadata"]["resourceVersion"]
            field.apply(field.identity(name))
        for name, version in before.items():
            message = await field.until_refused(name, "SecretNotOwned")
            assert "Delete or rename it" in message
            found = field.target(name)
            assert found is not None
            assert found["metadata"]["resourceVersion"] == version
        # Out of the way, it is out of mind as well.
        for name in before:
            found = field.target(name)
            assert found is not None
            field.cluster.api.delete(found)
            identity = field.identity(name)
            identity["metadata"]["annotations"] = {"keyferry.dev/renew": "now"}
            field.apply(identity)
            await field.until(lambda: field.condition(name).get("status") == "True")  # noqa: B023 - awaited here


async def test_a_copy_of_a_published_secret_outlives_the_identity(field: Field) -> None:
    add_bot(field.issuer)
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.identity("nightly"))
    async with field.operator():
        await field.until_ready("nightly")
        field.cluster.api.create(copied(field, "nightly", "backup"))
        identity = field.cluster.api.get("keyferry.dev/v1alpha1", "ServiceIdentity", "nightly", field.namespace)
        field.cluster.api.delete(identity)
        await field.until(lambda: field.target("nightly") is None)
        assert field.target("backup") is not None


async def test_a_forged_record_is_not_believed(field: Field) -> None:
    add_bot(field.issuer)
    field.issuer.service.settings.access_lifetime = 3600.0
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.identity("nightly"))
    async with field.operator():
        await field.until_ready("nightly")
        good = field.token("nightly")
        found = field.target("nightly")
        assert found is not None
        signed = found["metadata"]["annotations"][RECORD]
        mac, _, text = signed.partition(".")
        edited = json.dumps(json.loads(text) | {"expires": 9e9, "renewal": 9e9})
        forged = base64.b64encode(b"forged").decode()
        for annotation in (f"{mac}.{edited}", f"{'0' * 64}.{text}", "nonsense", "ümlaut.{}", "", None):
            change = {"metadata": {"annotations": {RECORD: annotation}}, "data": {"token": forged}}
            field.cluster.api.patch(found, change)
            await field.until(lambda: field.token("nightly") == good)
            now = field.target("nightly")
            assert now is not None
            assert now["metadata"]["annotations"][RECORD].partition(".")[2] != edited
        assert len(field.issuer.issued) == 1  # nothing of that needed another token


async def test_a_record_that_was_forged_while_nobody_looked_is_not_believed(field: Field) -> None:
    add_bot(field.issuer)
    field.issuer.service.settings.access_lifetime = 3600.0
    field.apply(field.provider(), field.secret("bot", secret=SECRET), field.identity("nightly"))
    async with field.operator():
        await field.until_ready("nightly")
    found = field.target("nightly")
    assert found is not None
    mac, _, text = found["metadata"]["annotations"][RECORD].partition(".")
    edited = json.dumps(json.loads(text) | {"revision": 77, "expires": 9e9, "renewal": 9e9})
    forged = base64.b64encode(b"forged").decode()
    change = {"metadata": {"annotations": {RECORD: f"{mac}.{edited}"}}, "data": {"token": forged}}
    field.cluster.api.patch(found, change)
    async with field.operator():
        await field.until(lambda: field.token("nightly") in [token.value for token in field.issuer.issued])
        await field.until(lambda: field.status("nightly").get("revision", 0) < 77)


async def test_files_of_another_form_found_at_the_start_are_written_anew(field: Field) -> None:
    """What stands there was made as an earlier spec said: it must be neither read as this one says, nor end us."""
    add_bot(field.issuer)
    field.issuer.service.settings.access_lifetime = 3600.0
    template = {"format": "Template", "name": "token.json", "template": "no JSON: ${access_token}"}
    text = {"format": "Template", "name": "token", "template": "token = ${access_token}"}
    field.apply(field.provider(), field.secret("bot", secret=SECRET))
    field.apply(field.identity("nightly", target={"files": [template, text]}))
    async with field.operator():
        await field.until_ready("nightly")
    files = [{"format": "Json", "name": "token.json"}, {"format": "Token", "name": "token"}]
    field.apply(field.identity("nightly", target={"files": files}))
    async with field.operator():
        await field.until(lambda: field.token("nightly") in [token.value for token in field.issuer.issued])
        found = field.target("nightly")
        assert found is not None
        assert json.loads(base64.b64decode(found["data"]["token.json"]))["access_token"] == field.token("nightly")


async def test_planted_private_state_is_not_taken_up(field: Field) -> None:
    add_bot(field.issuer)
    seed = field.issuer.seed_refresh_token("bot", "ada")
    field.apply(
        field.provider(),
        field.secret("bot", secret=SECRET),
        field.secret("seed", token=seed),
        field.identity("person", grant=by_refresh_token("seed")),
    )
    async with field.operator():
        await field.until_ready("person")
    (state,) = field.cluster.api.items("v1", "Secret", field.home, labelSelector="keyferry.dev/state=private")
    name = state["metadata"]["name"]
    # In a namespace where a person may write Secrets, the operator looks for no private state.
    field.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": {"keyferry.dev/state": "private"}},
            "data": {"record": base64.b64encode(b"{}").decode()},
        }
    )
    # In its own, a record is of the identity that its name says, and of this cluster, or it is nobody's.
    stray = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "kf-stray", "namespace": field.home, "labels": {"keyferry.dev/state": "private"}},
        "data": state["data"],
    }
    field.cluster.api.create(stray)
    async with field.operator() as operator:
        await field.until_ready("person")
        await field.until(lambda: bool(operator.engine.statuses()))
        operator.engine.renew(next(iter(operator.engine.roster.entries)))
        await field.until_ready("person", revision=2)
    assert max(field.issuer.sent_refresh_tokens().values()) == 1
    found = field.cluster.api.get("v1", "Secret", "kf-stray", field.home)
    assert found["data"] == state["data"]


async def test_a_token_that_no_file_shows_plainly_is_there_when_another_identity_presents_it(field: Field) -> None:
    add_bot(field.issuer)
    field.issuer.service.settings.access_lifetime = 3600.0
    env = {"format": "Env", "name": "token.env", "variables": {"BEARER_TOKEN": "${access_token}"}}
    chain = {"type": "TokenExchange", "tokenExchange": {"subject": {"identityRef": {"name": "source"}}}}
    field.apply(
        field.provider(),
        field.secret("bot", secret=SECRET),
        field.identity("source", target={"files": [env]}, consumers=[{"identityName": "link"}]),
        field.identity("link", grant=chain),
    )
    async with field.operator():
        await field.until_ready("source", "link")
    async with field.operator() as operator:
        await field.until(lambda: len(operator.engine.statuses()) == 2)
        field.apply(field.identity("link", grant=chain, scopes=["read"]))  # which takes another token
        await field.until_ready("link", revision=2)
    shown = [request.parameters for request in field.issuer.requests if "subject_token_type" in request.parameters]
    assert len(shown) == 2
    assert all(parameters.get("subject_token") for parameters in shown)
