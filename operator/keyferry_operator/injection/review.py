"""AdmissionReview (admission.k8s.io/v1): the API server's question about a pod, and the answer to it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from keyferry_operator.injection.pods import MalformedPod, read_pod
from keyferry_operator.injection.wishes import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyferry_operator.injection.inject import Injection
    from keyferry_operator.injection.pods import Pod

VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"
LONGEST_UID: Final = 253


class BadReview(ValueError):
    """What was sent is no question about a new pod; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server is told."""

    review: dict[str, Any]
    outcome: str
    """``injected``, ``unchanged`` or ``refused``."""


def answer(review: object, decide: Callable[[Pod, str], Injection]) -> Answer:
    """Answer a review, which is parsed JSON; ``decide`` is given the pod and its namespace, and may raise Refused.

    Raises:
        BadReview: it is none, or asks about something else than the creation of a pod.

    """
    request = _request(review)
    uid = request.get("uid")
    if not isinstance(uid, str) or not 0 < len(uid) <= LONGEST_UID:
        raise BadReview("request.uid must be a string")
    namespace = request.get("namespace")
    if not isinstance(namespace, str) or not namespace:
        raise BadReview("request.namespace must be a string")
    if request.get("operation") != "CREATE" or request.get("subResource"):
        raise BadReview("only the creation of pods is judged here")
    kind = request.get("kind")
    if not isinstance(kind, dict) or kind.get("kind") != "Pod" or kind.get("group"):
        raise BadReview("only pods are judged here")
    try:
        injection = decide(read_pod(request.get("object")), namespace)
    except MalformedPod as error:
        raise BadReview(f"request.object: {error}") from None
    except Refused as refusal:
        status = {"code": HTTPStatus.BAD_REQUEST.value, "reason": "BadRequest", "message": str(refusal)}
        return _answer(uid, "refused", {"allowed": False, "status": status})
    return _answer(uid, "injected" if injection.operations else "unchanged", _allowed(injection))


def _request(review: object) -> dict[str, Any]:
    if not isinstance(review, dict) or (review.get("apiVersion"), review.get("kind")) != (VERSION, KIND):
        raise BadReview(f"the body must be an {KIND} of {VERSION}")
    request = review.get("request")
    if not isinstance(request, dict):
        raise BadReview("request must be an object")
    return request


def _allowed(injection: Injection) -> dict[str, Any]:
    response: dict[str, Any] = {"allowed": True}
    if injection.operations:
        patch = json.dumps(injection.operations, separators=(",", ":")).encode()
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(patch).decode()}
    if injection.mode is not None:
        # The API server puts the webhook's name before the keys.
        response["auditAnnotations"] = {"identities": ",".join(injection.identities), "mode": injection.mode.value}
    if injection.warnings:
        response["warnings"] = list(injection.warnings)
    return response


def _answer(uid: str, outcome: str, response: dict[str, Any]) -> Answer:
    return Answer({"apiVersion": VERSION, "kind": KIND, "response": {"uid": uid, **response}}, outcome)
