"""What is said where a right is missing, in the words of RBAC."""

from __future__ import annotations

import pytest

from keyferry_operator.client import (
    CLUSTER_PROVIDERS,
    CONFIG_MAPS,
    IDENTITIES,
    LEASES,
    NAMESPACES,
    SECRETS,
    SERVICE_ACCOUNTS,
)
from keyferry_operator.refusals import missing_right


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("GET", SECRETS.path("batch", "bot"), "may not get secrets (bot) in namespace batch"),
        ("GET", SECRETS.path("batch"), "may not list secrets in namespace batch"),
        ("GET", SECRETS.path(), "may not list secrets in the cluster"),
        ("POST", SECRETS.path("batch"), "may not create secrets in namespace batch"),
        ("PUT", LEASES.path("keyferry", "one"), "may not update leases (one) in namespace keyferry"),
        (
            "PATCH",
            IDENTITIES.path("batch", "nightly", "status"),
            "may not patch serviceidentities/status (nightly) in namespace batch",
        ),
        (
            "POST",
            SERVICE_ACCOUNTS.path("batch", "ingest", "token"),
            "may not create serviceaccounts/token (ingest) in namespace batch",
        ),
        ("DELETE", SECRETS.path("batch", "bot"), "may not delete secrets (bot) in namespace batch"),
        ("GET", CLUSTER_PROVIDERS.path(), "may not list clustertokenproviders in the cluster"),
        ("GET", NAMESPACES.path(None, "kube-system"), "may not get namespaces (kube-system) in the cluster"),
    ],
)
def test_the_right_is_named(method: str, path: str, words: str) -> None:
    assert f"{words}. " in missing_right(method, path)


def test_watching_is_a_right_of_its_own() -> None:
    assert "may not watch secrets in namespace batch. " in missing_right("GET", SECRETS.path("batch"), watch=True)


def test_an_apply_needs_another_right_where_there_is_nothing_yet() -> None:
    assert "may not create configmaps (keyferry-ca) in namespace batch. " in missing_right(
        "PATCH", CONFIG_MAPS.path("batch", "keyferry-ca"), lacks="create"
    )
