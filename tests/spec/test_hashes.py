from __future__ import annotations

from typing import Any

import pytest

from keyferry.spec.hashes import files_hash, spec_hash, token_hash
from tests.spec.samples import CLIENT, ISSUER, cluster_provider, identity, load, oauth, provider


def digest(one: Any, other: Any) -> str:
    loaded = load(one, other)
    assert loaded.problems == ()
    return token_hash(loaded.identities[0].spec, loaded.providers[0].spec)


def files(target: Any) -> str:
    return files_hash(load(identity(target=target)).identities[0].spec.target)


BASE = digest(identity(), provider())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (identity(suspend=True), provider()),
        (identity(renewal={"before": "5m"}), provider()),
        (identity(consumers=[{"serviceAccountName": "a"}]), provider()),
        (identity(deletionPolicy="Retain"), provider()),
        (
            identity(target={"secretName": "a", "labels": {"a": "b"}, "files": [{"format": "Token", "name": "t"}]}),
            provider(),
        ),
        (identity(target={"type": "None"}), provider()),
        (identity(scopes=[], renewal={}), provider()),
        (identity(), provider(limits={"burst": 5}, tls={"caFrom": {"secretKeyRef": {"name": "a", "key": "b"}}})),
        (identity(), oauth(refreshTokens={"idle": "5m"}, lifetime={"assumed": "1m"})),
        (identity(), cluster_provider(allow={"scopes": ["a"]})),
    ],
)
def test_what_does_not_determine_the_token_does_not_count(one: Any, other: Any) -> None:
    assert digest(one, other) == BASE


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (identity(grant={"type": "DeviceCode"}), provider()),
        (identity(scopes=["a"]), provider()),
        (identity(parameters={"a": "b"}), provider()),
        (identity(client=CLIENT), provider()),
        (identity(apiKey={}), provider()),
        (identity(expectedSubject={"subject": "a"}), provider()),
        (identity(), oauth(issuer=ISSUER + "/x")),
        (identity(), oauth(endpoints={"token": "https://a"})),
        (identity(), oauth(client=CLIENT | {"id": "other"})),
    ],
)
def test_what_determines_the_token_counts(one: Any, other: Any) -> None:
    assert digest(one, other) != BASE


def test_the_order_of_parameters_does_not_count() -> None:
    one, other = {"a": "1", "b": "2"}, {"b": "2", "a": "1"}
    assert digest(identity(parameters=one), provider()) == digest(identity(parameters=other), provider())


def test_digests_stay_the_same_over_releases() -> None:
    assert BASE == "3eaaac1f10a3ba3b5e53fc89e8fca5bb8206624b60a5de5b6e3298f1d3789472"
    assert files({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_files_count_with_all_that_is_published() -> None:
    changed = [
        {"secretName": "a"},
        {"type": "None"},
        {"labels": {"a": "b"}},
        {"annotations": {"a": "b"}},
        {"files": [{"format": "Token", "name": "t"}]},
        {"files": [{"format": "Template", "name": "t", "template": "a"}]},
        {"files": [{"format": "Template", "name": "t", "template": "b"}]},
    ]
    assert len({files({}), *map(files, changed)}) == len(changed) + 1
    assert files({"touchPods": True}) == files({})


def test_any_parts_can_be_digested() -> None:
    target = load(identity()).identities[0].spec.target
    assert spec_hash(target, "a") != spec_hash(target, "b")
    assert len(spec_hash()) == 64
