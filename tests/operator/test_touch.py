"""Which pods a Secret concerns."""

from __future__ import annotations

from typing import Any

import pytest

from keyferry_operator.touch import mounted


def pod(*volumes: dict[str, Any], node: str = "one", **metadata: Any) -> dict[str, Any]:
    return {"metadata": {"name": "reader", **metadata}, "spec": {"nodeName": node, "volumes": list(volumes)}}


SECRET = {"name": "a", "secret": {"secretName": "nightly"}}
PROJECTED = {
    "name": "b",
    "projected": {"sources": [{"configMap": {"name": "nightly"}}, {"secret": {"name": "hourly"}}, {"secret": {}}]},
}
OTHERS = ({"name": "c", "configMap": {"name": "nightly"}}, {"name": "d", "emptyDir": {}}, {"name": "e", "secret": {}})


@pytest.mark.parametrize(
    ("found", "secrets"),
    [
        (pod(SECRET), {"nightly"}),
        (pod(PROJECTED), {"hourly"}),
        (pod(SECRET, *OTHERS, PROJECTED), {"nightly", "hourly"}),
        (pod(*OTHERS), set()),
        (pod(), set()),
        (pod(SECRET, node=""), set()),
        (pod(SECRET, deletionTimestamp="2026-11-22T10:00:00Z"), set()),
        ({"metadata": {"name": "bare"}}, set()),
    ],
)
def test_secrets_that_a_kubelet_keeps_fresh_for_a_pod(found: dict[str, Any], secrets: set[str]) -> None:
    assert mounted(found) == secrets
