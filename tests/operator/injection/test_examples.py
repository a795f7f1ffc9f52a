"""The pods in the pages on Tiled, AI-on-Demand and LabArchives: valid, injected, and just what the examples hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from keyferry.spec.check import check_pair
from keyferry.spec.resources import IdentityResource, load_documents
from tests.operator.injection.samples import SETTINGS, injected, mounts, variables

REPOSITORY = Path(__file__).parents[3]
EXPECTED = {
    "tiled": {"TILED_CACHE_DIR"},
    "aiod": {"HOME"},
    "labarchives": {"API_URL", "ACCESS_KEYID", "ACCESS_PWD", "AUTH_EMAIL", "AUTH_KEY"},
}


def example(system: str) -> Path:
    return REPOSITORY / "examples" / "kubernetes" / f"{system}.yaml"


def jobs(system: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(example(system).read_text()) if each["kind"] == "Job"]


def identity(system: str) -> IdentityResource:
    """Return the one identity of an example, without its jobs."""
    documents = [each for each in yaml.safe_load_all(example(system).read_text()) if each["kind"] != "Job"]
    loaded = load_documents(yaml.safe_dump_all(documents).encode(), example(system).name)
    assert [str(problem) for problem in loaded.problems] == []
    (one,) = loaded.identities
    return one


@pytest.mark.parametrize("system", EXPECTED)
def test_the_pod_gets_what_its_client_looks_for(system: str) -> None:
    one = identity(system)
    pod = jobs(system)[-1]["spec"]["template"]
    assert one.spec.consumers[0].service_account_name == pod["spec"]["serviceAccountName"]
    body = injected(pod, SETTINGS, **{one.key.name: one.spec})
    (container,) = pod["spec"]["containers"]
    assert variables(body, container["name"]).keys() >= EXPECTED[system]
    assert "/var/run/keyferry" in mounts(body, container["name"])


@pytest.mark.parametrize("system", EXPECTED)
def test_the_identity_fits_the_provider_of_its_page(system: str) -> None:
    texts = [path.read_bytes() for path in (REPOSITORY / "examples" / system).glob("*.yaml")]
    providers = [found for text in texts for found in load_documents(text, "example.yaml").providers]
    (provider,) = providers
    assert identity(system).spec.provider_ref.name == provider.key.name
    assert check_pair(identity(system).spec, provider.spec) == []


@pytest.mark.parametrize("system", EXPECTED)
def test_the_page_shows_the_example(system: str) -> None:
    page = (REPOSITORY / "docs" / f"{system}.md").read_text()
    for document in example(system).read_text().split("---\n"):
        lines = [line for line in document.splitlines() if not line.startswith("#")]
        assert "\n".join(lines) in page
