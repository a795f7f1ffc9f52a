"""The API server's question, and the answer."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyferry_operator.injection import Answer, BadReview, Injection, Pod, answer, inject
from tests.operator.injection.samples import SETTINGS, asking, injected, patched, pod, spec


def decide(pod: Pod, namespace: str) -> Injection:
    assert namespace
    return inject(pod, namespace, {"nightly": spec("Token", consumers=())}.get, SETTINGS)


def question(body: Any = None, **request: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "operation": "CREATE",
            "namespace": "batch",
            "dryRun": True,
            "object": pod() if body is None else body,
            **request,
        },
    }


def asked(review: Any) -> Answer:
    return answer(review, decide)


def test_an_injected_pod() -> None:
    found = asked(question())
    assert found.outcome == "injected"
    assert found.review["apiVersion"] == "admission.k8s.io/v1"
    response = found.review["response"]
    assert response["uid"] == "705ab4f5-6393-11e8-b7cc-42010a800002"
    assert response["allowed"] is True
    assert response["patchType"] == "JSONPatch"
    operations = json.loads(base64.b64decode(response["patch"]))
    assert patched(pod(), operations) == injected(pod(), nightly=spec("Token"))
    assert response["auditAnnotations"] == {"identities": "nightly", "mode": "Sidecar"}
    assert "spec.consumers" in response["warnings"][0]


def test_a_pod_that_asks_for_nothing() -> None:
    found = asked(question(pod({})))
    assert found.outcome == "unchanged"
    assert found.review["response"] == {"uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "allowed": True}


def test_a_refused_pod() -> None:
    found = asked(question(pod(asking(mode="Sidekick"))))
    assert found.outcome == "refused"
    response = found.review["response"]
    assert response["allowed"] is False
    assert response["status"]["code"] == 400
    assert response["status"]["message"].startswith("keyferry.dev/mode: 'Sidekick' is none of Sidecar, Secret")
    assert "patch" not in response


@pytest.mark.parametrize(
    ("review", "said"),
    [
        (None, "must be an AdmissionReview"),
        ([], "must be an AdmissionReview"),
        ({**question(), "apiVersion": "admission.k8s.io/v1beta1"}, "admission.k8s.io/v1"),
        ({**question(), "request": None}, "request must be"),
        (question(uid=""), "request.uid"),
        (question(namespace=7), "request.namespace"),
        (question(operation="UPDATE"), "only the creation"),
        (question(subResource="eviction"), "only the creation"),
        (question(kind={"group": "apps", "kind": "Pod"}), "only pods"),
        (question(kind="Pod"), "only pods"),
        (question([]), "request.object: object must be an object"),
        (question(pod(containers={})), "request.object: spec.containers must be a list"),
    ],
)  # fmt: skip
def test_what_is_no_question(review: Any, said: str) -> None:
    with pytest.raises(BadReview, match=said):
        asked(review)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(["uid", "kind", "namespace", "operation", "object", "subResource"]),
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_sent_is_answered_or_called_bad(value: Any, field: str) -> None:
    try:
        found = asked(question(**{field: value}))
    except BadReview:
        return
    assert isinstance(found.review["response"]["allowed"], bool)
