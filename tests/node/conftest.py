from __future__ import annotations

# pytest finds fixtures by their names in a conftest.
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.node.person import HOME, TEAM, Person, commands
from tests.support.keycloak_realm import RealmOptions
from tests.support.kube_fixtures import keyferry_image, node
from tests.support.servers import exclusive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.keycloak import Keycloak
    from tests.support.kube_node import Node
    from tests.support.servers import SharedRun

__all__ = ["keyferry_image", "node"]

# However slow the machine, no token is renewed but where the test wants it.
UNHURRIED = RealmOptions(access_token_lifespan=7200, session_idle=21_600)


@pytest.fixture
def person(
    node: Node, keycloak: Keycloak, keyferry_image: str, shared_run: SharedRun, tmp_path: Path
) -> Iterator[Person]:
    """Return somebody who is about to install the chart; one at a time, for it is in the whole cluster."""
    assert keyferry_image
    with exclusive(shared_run.directory / "installation.lock"):
        realm = keycloak.provision_realm(f"node-{secrets.token_hex(4)}", UNHURRIED)
        yield Person.sit_down(node, keycloak, realm, tmp_path)


@pytest.fixture
def installed(person: Person) -> Iterator[Person]:
    """Return somebody who has installed it; nothing of it is left in the end."""
    (install,) = commands("The chart")
    person.types(*install)
    yield person
    *_, remove = commands("Upgrading and uninstalling")
    person.types(*(command for command in remove if "keyferry.dev/state=gone" not in command))
    person.types(f"kubectl delete namespace {TEAM} --ignore-not-found --timeout=3m")
    assert not person.left_behind()
    assert not person.node.cluster.api.find("v1", "Namespace", HOME)
