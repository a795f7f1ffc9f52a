"""What a Secret can hold, and for whom: formats, short tokens, Service Binding."""

from __future__ import annotations

import base64
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant

if TYPE_CHECKING:
    from pathlib import Path

    from tests.operator.live.conftest import Field

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "s3cret of the bot"


def _bot(field: Field, lifetime: float = 3600.0) -> None:
    field.issuer.clients.add(
        Client("bot", secrets=(SECRET,), methods=(AuthMethod.BASIC,), grants=tuple(Grant), scopes=("read",))
    )
    field.issuer.service.settings.access_lifetime = lifetime
    field.apply(field.provider(), field.secret("bot", secret=SECRET))


def _holds(field: Field, name: str, kind: str = "Ready") -> bool:
    return bool(field.condition(name, kind).get("status") == "True")


def _tiled(field: Field) -> dict[str, Any]:
    provider = field.provider("tiled")
    provider["spec"] = {"type": "Tiled", "tiled": {"url": "https://tiled.example.org/api/v1"}}
    return provider


def _labarchives(field: Field) -> dict[str, Any]:
    provider = field.provider("labarchives")
    source = {"secretKeyRef": {"name": "bot", "key": "secret"}}
    provider["spec"] = {
        "type": "LabArchives",
        "labarchives": {
            "url": "https://api.labarchives.example.org",
            "accessKeyIdFrom": source,
            "accessPasswordFrom": source,
        },
    }
    return provider


async def test_formats_that_a_secret_cannot_hold_are_refused_with_advice(field: Field) -> None:
    source = {"secretKeyRef": {"name": "bot", "key": "secret"}}
    password = {"type": "Password", "password": {"usernameFrom": source, "passwordFrom": source}}
    field.apply(
        _tiled(field),
        _labarchives(field),
        field.identity("cache", providerRef={"name": "tiled"}, grant=password, target={"files": [{"format": "Tiled"}]}),
        field.identity(
            "notebook",
            providerRef={"name": "labarchives"},
            grant={"type": "LabArchivesLogin"},
            target={"files": [{"format": "LabArchives"}]},
        ),
    )
    async with field.operator():
        for name in ("cache", "notebook"):
            await field.until(partial(_holds, field, name, "Stalled"))
            ready = field.condition(name)
            assert (ready["status"], ready["reason"]) == ("False", "FormatNeedsSidecar")
            assert "use the sidecar with target.type: None" in ready["message"]
            assert field.target(name) is None
        assert "or set apiKey" in field.condition("cache")["message"]


async def test_tokens_that_live_too_short_for_the_kubelet_are_published_and_told_of(field: Field) -> None:
    _bot(field, lifetime=120.0)
    field.apply(field.identity("brief"), field.identity("touched", target={"touchPods": True}))
    async with field.operator():
        await field.until(lambda: field.condition("brief").get("reason") == "LifetimeTooShort")
        ready = field.condition("brief")
        assert ready["status"] == "True"
        assert field.condition("brief", "Stalled")["status"] == "False"
        assert "deliver through a sidecar" in ready["message"]
        assert field.target("brief") is not None
        await field.until(lambda: "LifetimeTooShort" in _event_reasons(field, "brief"))
        await field.until(lambda: field.condition("touched").get("status") == "True")
        assert field.condition("touched")["reason"] == "Issued"


def _event_reasons(field: Field, name: str) -> set[str]:
    events = field.cluster.api.items("events.k8s.io/v1", "Event", field.namespace)
    return {event["reason"] for event in events if event["regarding"]["name"] == name}


def _projected(field: Field, name: str, root: Path) -> Path | None:
    """Mount what an identity's status binds, as a controller of Service Binding does: each entry is a file."""
    binding = field.status(name).get("binding")
    if binding is None:
        return None
    secret = field.target(binding["name"])
    assert secret is not None
    place = root / name
    place.mkdir()
    for key, value in secret["data"].items():
        (place / key).write_bytes(base64.b64decode(value))
    return place


async def test_a_binding_projects_as_the_specification_says(field: Field, tmp_path: Path) -> None:
    _bot(field)
    own = [{"format": "Token", "name": "token"}, {"format": "Template", "name": "type", "template": "my-kind"}]
    field.apply(
        field.identity("plain", target={"secretName": "elsewhere"}),
        field.identity("own", target={"files": own}),
        field.identity("hidden", target={"type": "None"}),
        field.identity("taken"),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "taken"}, "stringData": {"mine": "precious"}},
    )
    async with field.operator():
        for name in ("plain", "own", "hidden"):
            await field.until(partial(_holds, field, name))
        await field.until(lambda: field.condition("taken").get("reason") == "SecretNotOwned")
    assert field.status("plain")["binding"] == {"name": "elsewhere"}
    bound = _projected(field, "plain", tmp_path)
    assert bound is not None
    assert {path.name for path in bound.iterdir()} == {"token", "token.json", "type", "provider"}
    # "A directory MUST contain a file named type"; entries are named by [-._a-zA-Z0-9]+.
    assert ((bound / "type").read_text(), (bound / "provider").read_text()) == ("oauth2-token", "keyferry")
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", path.name) for path in bound.iterdir())
    assert (bound / "token").read_text() in [issued.value for issued in field.issuer.issued]
    chosen = _projected(field, "own", tmp_path)
    assert chosen is not None
    assert (chosen / "type").read_text() == "my-kind"
    assert _projected(field, "hidden", tmp_path) is None
    assert _projected(field, "taken", tmp_path) is None
