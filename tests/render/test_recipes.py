from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keyferry.render import render
from keyferry.spec.resources import load_documents
from tests.render.sample import TOKEN, given

if TYPE_CHECKING:
    from keyferry.spec.resources import IdentityResource

RECIPES = Path(__file__).parents[2] / "docs" / "recipes.md"
TITLES = {
    "curl",
    "git",
    "Python requests",
    "WLCG bearer token discovery",
    "Zalando platform IAM",
    "HTCondor",
    "Google Cloud: external account (workload identity federation)",
}


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def sections() -> dict[str, str]:
    _, *parts = re.split(r"^## ", RECIPES.read_text(), flags=re.MULTILINE)
    return {part.partition("\n")[0]: part for part in parts}


def identity(title: str) -> IdentityResource:
    (block,) = blocks("yaml", sections()[title])
    (resource,) = load_documents(block.encode(), f"{title}.yaml").identities
    return resource


def files(title: str) -> dict[str, str]:
    return {name: content.decode() for name, content in render(identity(title).spec.target.files, given()).items()}


def test_every_recipe_is_here() -> None:
    assert set(sections()) == TITLES


@pytest.mark.parametrize("block", blocks("yaml", RECIPES.read_text()), ids=range(len(TITLES) + 1))
def test_every_resource_is_valid_by_itself(block: str) -> None:
    loaded = load_documents(block.encode(), "recipes.md")
    assert [str(problem) for problem in loaded.problems] == []
    assert len(loaded.identities) + len(loaded.providers) == 1


@pytest.mark.parametrize("title", sorted(TITLES))
def test_every_recipe_renders_the_token(title: str) -> None:
    assert any(TOKEN in content for content in files(title).values())


def test_all_recipes_use_the_one_provider() -> None:
    loaded = load_documents(blocks("yaml", RECIPES.read_text())[0].encode(), "recipes.md")
    (provider,) = loaded.providers
    assert {identity(title).spec.provider_ref.name for title in TITLES} == {provider.key.name}


def test_curl_takes_the_token_from_a_configuration_line() -> None:
    assert files("curl") == {"token": TOKEN, "curlrc": f'oauth2-bearer = "{TOKEN}"\n'}


def test_git_reads_the_answer_of_a_credential_helper() -> None:
    assert files("git")["git-credential"].splitlines() == [
        "username=oauth2",
        f"password={TOKEN}",
        "password_expiry_utc=1790003600",
    ]


def test_wlcg_tools_find_the_bare_token() -> None:
    assert files("WLCG bearer token discovery") == {"token": TOKEN, "bearer.env": f"BEARER_TOKEN='{TOKEN}'\n"}


def test_zalando_files_come_in_pairs() -> None:
    assert files("Zalando platform IAM") == {"full-access-token-type": "Bearer", "full-access-token-secret": TOKEN}


def test_condor_use_files_are_json_or_bare() -> None:
    rendered = files("HTCondor")
    assert json.loads(rendered["grid.use"]) == {
        "access_token": TOKEN,
        "token_type": "Bearer",
        "expires_at": 1790003600,
        "scope": "openid read",
    }
    assert rendered["grid-bare.use"] == TOKEN


def test_the_google_configuration_points_at_the_field_that_holds_the_token() -> None:
    rendered = files("Google Cloud: external account (workload identity federation)")
    source = json.loads(rendered["google-credentials.json"])["credential_source"]
    assert Path(source["file"]).name in rendered
    assert source["format"]["type"] == "json"
    token = json.loads(rendered[Path(source["file"]).name])
    assert token[source["format"]["subject_token_field_name"]] == TOKEN


def test_the_python_example_compiles() -> None:
    (example,) = blocks("python", RECIPES.read_text())
    subprocess.run([sys.executable, "-c", "import ast, sys; ast.parse(sys.argv[1])", example], check=True)


@pytest.mark.parametrize("block", blocks("sh", RECIPES.read_text()), ids=str.splitlines)
def test_the_shell_examples_parse(block: str) -> None:
    subprocess.run(["sh", "-n", "-c", block], check=True)
