from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Inside
    from tests.cli.workshop import Workshop

IDENTITY = """\
---
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata: {{name: {name}}}
spec:
  providerRef: {{name: {provider}}}
  grant:
    type: {grant}
{more}"""
CHAIN = "    jwtBearer: {{assertion: {{identityRef: {{name: {name}}}}}}}\n"


def chained(name: str, other: str) -> str:
    return IDENTITY.format(name=name, provider="issuer", grant="JwtBearer", more=CHAIN.format(name=other))


def test_good_resources_need_one_line(workshop: Workshop, inside: Inside) -> None:
    workshop.identities("one", "two")
    workshop.write("secret.yaml", "{apiVersion: v1, kind: Secret, metadata: {name: bot}, stringData: {secret: x}}")
    assert inside("lint", "resources") == (0, "2 identities, 1 provider: no mistakes\n", "")
    assert json.loads(inside("lint", "resources", "-o", "json")[1]) == {"valid": True, "problems": []}


def test_a_secret_that_is_not_there_is_a_hint(workshop: Workshop, inside: Inside) -> None:
    workshop.identities("one")
    code, out, _ = inside("lint", "resources")
    assert code == 0
    hint = r"resources\.yaml:\d+: TokenProvider default/issuer: .*'secret' of Secret default/bot.*\(hint\)"
    assert re.search(hint, out)
    for options in (["--secrets", "secrets"], ["--secret-env", "bot/secret=VAR"]):
        assert "hint" not in inside("lint", "resources", *options)[1]


def test_all_mistakes_are_told_at_once_and_where(workshop: Workshop, inside: Inside) -> None:
    workshop.identities("one")
    text = IDENTITY.format(name="two", provider="no", grant="ClientCredentials", more="  colour: red\n")
    text += IDENTITY.format(name="three", provider="no", grant="ClientCredentials", more="")
    text += chained("five", "six") + chained("six", "five") + chained("seven", "nobody") + chained("eight", "one")
    lines = workshop.write("more.yaml", text).read_text().splitlines()
    code, out, _ = inside("lint", "resources", "-o", "json")
    assert code == 2
    problems = [problem for problem in json.loads(out)["problems"] if problem["severity"] == "error"]
    found = {(problem["resource"].rpartition("/")[2], problem["reason"]) for problem in problems}
    assert found == {
        ("two", "InvalidSpec"),
        ("three", "ProviderNotFound"),
        ("five", "IdentityCycle"),
        ("five", "SecretNotLabelled"),
        ("six", "IdentityCycle"),
        ("six", "SecretNotLabelled"),
        ("seven", "SecretNotFound"),
        ("one", "SecretNotLabelled"),
    }
    two = next(problem for problem in problems if problem["reason"] == "InvalidSpec")
    assert "colour" in lines[two["line"] - 1]
    code, out, _ = inside("lint", "resources")
    assert code == 2
    assert re.search(r"more\.yaml:\d+: ServiceIdentity default/two: spec\.colour", out)
    assert out.splitlines()[-1].startswith("6 identities, 1 provider: 8 mistakes")


@pytest.mark.parametrize(("arguments", "word"), [(["lint", "nowhere"], "nowhere"), (["lint"], "PATH")])
def test_a_path_must_be_there_and_be_named(inside: Inside, arguments: list[str], word: str) -> None:
    code, out, err = inside(*arguments)
    assert code == 2
    assert word in out + err
